"""The correlation matrix of the spatial filters of a trained network."""

from __future__ import annotations

import warnings
from typing import Any, Literal, overload

import torch
from torch import Tensor

from sylvinit.correlated.network_filters import spatial_filters
from sylvinit.errors import DataError, ModelError, OptionError, SylvinitWarning
from sylvinit.priors.distance import distance_classes
from sylvinit.priors.matrix import FilterCorrelation, Kernel, check_kernel, shown

Center = bool | Literal["layer"]
# Spreads below this, relative to the largest weight, are what rounding has left of zero.
_ROUNDING = 1e-12


@overload
def filter_correlation(
    model_or_weights: Any,
    kernel_size: Kernel = 3,
    *,
    per_layer: Literal[False] = False,
    center: Center = True,
    standardize: bool = False,
) -> FilterCorrelation: ...


@overload
def filter_correlation(
    model_or_weights: Any,
    kernel_size: Kernel = 3,
    *,
    per_layer: Literal[True],
    center: Center = True,
    standardize: bool = False,
) -> dict[str, FilterCorrelation]: ...


def filter_correlation(
    model_or_weights: Any,
    kernel_size: Kernel = 3,
    *,
    per_layer: bool = False,
    center: Center = True,
    standardize: bool = False,
) -> FilterCorrelation | dict[str, FilterCorrelation]:
    """Correlation matrix R of the spatial filters of a network.

    Every filter w (the taps of one input channel of one unit) is an observation:

        R[i, j] = C[i, j] / sqrt(C[i, i] C[j, j]),   C = mean of (w - m) (w - m)^T,

    as in "Correlated Initialization for Correlated Data", section 5. The standard error of an entry
    is that of its linearization, with z the standardized filters,

        z_i z_j - R[i, j] (z_i^2 + z_j^2) / 2,

    summed over the filters of each output unit, since these are learned together: only units are
    taken as independent. No normal distribution is assumed.

    Args:
        model_or_weights: a module (its Conv1d/2d/3d layers), a state dict, a path of a .safetensors
            or torch.save file, or one weight (units, channels, *kernel). Weights of transposed
            convolutions cannot be told from others in a state dict and are counted with them.
        kernel_size: of the filters to take; a number k stands for k x k.
        per_layer: one matrix for each layer that has at least two filters, by the name of its
            module, instead of one for all. Correlation grows with depth (figure 1).
        center: the mean m: True that of all filters (as numpy.corrcoef), "layer" each layer's own,
            False none, which gives the correlation that zero-mean filters should be drawn with.
        standardize: divide every layer by its root mean square (after centering), so that its
            filters count the same, whatever the scale of its weights.

    Returns:
        :class:`FilterCorrelation`, float64 (taps, taps), a tensor with ``filters``,
        ``standard_error``, ... as attributes; or a dict of them.

    Raises:
        ModelError: no filters of that size, or fewer than two.
        DataError: a file cannot be read, a weight is not finite, or a tap is the same in all
            filters.
        OptionError, OptionTypeError: another argument is out of its domain or of the wrong type.
    """
    kernel = check_kernel(kernel_size)
    if not (isinstance(center, bool) or center == "layer"):
        raise OptionError(f"center must be True, False or 'layer', got {center!r}")
    weights = spatial_filters(model_or_weights, kernel)
    if not per_layer:
        return _correlation(weights, kernel, center, standardize)
    several = {name: w for name, w in weights.items() if w.shape[0] * w.shape[1] > 1}
    if not several:
        raise ModelError(
            f"model_or_weights: no layer has two filters of {shown(kernel)}; pool them with "
            "per_layer=False"
        )
    return {
        _layer_name(name): _correlation({name: w}, kernel, center, standardize)
        for name, w in several.items()
    }


def _correlation(
    weights: dict[str, Tensor], kernel: tuple[int, ...], center: Center, standardize: bool
) -> FilterCorrelation:
    count = sum(w.shape[0] * w.shape[1] for w in weights.values())
    if count < 2:
        raise ModelError(f"model_or_weights: expected at least two filters, got {count}")
    prepared = [_prepared(*item, center, standardize) for item in weights.items()]
    layers = [filters for filters, _ in prepared]
    mean = torch.stack([filters.sum(dim=(0, 1)) for filters in layers]).sum(dim=0) / count
    if center is not True:
        mean = torch.zeros_like(mean)
    layers = [filters - mean for filters in layers]
    covariance = mean.new_zeros(len(mean), len(mean))
    for filters in layers:
        rows = filters.flatten(0, 1)
        covariance += rows.mT @ rows / count
    spread = covariance.diagonal().sqrt()
    fixed = (spread <= _ROUNDING * max(size for _, size in prepared)).nonzero().flatten().tolist()
    if fixed:
        raise DataError(
            f"model_or_weights: taps {fixed} are the same in all {count} filters, so that their "
            "correlation is undefined; leave out pruned or unset layers"
        )
    matrix = covariance / spread / spread[:, None]
    matrix = (matrix + matrix.mT) / 2
    names = tuple(_layer_name(name) for name in weights)
    if count <= len(mean):
        where = f" in layer {names[0]!r}" if len(names) == 1 and names[0] else ""
        warnings.warn(
            f"{count} filters of {len(mean)} taps{where} give a singular correlation matrix with "
            "large standard errors; pool more layers, or resample the matrix of a smaller kernel",
            SylvinitWarning,
            stacklevel=3,
        )
    errors = _standard_errors([filters / spread for filters in layers], matrix, kernel)
    return FilterCorrelation.of(
        matrix.clamp(-1, 1).fill_diagonal_(1),
        kernel,
        filters=count,
        units=sum(w.shape[0] for w in weights.values()),
        standard_error=errors[0],
        distance_error=errors[1],
        layers=names,
    )


def _prepared(name: str, weight: Tensor, center: Center, standardize: bool) -> tuple[Tensor, float]:
    """A layer's filters in float64, (units, channels, taps), and the size of its largest weight."""
    filters = weight.to("cpu", torch.float64).flatten(2)
    size = float(filters.abs().max())
    centered = filters - filters.mean(dim=(0, 1)) if center else filters
    if center == "layer":
        filters = centered
    if not standardize:
        return filters, size
    scale = float(centered.square().mean().sqrt())
    if scale <= _ROUNDING * size:
        raise DataError(
            f"{name}: all its filters are the same, so that standardize=True has nothing to divide "
            "by; leave out pruned or unset layers"
        )
    return filters / scale, size / scale


def _layer_name(weight: str) -> str:
    """The module that a weight belongs to; "" is the model itself."""
    return "" if weight == "weight" else weight.removesuffix(".weight")


def _standard_errors(
    layers: list[Tensor], matrix: Tensor, kernel: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Standard errors of the entries, and of their means over the pairs at each distance.

    ``layers`` are the standardized filters, (units, channels, taps).
    """
    distance, index = distance_classes(kernel)
    pairs = torch.bincount(index.flatten(), minlength=len(distance))
    squares = torch.zeros_like(matrix)
    distance_squares = matrix.new_zeros(len(distance))
    for z in layers:
        products = z.mT @ z  # summed over the filters of each unit
        own = products.diagonal(dim1=1, dim2=2)
        influence = products - matrix * (own[:, :, None] + own[:, None, :]) / 2
        squares += influence.square().sum(dim=0)
        means = influence.new_zeros(len(z), len(distance))
        means.index_add_(1, index.flatten(), influence.flatten(1))
        distance_squares += (means / pairs).square().sum(dim=0)
    units, count = sum(len(z) for z in layers), sum(z.shape[0] * z.shape[1] for z in layers)
    # One unit says nothing of the spread between units.
    correction = units / (units - 1) if units > 1 else float("nan")
    entry = (squares * correction).sqrt() / count
    return entry.fill_diagonal_(0), (distance_squares[1:] * correction).sqrt() / count
