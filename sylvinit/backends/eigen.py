"""Eigendecompositions by torch and SciPy, and the division by sums of eigenvalues."""

from __future__ import annotations

import math
from typing import NamedTuple

import scipy.linalg
import torch
from torch import Tensor

from sylvinit.errors import SolverError

# Relative error up to which an eigendecomposition is believed: it multiplies a vector as the matrix
# does. LAPACK's was below 1e-16 for low-rank Gram matrices of size 100 to 4608.
_EIGH_BOUND = 1e-10

Pair = tuple[Tensor, Tensor]


class Thresholds(NamedTuple):
    """Eigenvalues of A and B up to which they may be rounding, float64 (batch,) each."""

    a: Tensor
    b: Tensor


def eigh(a: Tensor, notes: list[str] | None = None) -> Pair:
    """Eigenvalues (..., n), ascending, and eigenvectors by torch.linalg, else by SciPy.

    Matrices, float64 or complex128, are scaled to unit size first, since the libraries' routines
    are known to fail for graded low-rank Gram matrices. Results are checked on a vector. SciPy's QR
    iteration is slower than divide and conquer, and fails less; ``notes`` takes a sentence if it
    was needed. SolverError if both fail.
    """
    scale = a.abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
    scaled = a / scale
    try:
        values, vectors = torch.linalg.eigh(scaled)
        reason = _defect(scaled, values, vectors)
    except torch.linalg.LinAlgError as error:
        values, vectors, reason = scaled[..., 0].real, scaled, str(error)
    if reason:
        values, vectors = eigh_scipy(scaled)
        if notes is not None:
            notes.append(f"torch.linalg.eigh failed ({reason}); SciPy's QR iteration was used")
    return values * scale[..., 0], vectors


def eigh_pair(a: Tensor, b: Tensor, notes: list[str] | None = None) -> tuple[Pair, Pair]:
    """:func:`eigh` of a, then of b."""
    return eigh(a, notes), eigh(b, notes)


def eigh_scipy(a: Tensor) -> Pair:
    """Like :func:`eigh` for matrices of unit size, by QR iteration on the host alone."""
    flat = a.reshape(-1, *a.shape[-2:]).cpu().numpy()
    try:
        pairs = [scipy.linalg.eigh(matrix, driver="ev") for matrix in flat]
        values, vectors = (
            torch.stack([torch.from_numpy(pair[part]) for pair in pairs]) for part in (0, 1)
        )
        values, vectors = values.view(a.shape[:-1]).to(a.device), vectors.view(a.shape).to(a.device)
        if reason := _defect(a, values, vectors):
            raise scipy.linalg.LinAlgError(reason)
    except (ValueError, scipy.linalg.LinAlgError) as error:
        raise SolverError(
            f"the eigendecomposition of size {a.shape[-1]} failed on every route: {error}; check "
            "the data for values of very different size"
        ) from error
    return values, vectors


def _defect(a: Tensor, values: Tensor, vectors: Tensor) -> str:
    """What is wrong with eigendecompositions of matrices of unit size, or ""."""
    if a.shape[-1] == 0:
        return ""
    return describe_defect(float(defects(a, values, vectors).amax()), a.shape[-1])


def defects(a: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Errors (...) of eigendecompositions of matrices (..., n, n) of unit size.

    A vector r shows them in O(n^2): V diag(values) V^T r against A r, and V V^T r against r.
    """
    n = a.shape[-1]
    r = torch.arange(n, dtype=torch.float64, device=a.device).mul(2.3).cos().to(a.dtype)[:, None]
    seen = vectors.mT.conj_physical() @ r
    product = vectors @ (values[..., None] * seen) - a @ r
    identity = vectors @ seen - r
    return torch.maximum(product.abs(), identity.abs()).amax(dim=(-2, -1))


def describe_defect(error: float, n: int) -> str:
    """What an error of :func:`defects` says of a matrix of size n, "" if it is rounding."""
    if not math.isfinite(error):
        return "the result is not finite"
    return "" if error <= _EIGH_BOUND * n else f"the result is off by {error:.1e}"


def divide_kept(c: Tensor, sums: Tensor, keep: Tensor) -> Tensor:
    """The quotient c / sums where ``keep``, and 0 elsewhere: the zero rule."""
    return torch.where(keep, c / torch.where(keep, sums, 1.0), 0.0)


def divide(c: Tensor, values_a: Tensor, values_b: Tensor, thresholds: Thresholds) -> Pair:
    """The quotient c_ij / (a_i + b_j) of c (batch, k, d), and which pairs (i, j) are kept.

    Eigenvalues below 0 are taken as 0. Where a_i and b_j are both at most their thresholds, the
    pair is not kept and its quotient is 0; NaN is above any threshold.
    """
    sums = values_a.clamp(min=0)[..., :, None] + values_b.clamp(min=0)[..., None, :]
    small_a = values_a <= thresholds.a[:, None]
    small_b = values_b <= thresholds.b[:, None]
    keep = ~(small_a[..., :, None] & small_b[..., None, :])
    return divide_kept(c, sums, keep), keep
