"""Correlation matrices of spatial filters: the type, the checks, and those of a layer's input.

R is indexed by the taps of a kernel in row-major order: for a k x k kernel it is k^2 x k^2 and
R[i, j] is the correlation of the weights at taps i and j of one spatial filter.
"""

from __future__ import annotations

import copy
import math
import numbers
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import CorrelationError, OptionError, OptionTypeError

# Entries with four decimals count as exact: up to this off symmetry, 1, and [-1, 1]; and an
# eigenvalue may be negative by as much times the number of taps, which is what rounding every entry
# can do to it.
ROUNDING = 1e-4

Kernel = int | tuple[int, ...]  # a number for every spatial axis; k alone stands for k x k


class FilterCorrelation(Tensor):
    """A correlation matrix R of spatial filters, float64 (taps, taps), and where it comes from.

    A tensor in every other respect: results of operations on it are plain tensors.

    Attributes:
        kernel_size: of the filters, one number per spatial axis; None if it is not known.
        filters: how many filters (of the input of a layer: patches) it was estimated from.
        units: how many output units these belong to, the independent ones among them; 0 if they
            are no filters.
        standard_error: float64 (taps, taps), of every entry; zero on the diagonal.
        distance_error: float64, one for each distance of
            :func:`sylvinit.correlated.correlation_by_distance`, of the mean over the pairs.
        layers: names of the layers they come from.
        source: in words.
    """

    kernel_size: tuple[int, ...] | None = None
    filters: int = 0
    units: int = 0
    standard_error: Tensor | None = None
    distance_error: Tensor | None = None
    layers: tuple[str, ...] = ()
    source: str = ""

    # What nn.Parameter does: no operation returns this class.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(
        matrix: Tensor,
        kernel_size: tuple[int, ...],
        *,
        filters: int = 0,
        units: int = 0,
        standard_error: Tensor | None = None,
        distance_error: Tensor | None = None,
        layers: tuple[str, ...] = (),
        source: str = "",
    ) -> FilterCorrelation:
        """The matrix with its provenance."""
        made = matrix.detach().clone().as_subclass(FilterCorrelation)
        made.kernel_size, made.layers, made.source = kernel_size, layers, source
        made.filters, made.units = filters, units
        made.standard_error, made.distance_error = standard_error, distance_error
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> FilterCorrelation:
        # Tensor's own refuses classes whose operations give plain tensors.
        made = memo[id(self)] = self.detach().clone().as_subclass(FilterCorrelation)
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        of = self.source or "of unknown source"
        if self.units:
            of = f"{self.filters} filters of {'x'.join(map(str, self.kernel_size or ()))}"
        mean = mean_off_diagonal(self)
        numbers = np.array2string(self.detach().cpu().numpy(), precision=3)
        return f"FilterCorrelation({of}, mean off the diagonal {mean:.3f},\n{numbers})"


# torch.load with weights_only, its default, reads no class it was not told of.
torch.serialization.add_safe_globals([FilterCorrelation])


def kernel_of(
    corr: Any, kernel_size: Kernel | None = None, *, wanted: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The kernel that a checked matrix belongs to: as given, as it says itself, or the square one.

    ``wanted`` is the kernel of the layer that it is for: if that is not two-dimensional, or there
    is no square kernel with as many taps, it is also the kernel of a plain matrix of its size.
    CorrelationError if nothing says which kernel it is, or the kernel does not fit.
    """
    if kernel_size is None:
        kernel_size = getattr(corr, "kernel_size", None)
    taps = len(corr)
    if kernel_size is None:
        side = math.isqrt(taps)
        square = side * side == taps
        if wanted and math.prod(wanted) == taps and not (square and len(wanted) == 2):
            return wanted
        if not square:
            raise CorrelationError(
                f"corr: a matrix of {taps} taps belongs to no square kernel; name its kernel, as "
                f"kernel_size=({taps},) or with FilterCorrelation.of(matrix, ({taps},))"
            )
        return (side, side)
    kernel = check_kernel(kernel_size)
    if math.prod(kernel) != taps:
        raise CorrelationError(
            f"corr: expected {math.prod(kernel)} x {math.prod(kernel)} for a kernel of "
            f"{shown(kernel)}, got {taps} x {taps}; see sylvinit.correlated.resample_correlation"
        )
    return kernel


def check_kernel(kernel_size: Any) -> tuple[int, ...]:
    """The kernel size, one number per axis; a single number k stands for k x k."""
    axes = (kernel_size,) * 2 if isinstance(kernel_size, numbers.Integral) else kernel_size
    if not isinstance(axes, (tuple, list)) or any(
        isinstance(axis, bool) or not isinstance(axis, numbers.Integral) for axis in axes
    ):
        raise OptionTypeError(
            f"kernel_size must be an integer or a tuple of them, got {kernel_size!r}"
        )
    if not 1 <= len(axes) <= 3 or min(axes) < 1:
        raise OptionError(
            f"kernel_size must be one to three numbers of at least 1, got {kernel_size!r}"
        )
    return tuple(int(axis) for axis in axes)


def shown(kernel: tuple[int, ...]) -> str:
    """A kernel size in words: "3 x 3", "5"."""
    return " x ".join(str(axis) for axis in kernel)


def check_correlation(corr: Any, taps: int | None = None, argument: str = "corr") -> Tensor:
    """The matrix in float64 on the CPU, symmetric and with unit diagonal to the last bit.

    Deviations of up to 1e-4, which four decimals leave, are rounding.

    Args:
        corr: (taps, taps), anything that becomes a real tensor.
        taps: how many there must be; None takes any number.
        argument: what messages call it.

    Raises:
        CorrelationError: not square, of another size, not finite, not symmetric, without unit
            diagonal, with an entry outside [-1, 1] or a negative eigenvalue.
        OptionTypeError: not a matrix of real numbers.
    """
    given = type(corr).__name__
    try:
        if not isinstance(corr, Tensor):
            # torch takes neither negative strides nor another byte order, and lists as float32.
            corr = np.asarray(corr)
            corr = np.array(corr, dtype=corr.dtype.newbyteorder("="))
        matrix = torch.as_tensor(corr, device="cpu")
        if matrix.layout != torch.strided:
            matrix = matrix.to_dense()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionTypeError(
            f"{argument} must be a matrix of real numbers, got {given}"
        ) from error
    if matrix.is_complex():
        raise OptionTypeError(f"{argument} must be a matrix of real numbers, got {matrix.dtype}")

    def refuse(text: str) -> NoReturn:
        raise CorrelationError(f"{argument} {text}")

    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        refuse(f"must be a square matrix with a row for each tap, got shape {tuple(matrix.shape)}")
    if taps is not None and len(matrix) != taps:
        refuse(
            f"must be {taps} x {taps} for {taps} taps, got {len(matrix)} x {len(matrix)}; "
            "sylvinit.correlated.resample_correlation makes one for another kernel"
        )
    matrix = matrix.detach().as_subclass(Tensor).to(torch.float64)
    if not bool(matrix.isfinite().all()):
        refuse("holds NaN or Inf")
    gap = float((matrix - matrix.mT).abs().max())
    if gap > ROUNDING:
        refuse(f"must be symmetric, but entries that should agree differ by {gap:.3g}")
    matrix = (matrix + matrix.mT) / 2
    low, high = (float(value) for value in matrix.diagonal().aminmax())
    if max(1 - low, high - 1) > ROUNDING:
        refuse(
            f"must be a correlation matrix with ones on the diagonal, got {low:.3g} to {high:.3g}; "
            "divide a covariance by the standard deviations of its row and column"
        )
    largest = float(matrix.abs().max())
    if largest > 1 + ROUNDING:
        refuse(f"must be a correlation matrix with entries in [-1, 1], got {largest:.3g}")
    matrix = matrix.clamp(-1, 1).fill_diagonal_(1)
    least = float(torch.linalg.eigvalsh(matrix)[0])
    if least < -ROUNDING * len(matrix):
        refuse(
            f"is no correlation matrix: its smallest eigenvalue is {least:.3g}, and no random "
            "variables have negative variance in any direction"
        )
    return matrix


def spatial_correlation(covariance: Tensor, taps: int) -> Tensor:
    """Correlation of a patch's pixels, averaged over channels, float64 (taps, taps) on the CPU.

        R = C / sqrt(diag(C) diag(C)^T),   C = mean over channels c of Sigma[c, c],

    where Sigma, float64 (groups, channels * taps, channels * taps) with taps fastest, is the
    covariance of the patches. A tap that never varies (it reads padding alone) is uncorrelated with
    the others.
    """
    groups, features, _ = covariance.shape
    channels = features // taps
    blocks = covariance.reshape(groups, channels, taps, channels, taps)
    mean = blocks.diagonal(dim1=1, dim2=3).mean(dim=(0, 3)).cpu()
    scale = mean.diagonal().clamp(min=0).sqrt()
    # Far below the largest, a variance is what rounding has left of zero.
    varies = scale > 1e-7 * scale.max()
    inverse = torch.where(varies, 1 / scale.clamp(min=1e-300), 0.0)
    matrix = mean * inverse[:, None] * inverse[None, :]
    return ((matrix + matrix.mT) / 2).clamp(-1, 1).fill_diagonal_(1)


def mean_off_diagonal(corr: Tensor) -> float:
    """The mean correlation of two different taps; 0 for a single tap."""
    taps = corr.shape[0]
    return float(corr.sum() - corr.diagonal().sum()) / max(taps * (taps - 1), 1)
