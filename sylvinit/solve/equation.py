"""From a layer's input statistics and a latent code to its weight and bias.

W (k x d) minimizes |X - W^T S|^2 + lam |W X - S|^2, hence solves

    A W + W B = Q,   A = E[s s^T],   B = lam E[x x^T],   Q = (1 + lam) E[s x^T]

("Data-driven Weight Initialization with Sylvester Solvers", eqs. 1 and 2, divided by n). A hidden
layer's bias is E[s] - W mu (for scaled rows see scaling.py); the last layer's is a column of W for
an input with a constant 1 appended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sylvinit.backends.eigen import Thresholds
from sylvinit.codes.code import Code, Latent, is_mirrored
from sylvinit.codes.components import append_components
from sylvinit.errors import SolverError
from sylvinit.moments.statistics import LayerStatistics
from sylvinit.solve.filling import choose_entries, fill_with_mixtures
from sylvinit.solve.principal import is_principal, solve_principal
from sylvinit.sylvester.rounding import RESIDUAL_BOUND
from sylvinit.sylvester.semidefinite import RankOne, Solution, solve_positive, solve_rank_one


@dataclass
class LayerSolution:
    """What was computed for one layer."""

    weight: Tensor  # float64 (groups, k, d_in), in the coordinates of the layer's input
    bias: Tensor  # float64 (groups, k)
    rank: int  # of the input covariance, the largest over groups
    residual: float  # relative, of the equation; see solve_positive
    dropped: int  # pairs (i, j) that the zero rule set to 0
    filled_components: int  # rows for principal components of what the code leaves
    mixed: Tensor  # bool (groups, k), rows that are orthogonal mixtures of solved rows
    empty: Tensor  # bool (groups,), input that never varies: nothing was computed
    deviation: Tensor | None = None  # standard deviations of the outputs, if they are at hand
    shares: Tensor | None = None  # of the input's variance, descending, (groups, components)
    notes: list[str] = field(default_factory=list)  # for a reader of the report


def solve_layer(
    stats: LayerStatistics,
    code: Code,
    k: int,
    lam: float,
    *,
    seed: int,
    skip: int = 0,
    constant: bool = False,
    fill: bool = True,
) -> LayerSolution:
    """Solve one layer of ``k`` outputs per group, all its groups in one batch.

    Args:
        seed: for codes that draw, and for the orthogonal mixtures.
        skip: leading code entries that sibling layers have taken.
        constant: append 1 to the input, so that the bias is part of the solution (the last layer).
        fill: give outputs without a code entry a component or a mixture; without it they are zero
            (the last layer: an absent class has the code 0, hence the weights 0).

    Raises:
        SolverError: no route gave a solution within :data:`RESIDUAL_BOUND`.
    """
    outputs, copies = k, 2 if is_mirrored(code) else 1
    k, skip = -(-k // copies), -(-skip // copies)
    deviation, shares, components, taken_up = None, None, 0, False
    if fill:
        rows = _principal_rows(stats, code, k, lam, skip, copies) if not constant else None
        if rows is None:
            rows = _coded_rows(stats, code, k, lam, skip, seed, constant, copies)
        weight, bias, mixed = fill_with_mixtures(
            rows.weight, rows.bias, rows.solved, rows.fresh, k, seed
        )
        deviation = _deviations(stats, weight, rows, mixed)
        empty, components, shares = rows.empty, rows.components, rows.shares
        residual, dropped, rank = rows.residual, rows.dropped, rows.rank
        taken_up = bool(skip) and not bool(rows.fresh.any())
    else:
        latent = code.fit(stats, k + skip, seed)
        solution, bias = _solve(stats, latent, lam, constant, copies)
        missing = k - latent.rows
        weight = pad(stats.in_input_coordinates(solution.w), (0, 0, 0, missing))
        bias = pad(bias, (0, missing))
        mixed = torch.zeros(weight.shape[:2], dtype=torch.bool, device=weight.device)
        empty = torch.zeros(stats.groups, dtype=torch.bool, device=weight.device)
        residual, dropped, rank = solution.residual, solution.dropped, stats.rank()
    if copies > 1:
        weight, bias = _mirrored(weight)[:, :outputs], _mirrored(bias)[:, :outputs]
        mixed = mixed.repeat_interleave(copies, dim=1)[:, :outputs]
        if deviation is not None:
            deviation = deviation.repeat_interleave(copies, dim=1)[:, :outputs]
        components *= copies
    mixtures = int(mixed.sum(dim=1).max())
    notes = list(stats.notes)
    if components:
        notes.append(f"{components} outputs filled with principal components of the rest")
    if mixtures:
        notes.append(f"{mixtures} outputs filled with orthogonal mixtures")
    if taken_up:
        notes.append("shares its input with layers that have taken all components")
    elif skip:
        notes.append(f"shares its input: takes components from {skip + 1} on")
    if dropped:
        notes.append(f"{dropped} near-singular pairs set to their minimum-norm solution")
    of_equation = rank, residual, dropped, components
    return LayerSolution(weight, bias, *of_equation, mixed, empty, deviation, shares, notes)


class _Rows(NamedTuple):
    """The solved rows of a hidden layer, packed to the front of every group and zero behind."""

    weight: Tensor  # float64 (groups, rows, d_in)
    bias: Tensor  # float64 (groups, rows)
    solved: Tensor  # bool (groups, rows)
    fresh: Tensor  # bool (groups, rows), those that no sibling has taken
    empty: Tensor  # bool (groups,)
    rank: int
    residual: float
    dropped: int = 0
    components: int = 0  # rows for principal components of what the code leaves
    deviation: Tensor | None = None  # of the outputs, (groups, rows)
    shares: Tensor | None = None  # of the variance, descending, (groups, components)


def _principal_rows(
    stats: LayerStatistics, code: Code, k: int, lam: float, skip: int, copies: int
) -> _Rows | None:
    """From the leading eigenpairs alone, where the code is principal components."""
    found = solve_principal(stats, k, lam, skip=skip, copies=copies) if is_principal(code) else None
    if found is None:
        return None
    return _Rows(
        weight=found.weight,
        bias=-(found.weight @ stats.input_mean[:, :, None])[:, :, 0],
        solved=found.solved,
        fresh=found.solved & (found.component >= skip),
        empty=~found.solved.any(dim=1),
        rank=found.rank,
        residual=found.residual,
        deviation=found.deviation,
        shares=found.shares,
    )


def _coded_rows(
    stats: LayerStatistics,
    code: Code,
    k: int,
    lam: float,
    skip: int,
    seed: int,
    constant: bool,
    copies: int,
) -> _Rows:
    """From the moments of any code."""
    latent = code.fit(stats, k + skip, seed)
    appended = append_components(stats, latent, k + skip)
    choice = choose_entries(appended.available(), k, skip)
    chosen = appended.gather(choice.index, choice.solved)
    solution, bias = _solve(stats, chosen, lam, constant, copies)
    return _Rows(
        weight=stats.in_input_coordinates(solution.w),
        bias=bias,
        solved=choice.solved,
        fresh=choice.fresh,
        # A code may have entries where the input never varies: its own offset, or the mean.
        empty=~choice.solved.any(dim=1) | ~stats.covariance.flatten(1).any(dim=1),
        rank=stats.rank(),
        residual=solution.residual,
        dropped=solution.dropped,
        components=int((choice.fresh & (choice.index >= latent.rows)).sum(dim=1).max()),
    )


def _deviations(
    stats: LayerStatistics, weight: Tensor, rows: _Rows, mixed: Tensor
) -> Tensor | None:
    """Of the outputs of filled rows (groups, k, d_in): those of mixtures are computed here."""
    if rows.deviation is None or not bool(mixed.any()):
        return rows.deviation
    first = int(mixed.any(dim=0).nonzero()[0])
    # Fresh rows come first, and stand in the same order behind those that siblings have taken.
    taken = (rows.solved & ~rows.fresh).sum(dim=1, keepdim=True)
    place = (taken + torch.arange(weight.shape[1])).clamp(max=rows.deviation.shape[1] - 1)
    out = rows.deviation.gather(1, place)
    tail = stats.variances(weight[:, first:]).clamp(min=0).sqrt()
    out[:, first:] = torch.where(mixed[:, first:], tail, out[:, first:])
    return out


def _mirrored(x: Tensor) -> Tensor:
    """(groups, k, ...) to (groups, 2 k, ...), every entry followed by its negative."""
    return torch.stack((x, -x), dim=2).flatten(1, 2)


def _solve(
    stats: LayerStatistics, latent: Latent, lam: float, constant: bool, copies: int
) -> tuple[Solution, Tensor]:
    """W and the bias in the coordinates of ``stats``; rows of entries that are zero are zero.

    ``copies`` entries stand for each: the decoder adds up as many equal terms.
    """
    values, vectors = stats.spectrum()
    mean, covariance, cross = stats.mean, stats.covariance, latent.cross
    if constant:  # 1, which never varies
        mean, values = pad(mean, (0, 1), value=1.0), pad(values, (0, 1))
        covariance, vectors = pad(covariance, (0, 1, 0, 1)), pad(vectors, (0, 1, 0, 1))
        vectors[:, -1, -1] = 1
        cross = torch.cat((cross, latent.mean[:, :, None]), dim=2)
    moment = covariance + mean[:, :, None] * mean[:, None, :]
    # A code's product S S^T need not be symmetric to the bit, and eigensolvers read one triangle.
    second = latent.second_moment
    if not latent.diagonal:
        second = (second + second.mT) / 2
    a, b, q = copies * _without_empty_rows(second), lam * moment, (1 + lam) * cross
    thresholds = _thresholds(stats, latent, lam)
    rank_one = RankOne(lam * values, vectors, lam**0.5 * mean)
    solution = solve_rank_one(a, b, q, thresholds, rank_one, stats.backend, stats.notes)
    if solution is None or not solution.residual <= RESIDUAL_BOUND:
        solution = solve_positive(a, b, q, thresholds, stats.backend, stats.notes)
    if not solution.residual <= RESIDUAL_BOUND:
        raise SolverError(
            f"the equation's relative residual is {solution.residual:.1e}, above "
            f"{RESIDUAL_BOUND:.0e}; the layer's input moments are too ill-scaled to solve for: "
            "normalize the data"
        )
    if constant:
        return solution._replace(w=solution.w[:, :, :-1]), solution.w[:, :, -1]
    return solution, latent.mean - (solution.w @ mean[:, :, None])[:, :, 0]


def _without_empty_rows(a: Tensor) -> Tensor:
    """A with the diagonal of entries that are identically zero made as large as the largest.

    Their right-hand side is zero, so their rows of W are zero whatever stands there; this keeps
    them from looking like a singular equation. A is (groups, k, k), or its diagonal (groups, k).
    """
    diagonal = a if a.ndim == 2 else a.diagonal(dim1=1, dim2=2)
    largest = diagonal.amax(dim=1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    filling = torch.where(diagonal > 0, 0.0, largest)
    return a + (filling if a.ndim == 2 else torch.diag_embed(filling))


def _thresholds(stats: LayerStatistics, latent: Latent, lam: float) -> Thresholds:
    """Up to where eigenvalues of A and B may be rounding.

    The moments are taken about the mean, so their error is relative to the covariances of s and x;
    the means enter in float64.
    """
    spread = latent.largest_row_sum(centered=True)
    level = latent.largest_row_sum(centered=False)
    double = torch.finfo(torch.float64).eps
    mean = (stats.mean**2).sum(dim=1) + 1
    return Thresholds(
        a=latent.rows * (stats.eps * spread + double * level),
        b=lam * (stats.threshold()[:, 0] + stats.d * double * mean),
    )
