"""The spatial correlation of what a network's convolutions read: matrices without training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sylvinit.checks import check_count, check_seed
from sylvinit.errors import DataError, ModelError, NonFiniteError
from sylvinit.execution.batches import Batch, ForwardFn, call_model, read_batches
from sylvinit.execution.guard import CallerModes, ModelGuard, forward_modes, plain_modes
from sylvinit.model import ConvLayer, layers_of
from sylvinit.model.modules import check_module, clean_name, device_of, refuse_lazy
from sylvinit.moments.collect import PatchSource, add_all, add_sampled
from sylvinit.moments.rows import Rows
from sylvinit.moments.sampling import stream_key
from sylvinit.moments.streaming import PatchMoments
from sylvinit.priors.matrix import FilterCorrelation
from sylvinit.priors.spatial import spatial_correlation


def input_correlation(
    model: nn.Module,
    data: Any,
    *,
    patches: int | str = 10,
    microbatch: int | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    forward_fn: ForwardFn | None = None,
) -> dict[str, FilterCorrelation]:
    """Spatial correlation of the input of every convolution, by layer.

    The matrices are those of the pixels of the patches that a layer reads, padding included, about
    each channel's mean and averaged over channels; the network's present weights make the inputs
    of the deeper layers. ``correlated_init_(model, input_correlation(model, data))`` draws filters
    as correlated as their inputs, without a trained network. (``initialize_(model, data,
    code="correlated")`` does so layer by layer and solves the Sylvester equation on top.)

    Where neighbouring pixels are opposite rather than alike, as in fast oscillations, the taps of
    such filters nearly cancel, and eq. 17, which preserves the variance of equal pixels, makes
    them large: :func:`sylvinit.correlated_init_` warns, and ``strength`` weakens it.

    Args:
        model: any module; it runs in evaluation mode and is left as it was.
        data: as for :func:`sylvinit.initialize_`; labels are not used.
        patches: random patches per sample and layer, or "all".
        microbatch, max_samples, forward_fn: as for :func:`sylvinit.initialize_`.
        seed: of the positions of the patches. Global random states are left alone.

    Returns:
        A matrix, float64 (taps, taps), for each Conv1d/2d/3d with more than one tap that ran, in
        the order of the modules; ``filters`` counts the patches. Subclasses with a forward of their
        own are left out, since nobody knows which patches that reads.

    Raises:
        ModelError: no such layer ran; or the model is lazy or on the meta device.
        DataError: the data are empty, inconsistent or not finite.
        NonFiniteError: NaN or Inf appeared in the input of a layer.
        OptionError, OptionTypeError: an argument is out of its domain or of the wrong type.
    """
    model = check_module(model)
    refuse_lazy(model)
    device = device_of(model)
    count = None if patches == "all" else check_count("patches", patches, "or 'all'")
    for argument, value in (("microbatch", microbatch), ("max_samples", max_samples)):
        if value is not None:
            check_count(argument, value, "or None")
    seed = check_seed(seed)
    collectors = [
        _Collector(layer, count, seed)
        for name, module in model.named_modules()
        for layer in layers_of(module, clean_name(name))
        if isinstance(layer, ConvLayer) and layer.geometry is not None and layer.geometry.taps > 1
    ]
    caller = CallerModes.present()
    with ModelGuard(model):
        try:
            for collector in collectors:
                collector.attach()
            batches = read_batches(data, microbatch=microbatch, max_samples=max_samples)
            for batch in batches:
                for collector in collectors:
                    collector.begin(batch)
                with forward_modes(caller):
                    call_model(model, batch, device, forward_fn)
        finally:
            for collector in collectors:
                collector.detach()
    found = {c.layer.name: c.result() for c in collectors if c.moments is not None}
    if not found:
        raise ModelError(
            "the forward pass reached no Conv1d, Conv2d or Conv3d with more than one tap"
        )
    return found


class _Collector:
    """Moments of the pixels of a layer's patches, every channel on its own."""

    def __init__(self, layer: ConvLayer, patches: int | None, seed: int) -> None:
        self.layer = layer
        self.moments: PatchMoments | None = None
        self._handle: RemovableHandle | None = None
        self._patches, self._seed = patches, seed
        self._batch: Batch | None = None
        self._calls = 0

    def attach(self) -> None:
        """Watch the layer."""
        hook = self._collect
        self._handle = self.layer.module.register_forward_pre_hook(hook, with_kwargs=True)

    def detach(self) -> None:
        """Stop watching it."""
        if self._handle is not None:
            self._handle.remove()

    def begin(self, batch: Batch) -> None:
        """The next forward is that of this batch."""
        self._batch, self._calls = batch, 0

    def _collect(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        layer, geometry = self.layer, self.layer.geometry
        if self._batch is None or geometry is None:
            return
        x = layer.input(args, kwargs).detach()
        if x.ndim == len(geometry.kernel) + 1:
            x = x[None]
        size = tuple(x.shape[2:])
        if x.ndim != len(geometry.kernel) + 2 or min(geometry.output_size(size)) < 1:
            return  # the convolution itself raises
        if not bool(x.isfinite().all()):
            raise NonFiniteError(f"NaN or Inf in the input of layer {layer.name} ({layer.kind})")
        if len(x) % self._batch.size:
            raise DataError(
                f"the input of layer {layer.name} has {len(x)} entries for {self._batch.size} "
                "samples; expected the same number for each"
            )
        out_size = geometry.output_size(size)
        channels = x.shape[1]
        with plain_modes():
            if self.moments is None:
                precision = torch.promote_types(x.dtype, torch.float32)
                self.moments = PatchMoments(geometry.taps, groups=channels, precision=precision)
            rows = Rows.one_each(len(x), math.prod(out_size))
            source = PatchSource(x, geometry, channels, out_size, rows, None)
            key = stream_key(self._seed, layer.name, self._calls)
            start = self._batch.start * (len(x) // self._batch.size)
            if self._patches is None:
                add_all(self.moments, source, key, start, None)
            else:
                add_sampled(self.moments, source, key, start, self._patches, None)
        self._calls += 1

    def result(self) -> FilterCorrelation:
        """The matrix."""
        moments, geometry = self.moments, self.layer.geometry
        if moments is None or geometry is None:
            raise ModelError(f"layer {self.layer.name} did not run")
        return FilterCorrelation.of(
            spatial_correlation(moments.covariance(), geometry.taps),
            tuple(geometry.kernel),
            filters=moments.n,
            layers=(self.layer.name,),
            source=f"input of {self.layer.name}: {moments.n} patches",
        )
