"""From a layer's input statistics and a latent code to its weight and bias.

W (k x d) minimises |X - W^T S|^2 + lam |W X - S|^2, hence solves

    A W + W B = Q,   A = E[s s^T],   B = lam E[x x^T],   Q = (1 + lam) E[s x^T]

("Data-driven Weight Initialization with Sylvester Solvers", eqs. 1 and 2, divided by n). A hidden
layer's bias is E[s] - W mu; the last layer's is a column of W for an input with a constant 1
appended.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sylvinit.backends.spectral import Solution, solve_positive, solve_rank_one
from sylvinit.codes.base import Code, Latent
from sylvinit.codes.components import top_eigenvectors
from sylvinit.errors import SolverError
from sylvinit.statistics import LayerStatistics

# Bounds on the relative residual of a float64 solve; the worst seen in the tests is 2e-15.
RESIDUAL_BOUND = 1e-12


@dataclass
class LayerSolution:
    """What was computed for one layer.

    Attributes:
        weight: float64 (groups, k, d_in), in the coordinates of the layer's input.
        bias: float64 (groups, k).
        code: label of the code.
        rank: numerical rank of the input covariance (the largest over groups).
        residual: relative residual of the equation.
        separation: smallest divisor a_i + b_j relative to a_max + b_max.
        dropped: pairs (i, j) that the zero rule set to 0.
        filled_components: entries filled with principal components of what the code leaves.
        mixed: bool (groups, k), rows filled with orthogonal mixtures of solved rows.
        empty: bool (groups,), groups whose input never varies: nothing was computed for them.
        notes: what a reader of the report should know.
    """

    weight: Tensor
    bias: Tensor
    code: str
    rank: int
    residual: float
    separation: float
    dropped: int
    filled_components: int
    mixed: Tensor
    empty: Tensor
    notes: list[str] = field(default_factory=list)


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
    """Solve one layer, all its groups in one batch.

    Args:
        stats: of the layer's input.
        code: what its outputs are asked to be.
        k: outputs per group.
        lam: weight of the encoding loss.
        seed: for codes that draw, and for the orthogonal mixtures.
        skip: leading code entries that sibling layers have taken.
        constant: append 1 to the input, so that the bias is part of the solution (the last layer).
        fill: give outputs without a code entry a component or a mixture; without it they are zero
            (the last layer: an absent class has the code 0, hence the weights 0).

    Raises:
        SolverError: no route gave a solution within :data:`RESIDUAL_BOUND`.
    """
    latent = code.fit(stats, k + skip, seed)
    label, components = latent.label, 0
    if fill:
        latent, components = _fill_with_components(stats, latent, k + skip)
    available = latent.second_moment.diagonal(dim1=1, dim2=2) > 0
    chosen, repeated = _choose(available, k, skip, fill)
    latent = latent.select(chosen)
    empty = ~available[:, chosen].any(dim=1)
    if fill:  # a code may have entries where the input never varies: its own offset, or the mean
        empty |= ~stats.covariance.flatten(1).any(dim=1)
    available = available[:, chosen]
    solution, bias = _solve(stats, latent, lam, constant)
    weight = stats.in_input_coordinates(solution.w)
    mixed = torch.zeros(weight.shape[:2], dtype=torch.bool, device=weight.device)
    if fill:
        fresh = available & (not repeated)
        weight, bias, mixed = _fill_with_mixtures(weight, bias, available, fresh, k, seed)
    elif weight.shape[1] < k:
        missing = k - weight.shape[1]
        weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))
        bias = torch.nn.functional.pad(bias, (0, missing))
        mixed = torch.nn.functional.pad(mixed, (0, missing))
    notes: list[str] = []
    if components:
        notes.append(f"{components} outputs filled with principal components of the rest")
    if int(mixed.sum()):
        notes.append(f"{int(mixed.sum(dim=1).max())} outputs filled with orthogonal mixtures")
    if skip:
        notes.append(f"shares its input: takes components from {skip + 1} on")
    if solution.dropped:
        notes.append(f"{solution.dropped} near-singular pairs set to their minimum-norm solution")
    return LayerSolution(
        weight=weight,
        bias=bias,
        code=label,
        rank=stats.rank(),
        residual=solution.residual,
        separation=solution.separation,
        dropped=solution.dropped,
        filled_components=components,
        mixed=mixed,
        empty=empty,
        notes=notes,
    )


def _choose(available: Tensor, k: int, skip: int, fill: bool) -> tuple[Tensor, bool]:
    """Indices of the code entries to solve for, and whether siblings have used them already."""
    if not fill:
        return torch.arange(min(k, available.shape[1]), device=available.device), False
    usable = available.any(dim=0).nonzero().flatten()
    if len(usable) == 0:
        return torch.arange(min(k, available.shape[1]), device=available.device), False
    if skip < len(usable):
        return usable[skip : skip + k], False
    # Siblings have taken everything: solve for the first entries again, and mix those.
    return usable[:k], skip > 0


def _solve(
    stats: LayerStatistics, latent: Latent, lam: float, constant: bool
) -> tuple[Solution, Tensor]:
    """W and the bias in the coordinates of ``stats``."""
    values, vectors = stats.spectrum()
    mean, moment, cross = stats.mean, stats.second_moment(), latent.cross
    if constant:
        one = mean.new_ones((stats.groups, 1))
        moment = torch.cat(
            (
                torch.cat((moment, mean[:, :, None]), dim=2),
                torch.cat((mean, one), dim=1)[:, None, :],
            ),
            dim=1,
        )
        cross = torch.cat((cross, latent.mean[:, :, None]), dim=2)
        mean, values = torch.cat((mean, one), dim=1), torch.cat((values, 0 * one), dim=1)
        vectors = torch.nn.functional.pad(vectors, (0, 1, 0, 1))
        vectors[:, -1, -1] = 1
    a, b, q = latent.second_moment, lam * moment, (1 + lam) * cross
    eigh = stats.backend.eigh
    factors = (lam * values, vectors, lam**0.5 * mean)
    solution = solve_rank_one(a, b, q, stats.eps, factors, eigh)
    if solution is None or not solution.residual <= RESIDUAL_BOUND:
        solution = solve_positive(a, b, q, stats.eps, eigh)
    if not solution.residual <= RESIDUAL_BOUND:
        raise SolverError(
            f"the equation's relative residual is {solution.residual:.1e}, above "
            f"{RESIDUAL_BOUND:.0e}; the layer's input moments are too ill-scaled to solve for: "
            "normalise the data"
        )
    if constant:
        bias = solution.w[:, :, -1]
        solution = Solution(
            solution.w[:, :, :-1], solution.residual, solution.separation, solution.dropped
        )
    else:
        bias = latent.mean - (solution.w @ mean[:, :, None])[:, :, 0]
    return solution, bias


def _fill_with_components(stats: LayerStatistics, latent: Latent, k: int) -> tuple[Latent, int]:
    """Append principal components of what the code leaves of x, as far as the rank goes.

    For an affine code, what is left is x - C^T A_c^+ E (x - mu) with C = E Sigma and A_c = C E^T:
    the part of x that the code does not predict, with which it is uncorrelated. For other codes the
    residual covariance is Sigma - C^T A_c^+ C with C = cov(s, x), and its components are applied to
    x.
    """
    available = latent.second_moment.diagonal(dim1=1, dim2=2) > 0
    missing = k - int(available.sum(dim=1).min())
    if missing <= 0 or latent.label.startswith("pca"):
        # Nothing is left over by principal components that stopped at the rank.
        return latent, 0
    cross = latent.cross - latent.mean[:, :, None] * stats.mean[:, None, :]
    variance = latent.second_moment - latent.mean[:, :, None] * latent.mean[:, None, :]
    inverse = torch.linalg.pinv(variance, hermitian=True, rtol=stats.d * stats.eps)
    predicted = cross.mT @ inverse
    left = stats.covariance - predicted @ cross
    spectrum = stats.backend.eigh((left + left.mT) / 2)
    largest = stats.spectrum()[0][:, -1:]
    # Rows that the code leaves empty are dropped later; ask for as many components as may be
    # needed.
    encoder = top_eigenvectors(stats, spectrum, min(missing, stats.d), largest)
    if latent.encoder is not None:
        encoder = encoder - (encoder @ predicted) @ latent.encoder
    found = int((encoder != 0).any(dim=2).sum(dim=1).max())
    if found == 0:
        return latent, 0
    extra = Latent.affine(stats, encoder, stats.mean)
    return latent.joined(extra, stats), found


def _fill_with_mixtures(
    weight: Tensor, bias: Tensor, available: Tensor, fresh: Tensor, k: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill rows without a code by seeded orthogonal mixtures of the solved rows of their group.

    With R orthogonal, R W solves the equation for the code R s, so a mixture of all solved rows is
    as good a solution as they are.

    Args:
        weight: (groups, rows, d_in), solved rows; zero where not ``available``.
        bias: (groups, rows).
        available: bool (groups, rows), rows that were solved.
        fresh: bool (groups, rows), those of them that may be used as they are.
        k: outputs per group.
        seed: of the orthogonal matrices.

    Returns:
        weight (groups, k, d_in), bias (groups, k), and bool (groups, k), where a mixture stands.
    """
    rows = weight.shape[1]
    if rows == k and bool(fresh.all()):
        return weight, bias, torch.zeros_like(fresh)
    groups, _, d_in = weight.shape
    out_weight, out_bias = weight.new_zeros((groups, k, d_in)), bias.new_zeros((groups, k))
    mixed = torch.zeros((groups, k), dtype=torch.bool, device=weight.device)
    generator = np.random.default_rng(seed)
    for group in range(groups):
        base = available[group].nonzero().flatten()
        if len(base) == 0:
            continue
        kept = fresh[group].nonzero().flatten()[:k]
        out_weight[group, : len(kept)] = weight[group, kept]
        out_bias[group, : len(kept)] = bias[group, kept]
        position = len(kept)
        mixed[group, position:] = True
        while position < k:
            mixture = _orthogonal(len(base), generator)[: k - position].to(weight)
            step = slice(position, position + len(mixture))
            out_weight[group, step] = mixture @ weight[group, base]
            out_bias[group, step] = mixture @ bias[group, base]
            position += len(mixture)
    return out_weight, out_bias, mixed


def _orthogonal(n: int, generator: np.random.Generator) -> Tensor:
    """A Haar-distributed orthogonal matrix (Mezzadri 2007)."""
    q, r = np.linalg.qr(generator.standard_normal((n, n)))
    return torch.from_numpy(q * np.sign(np.diag(r)))
