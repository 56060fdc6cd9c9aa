"""Matrices of another strength, made correlation matrices again, and their factors."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sylvinit.checks import check_number
from sylvinit.errors import CorrelationError, SylvinitWarning
from sylvinit.priors.matrix import ROUNDING, check_correlation

# Filters whose taps nearly cancel (sum of R / taps below this) cannot be scaled by eq. 17.
_LEAST_SUM = 1e-6
# Weights of more than this times Kaiming's variance are worth a warning. Correlations of trained
# filters are mostly positive and give less than one.
_LARGE_RATIO = 4.0


def scale_correlation(corr: Any, strength: float = 1.0, *, stacklevel: int = 2) -> Tensor:
    """Multiply the entries off the diagonal by ``strength`` ("Correlated Initialization", table 5).

    Where the result is not positive semidefinite, its negative eigenvalues are set to zero and its
    rows and columns are divided by the square roots of the diagonal, so that it is one again. This
    raises a :class:`sylvinit.SylvinitWarning`, and so does a result whose taps nearly cancel, since
    eq. 17 divides by the sum of its entries: more than four times Kaiming's variance.

    Args:
        corr: R, (taps, taps).
        strength: not negative; 0 gives the identity, 1 leaves R as it is.
        stacklevel: of the warning.

    Returns:
        float64 (taps, taps), a correlation matrix.

    Raises:
        CorrelationError: R is no correlation matrix (see :func:`check_correlation`), or its entries
            would add up to zero or less: eq. 17 divides by their sum.
        OptionError: the strength is negative or not finite.
        OptionTypeError: it is no number.
    """
    scaled, caveats = scaled_correlation(corr, strength)
    for text in caveats:
        warnings.warn(text, SylvinitWarning, stacklevel=stacklevel)
    return scaled


def scaled_correlation(corr: Any, strength: float) -> tuple[Tensor, list[str]]:
    """What :func:`scale_correlation` returns, and its warnings."""
    strength = check_number("strength", strength)
    matrix = check_correlation(corr)
    _check_sum((matrix * strength).fill_diagonal_(1), strength)
    scaled, caveats = repaired_correlation(matrix, strength)
    _check_sum(scaled, strength)
    taps, total = scaled.shape[0], float(scaled.sum())
    if taps > _LARGE_RATIO * total:
        alike = float(scaled.square().sum()) / total
        caveats.append(
            f"the taps of corr nearly cancel, so that eq. 17 gives weights of {taps / total:.3g} "
            f"times Kaiming's variance, and inputs that correlate as the filters outputs of "
            f"{alike:.3g} times theirs; a smaller strength has less of it"
        )
    return scaled, caveats


def repaired_correlation(matrix: Tensor, strength: float) -> tuple[Tensor, list[str]]:
    """The same of a checked matrix, whatever its sum, for filters that eq. 17 does not scale."""
    scaled = (matrix * strength).fill_diagonal_(1)
    values, vectors = torch.linalg.eigh(scaled)
    too_large = float(scaled.abs().max()) > 1 + ROUNDING
    if not too_large and float(values[0]) >= -ROUNDING * scaled.shape[0]:
        return scaled, []
    clipped = (vectors * values.clamp(min=0)) @ vectors.mT
    scale = clipped.diagonal().rsqrt()
    clipped = clipped * scale[:, None] * scale[None, :]
    return ((clipped + clipped.mT) / 2).clamp(-1, 1).fill_diagonal_(1), [
        f"corr is not positive definite at strength {strength:g} (smallest eigenvalue "
        f"{float(values[0]):.3g}); negative eigenvalues were set to zero and the unit diagonal "
        "restored"
    ]


def _check_sum(matrix: Tensor, strength: float) -> None:
    taps, total = matrix.shape[0], float(matrix.sum())
    if total > _LEAST_SUM * taps:
        return
    # taps + a * (sum off the diagonal) is zero at this strength a.
    largest = strength * taps / (taps - total)
    raise CorrelationError(
        f"corr: at strength {strength:g} the entries add up to {total:.3g}; the variance of the "
        "weights is divided by this sum (eq. 17), which must be positive; choose a strength below "
        f"{largest:.3g}, or weaken the matrix with sylvinit.correlated.scale_correlation"
    )


def factor(matrix: Tensor) -> Tensor:
    """C with C C^T = R: the Cholesky factor, or V sqrt(values) where R is singular up to rounding.

    "Correlated Initialization for Correlated Data", algorithm 1, step 1.
    """
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0:
        return lower
    values, vectors = torch.linalg.eigh(matrix)
    root = vectors * values.clamp(min=0).sqrt()
    # The rows of C carry the diagonal of R, from which clipping may have taken some rounding.
    return root / torch.linalg.vector_norm(root, dim=1, keepdim=True)
