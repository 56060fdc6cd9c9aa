"""Any square matrices on a GPU: shifted systems with the larger one, by LU factors there.

With the complex Schur form A = U R U^H of the smaller matrix, on the host, the rows of Y = U^H X
follow from the last to the first,

    (r_ii I + B^T) y_i = (U^H Q)_i - sum_{j > i} r_ij y_j,    X = U Y,

as with the Hessenberg form of Golub, Nash and Van Loan (1979), but with one LU factorization for
every r_ii, all of them in one batch, and refinement. Nothing is judged here: what is not clearly
far from singular is left to the Schur forms on the host, so that there is one rule for errors and
warnings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sylvinit.sylvester import schur
from sylvinit.sylvester.rounding import frobenius_norm, refine

# From this size on the Schur form of the larger matrix on the host, 25 d^3 flops, is expected to
# cost more than the factorizations. An estimate: no GPU has run this yet.
_LEAST = 128
# Of the GPU's memory, for the factors.
_PART_OF_MEMORY = 8
# |(r_ii I + B)^-1| is estimated from so many random right sides, and 1 over it has to be so many
# times sqrt(eps) (|A| + |B|), from where on there are warnings.
_PROBES, _CLEAR = 4, 16.0
# Relative residual up to which a solution is taken; measured on graded matrices: 4e-16.
_RESIDUAL = 1e-14


def pays(q: Tensor) -> bool:
    """Whether an equation with this right side (..., k, d) is to be solved in this way."""
    if not q.is_cuda:
        return False
    k, d = sorted(q.shape[-2:])
    needed = 16 * q.numel() // max(q.shape[-2], q.shape[-1]) * d * d
    memory = torch.cuda.get_device_properties(q.device).total_memory
    return k >= 1 and d >= _LEAST and needed <= memory // _PART_OF_MEMORY


def solve(a: Tensor, b: Tensor, q: Tensor, eps: float) -> Tensor | None:
    """X (..., k, d) with A X + X B = Q, or None where it is left to another route.

    Args:
        a, b, q: finite, (..., k, k), (..., d, d), (..., k, d), one batch, k <= d, float64 or
            complex128, on one device.
        eps: of the caller's dtype.
    """
    k, d = q.shape[-2:]
    flat_a, flat_b, flat_q = (x.reshape(-1, *x.shape[-2:]) for x in (a, b, q))
    on_host = flat_a.to("cpu", torch.complex128)
    basis, form = (x.to(q.device) for x in schur.decompose(on_host))
    identity = torch.eye(d, dtype=torch.complex128, device=q.device)
    shifts = form.diagonal(dim1=-2, dim2=-1).mT[..., None, None]  # (k, n, 1, 1)
    factors, pivots, _ = torch.linalg.lu_factor_ex(flat_b.mT + shifts * identity)

    norms = frobenius_norm(flat_a) + frobenius_norm(flat_b)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(d, _PROBES, dtype=torch.complex128, generator=generator)
    answers = torch.linalg.lu_solve(
        factors, pivots, probes.to(q.device).expand(k, len(norms), -1, -1)
    )
    largest = math.sqrt(d) * (answers.norm(dim=-2) / probes.norm(dim=0).to(q.device)).amax((0, 2))
    if not bool((largest * norms * _CLEAR * math.sqrt(eps) <= 1.0).all()):  # NaN: not clear either
        return None

    def solution(right: Tensor) -> Tensor:
        y = basis.mH @ right.to(torch.complex128)
        for i in reversed(range(k)):
            rest = y[:, i] - (form[:, i : i + 1, i + 1 :] @ y[:, i + 1 :])[:, 0]
            y[:, i] = torch.linalg.lu_solve(factors[i], pivots[i], rest[..., None])[..., 0]
        x = basis @ y
        return x if q.dtype.is_complex else x.real

    def defect(x: Tensor) -> Tensor:
        return flat_q - flat_a @ x - x @ flat_b

    x, residual = refine(flat_q, solution, defect, norms, steps=2)
    return x.reshape(q.shape) if residual <= _RESIDUAL else None
