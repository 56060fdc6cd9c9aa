"""What a route reports about a batch of equations, and the errors and warnings that follow."""

from __future__ import annotations

import math
import os
import sys
import warnings
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import AccuracyWarning, MatrixError, SingularEquationError, SolverError
from sylvinit.sylvester.rounding import RESIDUAL_BOUND, RESIDUAL_BOUND_SINGLE


class Status(IntEnum):
    """How a solve ended; the values are those of csrc/solver/problem.h."""

    OK = 0
    NOT_CONVERGED = 1
    SINGULAR = 2
    NEGATIVE = 3
    NO_MEMORY = 4
    OVERFLOW = 5


class Mode(NamedTuple):
    """How an equation is solved."""

    eps: float  # of the caller's dtype
    # "pos": pairs with a_i + b_j <= max(k, d) eps (|a| + |b|) become 0. Without, a modulus up to
    # that bound is an error.
    positive: bool = False
    adjoint: bool = False  # solve A^H X + X B^H = Q instead
    checked: bool = True  # False for derivatives: q's values and the spectra are not judged


class Outcome(NamedTuple):
    """The worst over a batch.

    The separation is the smallest |a_i + b_j| over the pairs that were divided by, relative to the
    spectral radii of A and B (general matrices: to their Frobenius norms).
    """

    status: Status = Status.OK  # of the first problem that failed
    problem: int = 0  # its flat index, else that of the smallest separation
    residual: float = 0.0  # the largest, see rounding.relative_residual
    separation: float = math.inf
    a: complex = 0.0  # with b the pair of that separation, or the negative eigenvalue
    b: complex = 0.0
    dropped: int = 0  # pairs set to zero because a_i + b_j is rounding

    def swapped(self) -> Outcome:
        """The same of B X^H + X^H A = Q^H."""
        return self._replace(a=self.b, b=self.a)


def closest_pair(
    values_a: Tensor, values_b: Tensor, distances: Tensor, size: Tensor, batch: torch.Size
) -> Outcome:
    """The pair whose distance |a_i + b_j|, (..., m, n), is smallest beside the size (...)."""
    relative = distances / torch.where(size > 0, size, 1.0)[..., None, None]
    m, n = distances.shape[-2:]
    relative = relative.expand(*batch, m, n).flatten()
    at = int(relative.argmin())
    problem, i, j = at // (m * n), at // n % m, at % n
    return Outcome(
        problem=problem,
        separation=float(relative[at]),
        a=complex(values_a.expand(*batch, m).reshape(-1, m)[problem, i]),
        b=complex(values_b.expand(*batch, n).reshape(-1, n)[problem, j]),
    )


def judge(outcome: Outcome, batch: tuple[int, ...], eps: float, checked: bool = True) -> None:
    """Raise or warn as the outcome asks for; ``batch`` is the shape that problems are named by.

    Derivatives are not ``checked``: they may carry the caller's own NaN, and would repeat the
    warnings of the solve itself.
    """
    if math.prod(batch) == 0:
        return
    where = _where(outcome.problem, batch)
    if outcome.status == Status.SINGULAR:
        raise SingularEquationError(
            f"a and -b share an eigenvalue up to rounding{where}: a_i = {_number(outcome.a)}, "
            f"b_j = {_number(outcome.b)}, a_i + b_j = {_number(outcome.a + outcome.b)}. A X + X B "
            "= Q has no solution or infinitely many. Shift one matrix (a + c I), or, if both are "
            "positive semi-definite, take the minimum-norm solution with assume_a='pos'"
        )
    if outcome.status == Status.NEGATIVE:
        name, value = ("a", outcome.a) if outcome.a.real < 0 else ("b", outcome.b)
        raise MatrixError(
            f"{name} must be positive semi-definite with assume_a='pos', but has the eigenvalue "
            f"{_number(value)}{where}; use assume_a='sym'"
        )
    if outcome.status == Status.NO_MEMORY:
        raise SolverError(f"not enough memory for the workspace{where}; solve fewer at once")
    if outcome.status == Status.OVERFLOW and checked:
        raise SolverError(f"the solution overflows{where}; scale a, b and q")
    if outcome.status == Status.NOT_CONVERGED:
        raise SolverError(
            f"an eigenvalue iteration did not converge{where}; scale the matrices to similar size"
        )
    if not checked:
        return
    bound = RESIDUAL_BOUND if eps < 1e-10 else RESIDUAL_BOUND_SINGLE
    if not outcome.residual <= bound:
        raise SolverError(
            f"the relative residual is {outcome.residual:.1e}, above {bound:.0e}: numbers "
            "overflowed or underflowed; scale a, b and q"
        )
    if outcome.separation < math.sqrt(eps):
        warnings.warn(
            f"the spectra of a and -b nearly meet{where}: min |a_i + b_j| / (|a| + |b|) = "
            f"{outcome.separation:.1e}. Rounding in a, b and q may cost more than half of the "
            "digits of the solution",
            AccuracyWarning,
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """The stacklevel of the caller outside this package and torch, whose dispatcher adds frames."""
    paths = os.path.dirname(__file__), torch.__file__
    inside = tuple(os.path.join(os.path.dirname(path), "") for path in paths)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


def _where(problem: int, batch: tuple[int, ...]) -> str:
    if not batch:
        return ""
    entry = tuple(int(i) for i in np.unravel_index(problem, batch))
    return f" (in batch entry {entry})"


def _number(value: complex) -> str:
    return f"{value.real:.6g}" if value.imag == 0 else f"{value:.6g}"
