"""A classifier as the solution of the last layer."""

from __future__ import annotations

import math

import torch

from sylvinit.moments.statistics import LayerStatistics
from sylvinit.solve.equation import LayerSolution
from sylvinit.solve.gaussian_classes import RIDGES, fit_gaussian
from sylvinit.solve.logistic_steps import refine_logistic


def solve_classifier(
    stats: LayerStatistics, k: int, *, strength: float, steps: int, balanced: bool = False
) -> LayerSolution:
    """Weight and bias of a last layer with ``k`` outputs, one for each class; or of two, with one.

    One output for two classes is the difference of their scores. With ``balanced`` classes have
    equal priors: the logarithms of their frequencies are taken from the biases.

    The ridge is not known to be the best where it is at an end of those tried; the notes say so.

    An output whose class has no rows gets the mean of the other scores, less log(n + 1): it never
    has the highest score, and starts from there in training. ``stats`` are those of one group, with
    a reservoir of labeled rows; k is at least the number of classes, or 1 for two of them;
    ``strength`` and ``steps`` are those of :func:`refine_logistic`.
    """
    counts, rows, labels = stats.class_counts, stats.reservoir, stats.reservoir_labels
    if counts is None or rows is None or labels is None:
        raise ValueError("a classifier needs labeled rows")
    present = (counts > 0).nonzero().flatten()
    # In the numbering of the classes that are there, so that absent ones take no part.
    number = torch.full((len(counts),), -1, dtype=torch.int64, device=labels.device)
    number[present] = torch.arange(len(present), device=labels.device)
    x, y = rows[0].double(), number[labels]
    values, basis = stats.spectrum()
    whole = len(x) == stats.n  # and not a sample, whose covariance would be another one
    gaussian = fit_gaussian(x, y, len(present))
    found_weight, found_bias = refine_logistic(
        x,
        y,
        gaussian.weight,
        gaussian.bias,
        strength=strength,
        steps=steps,
        spectrum=(values[0], basis[0]) if whole else None,
        precision=torch.float32 if stats.rows_eps > torch.finfo(torch.float64).eps else x.dtype,
    )
    if balanced:
        found_bias = found_bias - stats.class_shares()[present].log()
    outputs = max(k, len(counts))
    weight = found_weight.mean(dim=0).repeat(outputs, 1)
    bias = (found_bias.mean() - math.log(len(x) + 1)).repeat(outputs)
    weight[present], bias[present] = found_weight, found_bias
    if k < outputs:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    notes = [
        *stats.notes,
        f"Gaussian classes, ridge {gaussian.ridge:.2g} by leave-one-out, {steps} logistic steps; "
        "lam has no part in it",
    ]
    if math.isinf(gaussian.loss):
        notes.append("no class has two rows to leave one out of: the largest ridge is taken")
    elif gaussian.ridge in (RIDGES[0], RIDGES[-1]):
        end = "smallest" if gaussian.ridge == RIDGES[0] else "largest"
        notes.append(f"the ridge is the {end} of those tried: the best may lie beyond")
    if len(x) < stats.n:
        notes.append(f"fitted to a random sample of {len(x)} of {stats.n} rows")
    return LayerSolution(
        weight=stats.in_input_coordinates(weight[None]),
        bias=bias[None],
        rank=stats.rank(),
        residual=math.nan,
        dropped=0,
        filled_components=0,
        mixed=torch.zeros((1, k), dtype=torch.bool, device=x.device),
        empty=~stats.covariance.flatten(1).any(dim=1),
        notes=notes,
    )
