"""Means, intervals and paired comparisons of repeated runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval (Student's t).

    Attributes:
        mean: of the values.
        half: half the width, NaN for a single value.
        count: how many values.
    """

    mean: float
    half: float
    count: int


@dataclass(frozen=True)
class Comparison:
    """One arm minus another over their common seeds.

    Attributes:
        gap: the mean difference with its interval.
        p: two-sided p value of the paired t test, NaN for fewer than two seeds.
    """

    gap: Estimate
    p: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval: half the width is t(0.975, n - 1) s / sqrt(n).

    Args:
        values: at least one, in per cent, seconds or whatever; the result has their unit.
    """
    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return Estimate(mean, math.nan, count)
    quantile = float(stdtrit(count - 1, 0.5 + LEVEL / 2))
    return Estimate(mean, quantile * statistics.stdev(values) / math.sqrt(count), count)


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison | None:
    """The paired t test of ``first`` minus ``second``, values by seed; None without common seeds.

    t = mean / (s / sqrt(n)) over the n differences, with n - 1 degrees of freedom. Where all
    differences are equal, p is 1 if they are zero and otherwise 0.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    gaps = [first[seed] - second[seed] for seed in seeds]
    gap = estimate(gaps)
    if gap.count < 2:
        return Comparison(gap, math.nan)
    error = statistics.stdev(gaps) / math.sqrt(gap.count)
    if error == 0.0:
        return Comparison(gap, 1.0 if gap.mean == 0.0 else 0.0)
    return Comparison(gap, 2 * float(stdtr(gap.count - 1, -abs(gap.mean) / error)))


def holm(values: Sequence[float], family: int | None = None) -> list[float]:
    """p values adjusted for all of them being looked at (Holm 1979), in the same order.

    The k-th smallest of m, from k = 0, becomes (m - k) times itself, at least the adjusted value
    before it and at most 1.

    Args:
        values: p values; NaN, one that is not known yet, stays NaN.
        family: m, by default the values that are known. With the number of all planned
            comparisons an adjusted value can only fall as the others come in.
    """
    adjusted = [math.nan] * len(values)
    places = sorted(
        (place for place, value in enumerate(values) if not math.isnan(value)),
        key=lambda place: values[place],
    )
    largest, family = 0.0, len(places) if family is None else family
    for rank, place in enumerate(places):
        largest = max(largest, min(1.0, (family - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
