"""The spatial correlation of what a network's convolutions read: matrices without training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from sylvinit.checks import check_count, check_seed
from sylvinit.distributed import Message, Ranks, join
from sylvinit.errors import DataError, ModelError, NonFiniteError
from sylvinit.execution.batches import Batch, Forward, read_batches
from sylvinit.execution.guard import CallerModes, ModelGuard, forward_modes, plain_modes
from sylvinit.execution.notes import noted
from sylvinit.execution.replicas import Replicas, in_one_stream
from sylvinit.execution.shards import unsharded
from sylvinit.model import ConvLayer, layers_of
from sylvinit.model.modules import check_module, clean_name, device_of, refuse_lazy
from sylvinit.moments.collect import InputCollector
from sylvinit.options import ForwardFn
from sylvinit.priors.matrix import FilterCorrelation, spatial_correlation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def input_correlation(
    model: nn.Module,
    data: Any,
    *,
    patches: int | str = 10,
    microbatch: int | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    forward_fn: ForwardFn | None = None,
    process_group: ProcessGroup | Literal["world"] | None = None,
) -> dict[str, FilterCorrelation]:
    """Spatial correlation of the input of every convolution, by layer.

    The matrices are those of the pixels of the patches that a layer reads, padding included, about
    each channel's mean and averaged over channels; the network's present weights make the inputs
    of the deeper layers. ``correlated_init_(model, input_correlation(model, data))`` draws filters
    as correlated as their inputs, without a trained network. (``initialize_(model, data,
    code="correlated")`` does so layer by layer and solves the Sylvester equation on top.)

    Where neighboring pixels are opposite rather than alike, as in fast oscillations, the taps of
    such filters nearly cancel, and eq. 17, which preserves the variance of equal pixels, makes
    them large: :func:`sylvinit.correlated_init_` warns, and ``strength`` weakens it.

    Args:
        model: any module; it runs in evaluation mode and is left as it was.
        data: as for :func:`sylvinit.initialize_`; labels are not used.
        patches: random patches per sample and layer, or "all".
        microbatch, max_samples, forward_fn: as for :func:`sylvinit.initialize_`.
        seed: of the positions of the patches. Global random states are left alone.
        process_group: as for :func:`sylvinit.initialize_`; all ranks return the same.

    Returns:
        A matrix, float64 (taps, taps), for each Conv1d/2d/3d with more than one tap that ran, in
        the order of the modules; ``filters`` counts the patches. Subclasses with a forward of their
        own are left out, since nobody knows which patches that reads.

    Raises:
        ModelError: no such layer ran; or the model is lazy or on the meta device.
        DataError: the data are empty, inconsistent or not finite.
        NonFiniteError: NaN or Inf appeared in the input of a layer.
        OptionError, OptionTypeError: an argument is out of its domain or of the wrong type.
        RankError: another rank has failed, or ranks have different models.
    """
    with join(process_group, model, stacklevel=3).together() as ranks, unsharded(model, ranks):
        return _input_correlation(
            model, data, patches, microbatch, max_samples, seed, forward_fn, ranks
        )


def _input_correlation(
    model: nn.Module,
    data: Any,
    patches: int | str,
    microbatch: int | None,
    max_samples: int | None,
    seed: int,
    forward_fn: ForwardFn | None,
    ranks: Ranks,
) -> dict[str, FilterCorrelation]:
    model = check_module(model)
    refuse_lazy(model)
    device = device_of(model)
    forward = Forward(model, device, forward_fn)
    count = None if patches == "all" else check_count("patches", patches, "or 'all'")
    for argument, value in (("microbatch", microbatch), ("max_samples", max_samples)):
        if value is not None:
            check_count(argument, value, "or None")
    seed = check_seed(seed)
    watches = [
        _Watch(layer, count, seed)
        for name, module in model.named_modules()
        for layer in layers_of(module, clean_name(name))
        if isinstance(layer, ConvLayer) and layer.geometry is not None and layer.geometry.taps > 1
    ]
    caller = CallerModes.present()
    ranks.agree("arguments", [f"{count}, {max_samples}, {seed}"], "pass the same on every rank")
    with ModelGuard(model) as guard, ExitStack() as hooks:
        Replicas(model, ranks, guard).compare()
        batches = read_batches(
            data,
            forward,
            microbatch=microbatch,
            max_samples=max_samples,
            may_be_empty=not ranks.alone,
        )
        batches = in_one_stream(batches, max_samples, ranks)
        for watch in watches:
            hook = watch.layer.module.register_forward_pre_hook(watch.collect, with_kwargs=True)
            hooks.callback(hook.remove)
        for batch in batches:
            for watch in watches:
                watch.batch, watch.calls = batch, 0
            with forward_modes(caller), noted(batch, "to look at what its convolutions read"):
                forward(batch)
        found = _results(watches, ranks, device) if batches else next(ranks.follow()).meta
        ranks.commit()
    return found


def _results(
    watches: list[_Watch], ranks: Ranks, device: torch.device
) -> dict[str, FilterCorrelation]:
    for inputs in (watch.inputs for watch in watches):
        total = ranks.total("the patches of a layer", inputs.count)
        merge = partial(inputs.merge, device=device)
        ranks.reduce("the moments of a layer", partial(inputs.packed, total), merge)
    if not ranks.leads:
        return ranks.broadcast("matrices", None).meta
    found = {watch.layer.name: watch.result() for watch in watches if watch.inputs.moments}
    if not found:
        raise ModelError(
            "the forward pass reached no Conv1d, Conv2d or Conv3d with more than one tap; other "
            "layers have no spatial filters to correlate"
        )
    return ranks.broadcast("matrices", Message(found)).meta


class _Watch:
    """Collects what a convolution reads, every channel on its own."""

    def __init__(self, layer: ConvLayer, patches: int | None, seed: int) -> None:
        self.layer = layer
        self.inputs = InputCollector(layer.name, patches=patches, seed=seed, per_channel=True)
        self.batch: Batch | None = None
        self.calls = 0  # of the layer in this batch

    def collect(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        layer, geometry, batch = self.layer, self.layer.geometry, self.batch
        if batch is None or geometry is None:
            return
        x = layer.input(args, kwargs).detach()
        if x.ndim == len(geometry.kernel) + 1:
            x = x[None]
        size = tuple(x.shape[2:])
        if x.ndim != len(geometry.kernel) + 2 or min(geometry.output_size(size)) < 1:
            return  # the convolution itself raises
        if not bool(x.isfinite().all()):
            raise NonFiniteError(f"NaN or Inf in the input of layer {layer.name} ({layer.kind})")
        if len(x) % batch.size:
            raise DataError(
                f"the input of layer {layer.name} has {len(x)} entries for {batch.size} "
                "samples; expected the same number for each"
            )
        with plain_modes():  # every entry counts as a sample
            start = batch.start * (len(x) // batch.size)
            out_size = geometry.output_size(size)
            self.inputs.add(layer, x, self.calls, out_size, size=len(x), start=start)
        self.calls += 1

    def result(self) -> FilterCorrelation:
        moments, geometry = self.inputs.moments, self.layer.geometry
        assert moments is not None
        assert geometry is not None
        return FilterCorrelation.of(
            spatial_correlation(moments.covariance(), geometry.taps),
            tuple(geometry.kernel),
            filters=moments.n,
            layers=(self.layer.name,),
            source=f"input of {self.layer.name}: {moments.n} patches",
        )
