"""What counts as rounding, in eigenvalues and in solutions; and one step further than rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# "pos" takes eigenvalues down to -NEGATIVE * n * eps * (largest one) for zero. As in
# csrc/solver/hermitian.h, like the next one.
NEGATIVE = 10.0
# Relative residual up to which refinement has nothing left to gain.
REFINED = 1e-15
# Relative residual above which a solution is not handed out. The worst seen, on problems with
# condition numbers up to 1e15 and sizes up to 4608, is 3e-15.
RESIDUAL_BOUND = 1e-12
# For float32 and complex64: they are solved in double precision too, but weights of B given to
# factors are rounded in the caller's precision.
RESIDUAL_BOUND_SINGLE = 1e-5


def zero_threshold(q: Tensor, eps: float) -> float:
    """What a_i + b_j is zero up to, relative to the size of a and b, for q (..., k, d)."""
    return max(q.shape[-2:]) * eps


def frobenius_norm(x: Tensor) -> Tensor:
    """Of matrices (..., m, n), without squares that over- or underflow."""
    if x.numel() == 0:
        return torch.linalg.matrix_norm(x)
    scale = x.detach().abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
    return torch.linalg.matrix_norm(x / scale) * scale[..., 0, 0]


def relative_residual(defect: Tensor, norms: Tensor, x: Tensor, q: Tensor) -> Tensor:
    """|D| / ((|A| + |B|) |X| + |Q|) in Frobenius norms, (...); 0 where the denominator is.

    The defect D is Q - A X - X B or the part of it that counts; ``norms`` are |A| + |B|, (...).
    """
    size = norms * frobenius_norm(x) + frobenius_norm(q)
    return frobenius_norm(defect) / torch.where(size > 0, size, 1.0)


def refine(
    q: Tensor,
    solve: Callable[[Tensor], Tensor],
    defect: Callable[[Tensor], Tensor],
    norms: Tensor,
    *,
    steps: int = 1,
    above: float = REFINED,
    kept: Callable[[Tensor], Tensor] = lambda defect: defect,
) -> tuple[Tensor, float]:
    """X and its largest relative residual, after up to ``steps`` of iterative refinement.

    A step is taken while the residual is above ``above``, and kept if the residual falls. ``solve``
    maps a right side to its solution up to rounding, ``defect`` X to Q - A X - X B, and ``kept`` a
    defect to what the zero rule leaves of it, in any orthonormal coordinates; ``norms`` are
    |A| + |B|, (...).
    """
    x = solve(q)
    left = defect(x)
    residual = float(relative_residual(kept(left), norms, x, q).max())
    for _ in range(steps):
        if residual <= above:
            break
        refined = x + solve(left)
        left = defect(refined)
        after = float(relative_residual(kept(left), norms, refined, q).max())
        if not after < residual:
            break
        x, residual = refined, after
    return x, residual
