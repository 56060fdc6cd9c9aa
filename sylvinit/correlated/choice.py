"""Which layers of a model are drawn, and with which matrix."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sylvinit.checks import Selection, check_patterns, check_used, matches
from sylvinit.errors import ModelError, OptionError
from sylvinit.model import ConvLayer, ConvTransposeLayer, Layer, LinearLayer, layers_of
from sylvinit.model.modules import clean_name, memory_key, parameter_holders, refuse_lazy
from sylvinit.priors.distance import resample_correlation
from sylvinit.priors.files import loaded
from sylvinit.priors.matrix import check_correlation, kernel_of, mean_off_diagonal, shown
from sylvinit.priors.strength import scaled_correlation
from sylvinit.report import LayerReport


@dataclass
class Job:
    """A layer to be drawn."""

    layer: Layer
    shape: tuple[int, ...]  # (units, channels / groups, *kernel), without kernel for other layers
    report: LayerReport
    dtype: torch.dtype  # of the weight
    device: torch.device
    # R at the wanted strength, float64 (taps, taps); None for He's distribution.
    matrix: Tensor | None = field(default=None, repr=False)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel of a convolution, () of other layers."""
        return self.shape[2:]

    @property
    def spatial(self) -> bool:
        """Whether a filter has more than one tap."""
        return math.prod(self.kernel) > 1


@dataclass
class LayerChoice:
    """Layers to draw, in the order of the modules, and reports on the others."""

    jobs: list[Job]
    skipped: list[LayerReport]
    convolutions: list[str]  # all with spatial filters, drawn or not


def choose_layers(model: nn.Module, selection: Selection) -> LayerChoice:
    """Which layers are drawn, and why others are not; ModelError if no spatial filters are left."""
    layers = _layers(model)
    selection.check([layer.name for layer in layers])
    reasons = {layer.name: _reason(layer, selection) for layer in layers}
    _leave_shared_weights(model, layers, reasons)
    choice = LayerChoice(
        [_job(layer) for layer in layers if reasons[layer.name] is None],
        [LayerReport(n.name, n.kind, "skipped", r) for n in layers if (r := reasons[n.name])],
        [layer.name for layer in layers if _is_spatial(layer)],
    )
    if not any(job.spatial for job in choice.jobs):
        raise ModelError(
            "the model has no spatial filters to draw: expected a Conv1d, Conv2d or Conv3d with "
            "more than one tap that is selected and not frozen; use "
            "torch.nn.init.kaiming_normal_ for other layers"
        )
    return choice


def _leave_shared_weights(
    model: nn.Module, layers: list[Layer], reasons: dict[str, str | None]
) -> None:
    """Of layers that share a weight one is drawn; none if something else uses it too."""
    holders = parameter_holders(model.modules())
    owners = {module for layer in layers for module in _owning(layer)}
    names = {module: clean_name(name) for name, module in model.named_modules()}
    left_alone = {key: layer for layer in layers if reasons[layer.name] for key in _keys(layer)}
    drawn: dict[tuple[tuple[Hashable, str], ...], str] = {}
    for layer in layers:
        if reasons[layer.name] is not None:
            continue
        keys = _keys(layer)
        others = [m for key, _ in keys for m in holders.get(key, []) if m not in owners]
        tied = [left_alone[key] for key in keys if key in left_alone]
        if others:
            kind = type(others[0]).__name__
            reasons[layer.name] = f"its weight is tied to {names[others[0]]} ({kind})"
        elif tied:
            reasons[layer.name] = (
                f"its weight is tied to {tied[0].name} ({tied[0].kind}), which is left alone"
            )
        elif keys in drawn:
            reasons[layer.name] = f"shares its weight with {drawn[keys]}"
        else:
            drawn[keys] = layer.name


def _keys(layer: Layer) -> tuple[tuple[Hashable, str], ...]:
    """The parameters behind a weight by their memory, and which part of them it is."""
    try:
        return tuple((memory_key(p), layer.slot) for p in layer.parameters("weight"))
    except ModelError:  # not a parameter
        return ()


def _layers(model: nn.Module) -> list[Layer]:
    refuse_lazy(model)
    found: list[Layer] = []
    owned: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in owned:
            continue
        layers = layers_of(module, clean_name(name)) or _subclass(module, clean_name(name))
        # The output projection of attention belongs to the attention's own layers.
        owned.update(id(layer.owner) for layer in layers if layer.owner is not module)
        found.extend(layers)
    return found


def _subclass(module: nn.Module, name: str) -> list[Layer]:
    """The layer of a subclass of a convolution or Linear: its weight means the same as theirs."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return []
    shape = tuple(weight.shape)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        channels = module.in_channels // module.groups
        usual = shape == (module.out_channels, channels, *module.kernel_size)
        return [ConvLayer(module, name)] if usual else []
    if isinstance(module, nn.Linear) and shape == (module.out_features, module.in_features):
        return [LinearLayer(module, name)]
    return []


def _is_spatial(layer: Layer) -> bool:
    return isinstance(layer, ConvLayer) and layer.geometry is not None and layer.geometry.taps > 1


def _owning(layer: Layer) -> list[nn.Module]:
    owner = layer.owner
    if parametrize.is_parametrized(owner):
        return [owner, *owner.parametrizations.modules()]  # type: ignore[union-attr]
    return [owner]


def _reason(layer: Layer, selection: Selection) -> str | None:
    """Why a layer is left alone, as far as it can be seen from the layer itself."""
    if not selection.takes(layer.name):
        return "not selected by include and exclude"
    if isinstance(layer, ConvTransposeLayer):
        return "a transposed convolution, whose fan-in depends on the output pixel"
    return layer.reason_to_keep()


def _job(layer: Layer) -> Job:
    weight = layer.get_weight()
    groups, outputs, features = weight.shape
    shape = (groups * outputs, features)
    if isinstance(layer, ConvLayer) and layer.geometry is not None:
        kernel = layer.geometry.kernel
        shape = (groups * outputs, features // math.prod(kernel), *kernel)
    report = LayerReport(layer.name, layer.kind, "planned", d_in=features, d_out=outputs)
    report.groups = groups
    return Job(layer, shape, report, weight.dtype, weight.device)


def assign_matrices(corr: Any, choice: LayerChoice, strength: float) -> list[str]:
    """Give every job with spatial filters its matrix and notes on it; returns the warnings."""
    spatial = [job for job in choice.jobs if job.spatial]
    scaled: dict[tuple[int, tuple[int, ...]], tuple[Tensor, list[str]]] = {}
    matrices = _by_job(corr, spatial, choice.convolutions)
    for job, matrix in zip(spatial, matrices, strict=True):
        if matrix is None:
            job.report.notes.append("no matrix is given for it: He's normal distribution")
            continue
        given = kernel_of(matrix, wanted=job.kernel)
        key = (id(matrix), job.kernel)
        if key not in scaled:
            made = resample_correlation(matrix, job.kernel, source_kernel=given)
            scaled[key] = scaled_correlation(made, strength)
        job.matrix, texts = scaled[key]
        job.report.notes.extend(texts)
        if given != job.kernel:
            job.report.notes.append(
                f"its matrix for {shown(job.kernel)} taps is made from the one for {shown(given)} "
                "by a model of correlation against distance"
            )
        if len({id(matrix) for matrix in matrices}) > 1:
            mean = mean_off_diagonal(job.matrix)
            job.report.notes.append(f"mean correlation of its taps {mean:.3f}")
    for job in choice.jobs:
        job.report.code = "he" if job.matrix is None else "correlated"
    caveats = list(dict.fromkeys(text for _, texts in scaled.values() for text in texts))
    if len(caveats) > 1:
        caveats = [f"{caveats[0]}; and {len(caveats) - 1} more like this, see the report's notes"]
    return caveats


def _by_job(corr: Any, jobs: list[Job], convolutions: list[str]) -> list[Tensor | None]:
    """The matrix of every job, one object for each that was given; None where there is none."""
    if isinstance(corr, Mapping):
        if not corr:
            raise OptionError("corr: expected at least one pattern with a matrix, got {}")
        check_patterns("corr", corr)
        try:
            # Those that are left alone, too: matrices for all layers go with any selection.
            check_used("corr", corr, convolutions)
        except OptionError as error:
            raise OptionError(
                f"{error}. Matrices of a network with other names can be given in their order, as "
                "list(corr.values())"
            ) from error
        matrices = {pattern: _matrix(value) for pattern, value in corr.items()}
        return [
            next((m for pattern, m in matrices.items() if matches(job.layer.name, pattern)), None)
            for job in jobs
        ]
    first = corr[0] if isinstance(corr, (list, tuple)) and corr else None
    # A list of matrices or names, and not a matrix written as nested lists of numbers.
    if isinstance(first, (str, PathLike)) or getattr(first, "ndim", None) == 2:
        several = [_matrix(value) for value in corr]
        # The depth among all convolutions, whichever of them are drawn.
        last = max(len(convolutions) - 1, 1)
        depth = {name: index for index, name in enumerate(convolutions)}
        return [several[round(depth[j.layer.name] * (len(several) - 1) / last)] for j in jobs]
    return [_matrix(corr)] * len(jobs)


def _matrix(value: Any) -> Tensor:
    """A checked matrix that still knows its kernel."""
    value = loaded(value)
    matrix = check_correlation(value)
    if getattr(value, "kernel_size", None) is None:
        return matrix
    kernel_of(value)  # raises where it does not fit
    return value
