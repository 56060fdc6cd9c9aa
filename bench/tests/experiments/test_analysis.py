from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from analysis import compare, estimate, holm


def test_interval_is_that_of_scipy() -> None:
    values = [51.0, 53.5, 50.25, 52.0, 54.75]
    found = estimate(values)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.count == 5
    # Both in float64 with other orders of operations.
    assert found.mean - found.half == pytest.approx(expected.low, rel=1e-12)
    assert found.mean + found.half == pytest.approx(expected.high, rel=1e-12)


def test_a_single_value_has_no_interval() -> None:
    assert math.isnan(estimate([1.0]).half)


@pytest.mark.parametrize("count", [2, 5, 30])
def test_comparison_is_the_paired_test_of_scipy(count: int) -> None:
    random = np.random.default_rng(count)
    first, second = random.normal(1.0, 1.0, count), random.normal(0.0, 1.0, count)
    found = compare(dict(enumerate(first.tolist())), dict(enumerate(second.tolist())))
    expected = scipy.stats.ttest_rel(first, second)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.gap.mean == pytest.approx(float((first - second).mean()), rel=1e-12)


def test_only_common_seeds_are_compared() -> None:
    found = compare({0: 1.0, 1: 2.0, 7: 99.0}, {0: 0.5, 1: 1.0, 3: 99.0})
    assert found is not None
    assert (found.gap.count, found.gap.mean) == (2, 0.75)
    assert compare({0: 1.0}, {1: 1.0}) is None


def test_equal_differences() -> None:
    same, other = (
        compare({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}),
        compare({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}),
    )
    assert same is not None
    assert other is not None
    assert (same.p, other.p) == (1.0, 0.0)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 * 4 = 0.02, 0.01 * 3 = 0.03, 0.03 * 2 = 0.06, 0.04 * 1 = 0.04 -> 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-15)
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    adjusted = holm([0.02, math.nan, 0.01])
    assert math.isnan(adjusted[1])
    assert [adjusted[0], adjusted[2]] == pytest.approx([0.02, 0.02])


def test_holm_with_comparisons_to_come() -> None:
    # Of four planned: 0.01 * 4 = 0.04, 0.02 * 3 = 0.06; with the others known none can rise.
    early = holm([0.02, math.nan, 0.01, math.nan], 4)
    assert [early[2], early[0]] == pytest.approx([0.04, 0.06], rel=1e-15)
    late = holm([0.02, 0.9, 0.01, 0.005])
    assert late[0] <= early[0]
    assert late[2] <= early[2]
