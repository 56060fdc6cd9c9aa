"""What a route reports about a batch of equations, and the errors and warnings that follow."""

from __future__ import annotations

import math
import os
import sys
import warnings
from dataclasses import dataclass
from enum import IntEnum

import torch

from sylvinit.errors import AccuracyWarning, MatrixError, SingularEquationError, SolverError

# Relative residual (float64) above which a result is not handed out. The worst seen, on problems
# with condition numbers up to 1e15 and sizes up to 4608, is 3e-15.
RESIDUAL_BOUND = 1e-12
# For float32 and complex64: they are solved in double precision too, but weights of B given to
# factors are rounded in the caller's precision.
RESIDUAL_BOUND_SINGLE = 1e-5


class Status(IntEnum):
    """How a solve ended; the values are those of csrc/solver/problem.h."""

    OK = 0
    NOT_CONVERGED = 1
    SINGULAR = 2
    NEGATIVE = 3
    NO_MEMORY = 4
    OVERFLOW = 5


@dataclass(frozen=True)
class Outcome:
    """The worst over a batch.

    Attributes:
        status: of the first problem that failed.
        problem: flat index of that problem, else of the one with the smallest separation.
        residual: largest relative residual |AX + XB - Q| / ((|A| + |B|) |X| + |Q|).
        separation: smallest |a_i + b_j| over the pairs that were divided by, relative to the
            spectral radii of A and B (general matrices: to their Frobenius norms).
        a, b: the pair that attains it, or the negative eigenvalue.
        dropped: pairs set to zero because a_i + b_j is rounding.
    """

    status: Status
    problem: int
    residual: float
    separation: float
    a: complex
    b: complex
    dropped: int

    @classmethod
    def empty(cls) -> Outcome:
        """Of equations without unknowns."""
        return cls(Status.OK, 0, 0.0, math.inf, 0.0, 0.0, 0)


def judge(outcome: Outcome, batch: tuple[int, ...], eps: float, checked: bool) -> None:
    """Raise or warn as the outcome asks for.

    Args:
        outcome: of the solve.
        batch: batch shape, to name the problem.
        eps: of the caller's dtype.
        checked: False for derivatives, which may carry the caller's own NaN and repeat what was
            said of the solve itself.

    Raises:
        SingularEquationError: spectra of A and -B meet.
        MatrixError: an eigenvalue is clearly negative in an equation declared positive.
        SolverError: LAPACK did not converge, memory ran out, or the residual is too large.
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
    """The stacklevel of the first frame outside this package and torch, for a warning raised above.

    How many frames lie between differs: the operators go through torch's dispatcher.
    """
    inside = tuple(
        os.path.join(os.path.dirname(path), "")
        for path in (os.path.dirname(__file__), torch.__file__)
    )
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


def _where(problem: int, batch: tuple[int, ...]) -> str:
    if not batch:
        return ""
    index = []
    for size in reversed(batch):
        index.append(problem % size)
        problem //= size
    return f" (in batch entry {tuple(reversed(index))})"


def _number(value: complex) -> str:
    return f"{value.real:.6g}" if value.imag == 0 else f"{value:.6g}"
