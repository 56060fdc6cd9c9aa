"""Correlation against the distance of two taps, and matrices for other kernels made from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sylvinit.errors import CorrelationError
from sylvinit.priors.matrix import Kernel, check_correlation, check_kernel, kernel_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DistanceProfile:
    """Mean correlation of two taps of a filter at every distance that the kernel has.

    "Correlated Initialization for Correlated Data", figure 1.

    Attributes:
        distance: float64 (m,), ascending, Euclidean, in taps; 0 is not among them.
        correlation: float64 (m,), the mean over the pairs at that distance.
        pairs: int64 (m,), how many pairs of taps there are.
        standard_error: float64 (m,), or None where the matrix was not estimated from filters.
    """

    distance: Tensor
    correlation: Tensor
    pairs: Tensor
    standard_error: Tensor | None = None


def distance_classes(kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Distances within a kernel, from 0 up, and their index for each pair of taps, (taps, taps)."""
    axes = torch.meshgrid(*(torch.arange(axis, device="cpu") for axis in kernel), indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes], dim=1)
    squared = ((place[:, None] - place[None]) ** 2).sum(dim=2)
    distinct, index = torch.unique(squared, return_inverse=True)
    return distinct.double().sqrt(), index


def correlation_by_distance(corr: Any, kernel_size: Kernel | None = None) -> DistanceProfile:
    """Average a correlation matrix over the pairs of taps at every distance (figure 1).

    Args:
        corr: R, (taps, taps).
        kernel_size: of the filters; by default what R says, else the square kernel.

    Raises:
        CorrelationError: R is no correlation matrix, or not one of that kernel.
    """
    matrix = check_correlation(corr)
    kernel = kernel_of(corr, kernel_size)
    distance, index = distance_classes(kernel)
    sums = matrix.new_zeros(len(distance))
    sums.index_add_(0, index.flatten(), matrix.flatten())
    pairs = torch.bincount(index.flatten(), minlength=len(distance))
    known = getattr(corr, "kernel_size", None) == kernel
    error = getattr(corr, "distance_error", None) if known else None
    # Both triangles were counted; the mean is the same.
    return DistanceProfile(distance[1:], (sums / pairs)[1:], pairs[1:] // 2, error)


@dataclass(frozen=True)
class DistanceModel:
    """r(t) = floor + scale * exp(-t / length) for taps at distance t > 0, and r(0) = 1.

    With all three not negative and floor + scale <= 1 this is positive semidefinite on every grid
    of every dimension: a sum of a constant, an exponential and a white part, each of which is.

    Attributes:
        floor: correlation that does not fall with distance.
        scale: of the part that does.
        length: over which that part falls to 1/e, in taps; inf for none that falls.
        rms: root mean square of the misfit to the mean correlation at each distance, which counts
            as often as it has pairs.
    """

    floor: float
    scale: float
    length: float
    rms: float = 0.0

    def __call__(self, distance: Tensor) -> Tensor:
        """Correlation at distances in taps; any shape."""
        decayed = self.floor + self.scale * torch.exp(-distance.double() / self.length)
        return torch.where(distance == 0, 1.0, decayed)

    def matrix(self, kernel_size: Kernel) -> Tensor:
        """R for a kernel of that size, float64 (taps, taps)."""
        distance, index = distance_classes(check_kernel(kernel_size))
        return self(distance)[index]


def fit_distance_model(corr: Any, kernel_size: Kernel | None = None) -> DistanceModel:
    """The :class:`DistanceModel` nearest to a matrix in least squares over its pairs of taps.

    Args:
        corr: R, (taps, taps), of at least two taps.
        kernel_size: of its filters; by default what R says, else the square kernel.

    Raises:
        CorrelationError: R is no correlation matrix, not one of that kernel, or has a single tap.
    """
    profile = correlation_by_distance(corr, kernel_size)
    if len(profile.distance) == 0:
        raise CorrelationError(
            "corr: a single tap says nothing of other distances; expected at least two taps"
        )
    distance, target = profile.distance.numpy(), profile.correlation.numpy()
    weight = np.sqrt(profile.pairs.numpy() / float(profile.pairs.sum()))
    # Smooth in the one parameter that is not linear: a fine grid cannot miss the minimum by much.
    lengths = np.geomspace(0.1, 30 * float(distance[-1]), 400)
    models = (_nearest_of(float(length), distance, target, weight) for length in lengths)
    return min(models, key=lambda model: model.rms)


def _nearest_of(length: float, distance: Array, target: Array, weight: Array) -> DistanceModel:
    from scipy.optimize import nnls  # takes longer to import than the rest of the package

    design = np.stack([np.ones_like(distance), np.exp(-distance / length)], axis=1)
    coefficients, misfit = nnls(design * weight[:, None], target * weight)
    total = coefficients.sum()
    if total > 1:
        # On the boundary floor + scale = 1: one unknown, between 0 and 1.
        slope = (design[:, 1] - 1) * weight
        scale = float(np.clip(slope @ ((target - 1) * weight) / max(slope @ slope, 1e-300), 0, 1))
        coefficients = np.array([1 - scale, scale])
        misfit = float(np.linalg.norm(design @ coefficients * weight - target * weight))
    return DistanceModel(float(coefficients[0]), float(coefficients[1]), length, float(misfit))


def resample_correlation(
    corr: Any, kernel_size: Kernel, *, source_kernel: Kernel | None = None
) -> Tensor:
    """A matrix for another kernel, from the distance model of this one.

    Distances are in taps: a 5 x 5 kernel extends a 3 x 3 one outwards. What depends on direction
    and on the place in the kernel is lost, and so are negative correlations.

    Args:
        corr: R, (taps, taps).
        kernel_size: of the matrix to make; of any number of axes.
        source_kernel: of R; by default what R says, else the square kernel.

    Returns:
        float64 (taps, taps). R itself where the kernels agree.

    Raises:
        CorrelationError: as :func:`fit_distance_model`.
    """
    matrix = check_correlation(corr)
    wanted = check_kernel(kernel_size)
    given = kernel_of(corr, source_kernel)
    if wanted == given:
        return matrix
    if math.prod(wanted) == 1:
        return matrix.new_ones(1, 1)
    return fit_distance_model(matrix, given).matrix(wanted)
