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

from sylvinit import priors
from sylvinit.checks import Selection, check_used, matches
from sylvinit.errors import ModelError, OptionError, OptionTypeError
from sylvinit.model import ConvLayer, ConvTransposeLayer, Layer, LinearLayer, layers_of
from sylvinit.model.modules import clean_name, memory_key, parameter_holders, refuse_lazy
from sylvinit.priors.distance import resample_correlation
from sylvinit.priors.matrix import (
    check_correlation,
    kernel_for,
    kernel_of,
    mean_off_diagonal,
    shown,
)
from sylvinit.priors.strength import scaled_correlation
from sylvinit.report import LayerReport


@dataclass
class Job:
    """A layer to be drawn.

    Attributes:
        layer: where the weight lies.
        shape: (units, channels / groups, *kernel); without kernel axes for layers on rows.
        report: on it.
        dtype, device: of the weight.
        matrix: R at the wanted strength, float64 (taps, taps); None for He's distribution.
    """

    layer: Layer
    shape: tuple[int, ...]
    report: LayerReport
    dtype: torch.dtype
    device: torch.device
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
class Plan:
    """What will be done to a model.

    Attributes:
        jobs: the layers to draw, in the order of the modules.
        skipped: reports on the layers that are left alone.
        convolutions: names of all convolutions with spatial filters, drawn or not.
    """

    jobs: list[Job] = field(default_factory=list)
    skipped: list[LayerReport] = field(default_factory=list)
    convolutions: list[str] = field(default_factory=list)


def plan_layers(model: nn.Module, selection: Selection) -> Plan:
    """Which layers are drawn, and which are not, with the reason.

    Raises:
        ModelError: a weight is lazy; or nothing with spatial filters is left.
        OptionError: a pattern of the selection matches no layer.
    """
    layers = _layers(model)
    selection.check([layer.name for layer in layers])
    holders = parameter_holders(model.modules())
    owners = {id(module) for layer in layers for module in _owning(layer)}
    names = {id(module): clean_name(name) for name, module in model.named_modules()}
    plan = Plan(convolutions=[layer.name for layer in layers if _is_spatial(layer)])
    taken: dict[tuple[tuple[Hashable, str], ...], str] = {}
    reasons = {layer.name: _reason(layer, selection) for layer in layers}
    left_alone = {key: layer for layer in layers if reasons[layer.name] for key in _keys(layer)}
    for layer in layers:
        reason = reasons[layer.name]
        if reason is None:
            keys = _keys(layer)
            outside = [
                module
                for parameter, _ in keys
                for module in holders.get(parameter, [])
                if id(module) not in owners
            ]
            tied = next((left_alone[key] for key in keys if key in left_alone), None)
            if outside:
                kind = type(outside[0]).__name__
                reason = f"its weight is tied to {names[id(outside[0])]} ({kind})"
            elif tied is not None:
                reason = f"its weight is tied to {tied.name} ({tied.kind}), which is left alone"
            elif keys in taken:
                reason = f"shares its weight with {taken[keys]}"
            else:
                taken[keys] = layer.name
                plan.jobs.append(_job(layer))
        if reason is not None:
            plan.skipped.append(LayerReport(layer.name, layer.kind, "skipped", reason))
    if not any(job.spatial for job in plan.jobs):
        raise ModelError(
            "the model has no spatial filters to draw: expected a Conv1d, Conv2d or Conv3d with "
            "more than one tap that is selected and not frozen; use "
            "torch.nn.init.kaiming_normal_ for other layers"
        )
    return plan


def _keys(layer: Layer) -> tuple[tuple[Hashable, str], ...]:
    """The parameters behind a weight by their memory, and which part of them it is."""
    try:
        return tuple(
            (memory_key(parameter), layer.slot) for parameter in layer.parameters("weight")
        )
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
    """The layer of a convolution or linear layer with a forward of its own.

    What it computes is unknown, and so are its patches; but its weight means the same.
    """
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
    """The modules that may hold the parameters behind a layer's weight."""
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


def assign_matrices(corr: Any, plan: Plan, strength: float) -> list[str]:
    """Give every job with spatial filters its matrix, and say in its report what was done.

    Args:
        corr: as in :func:`sylvinit.correlated_init_`.
        plan: its jobs get their matrices.
        strength: checked.

    Returns:
        Warnings.

    Raises:
        CorrelationError, OptionError, OptionTypeError: as there.
    """
    spatial = [job for job in plan.jobs if job.spatial]
    scaled: dict[tuple[int, tuple[int, ...]], tuple[Tensor, list[str]]] = {}
    matrices = _by_job(corr, spatial, plan.convolutions)
    for job, matrix in zip(spatial, matrices, strict=True):
        if matrix is None:
            job.report.notes.append("no matrix is given for it: He's normal distribution")
            continue
        given = kernel_for(matrix, job.kernel)
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
    caveats = list(dict.fromkeys(text for _, texts in scaled.values() for text in texts))
    if len(caveats) > 1:
        caveats = [f"{caveats[0]}; and {len(caveats) - 1} more like this, see the report's notes"]
    return caveats


def _by_job(corr: Any, jobs: list[Job], convolutions: list[str]) -> list[Tensor | None]:
    """The matrix of every job, one object for each that was given; None where there is none."""
    if isinstance(corr, Mapping):
        if not corr:
            raise OptionError("corr: expected at least one pattern with a matrix, got {}")
        for pattern in corr:
            if not isinstance(pattern, str):
                raise OptionTypeError(f"corr: patterns must be strings, got {pattern!r}")
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
    if _is_list_of_matrices(corr):
        several = [_matrix(value) for value in corr]
        # The depth among all convolutions, whichever of them are drawn.
        last = max(len(convolutions) - 1, 1)
        depth = {name: index for index, name in enumerate(convolutions)}
        return [several[round(depth[j.layer.name] * (len(several) - 1) / last)] for j in jobs]
    return [_matrix(corr)] * len(jobs)


def _is_list_of_matrices(corr: Any) -> bool:
    """A list of matrices or names, and not a matrix written as nested lists of numbers."""
    if not isinstance(corr, (list, tuple)) or not corr:
        return False
    first = corr[0]
    return isinstance(first, (str, PathLike)) or getattr(first, "ndim", None) == 2


def _matrix(value: Any) -> Tensor:
    """A checked matrix that still knows its kernel."""
    if isinstance(value, (str, PathLike)):
        return priors.load(value)
    matrix = check_correlation(value)
    if getattr(value, "kernel_size", None) is not None:
        kernel_of(value)  # raises where it does not fit
        return value
    return matrix
