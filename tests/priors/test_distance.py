"""Correlation against distance, the model of it, and matrices for other kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from correlation_problems import equal_correlation, random_correlation, smooth_correlation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sylvinit import priors
from sylvinit.correlated import (
    DistanceModel,
    FilterCorrelation,
    check_correlation,
    correlation_by_distance,
    fit_distance_model,
    resample_correlation,
)
from sylvinit.errors import CorrelationError, OptionError, OptionTypeError

KERNELS = st.one_of(
    st.tuples(st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
).filter(lambda kernel: math.prod(kernel) > 1)


def by_distance(matrix: np.ndarray, kernel: tuple[int, ...]) -> dict[int, list[float]]:
    """The entries above the diagonal by the square of the distance of their taps."""
    places = list(np.ndindex(*kernel))
    found: dict[int, list[float]] = {}
    for i, p in enumerate(places):
        for j, q in enumerate(places[:i]):
            squared = sum((a - b) ** 2 for a, b in zip(p, q, strict=True))
            found.setdefault(squared, []).append(matrix[i, j])
    return dict(sorted(found.items()))


@given(kernel=KERNELS, seed=st.integers(0, 10**6))
@settings(derandomize=True)
def test_the_profile_is_the_mean_over_pairs(kernel: tuple[int, ...], seed: int) -> None:
    matrix = random_correlation(math.prod(kernel), seed)
    profile = correlation_by_distance(matrix, kernel)
    expected = by_distance(matrix, kernel)
    # One unit in the last place: square roots of torch and of NumPy.
    np.testing.assert_allclose(profile.distance.numpy(), np.sqrt(list(expected)), rtol=3e-16)
    assert profile.pairs.tolist() == [len(entries) for entries in expected.values()]
    means = [np.mean(entries) for entries in expected.values()]
    # Sums of at most 600 numbers below 1 in two orders; the worst difference seen is 1e-16.
    np.testing.assert_allclose(profile.correlation.numpy(), means, rtol=0, atol=1e-13)
    assert profile.standard_error is None


def test_a_3_by_3_kernel_has_five_distances() -> None:
    profile = correlation_by_distance(smooth_correlation((3, 3)))
    assert profile.distance.tolist() == pytest.approx([1, 2**0.5, 2, 5**0.5, 8**0.5])
    assert profile.pairs.tolist() == [12, 8, 6, 8, 2]
    expected = 0.1 + 0.8 * np.exp(-profile.distance.numpy() / 1.5)
    np.testing.assert_allclose(profile.correlation.numpy(), expected, rtol=0, atol=1e-15)


def test_standard_errors_come_along_for_the_same_kernel_only() -> None:
    matrix = torch.from_numpy(smooth_correlation((3, 3)))
    corr = FilterCorrelation.of(matrix, (3, 3), distance_error=torch.arange(5).double())
    assert torch.equal(correlation_by_distance(corr).standard_error, torch.arange(5).double())
    assert correlation_by_distance(corr, 3).standard_error is not None
    assert correlation_by_distance(corr, (9,)).standard_error is None
    assert correlation_by_distance(matrix).standard_error is None


def test_a_single_tap_has_no_distance() -> None:
    assert len(correlation_by_distance([[1.0]]).distance) == 0
    with pytest.raises(CorrelationError, match="a single tap says nothing"):
        fit_distance_model([[1.0]])


# ------------------------------------------------------------------------------------------- model


def misfit(matrix: np.ndarray, kernel: tuple[int, ...]) -> Callable[[np.ndarray], float]:
    """Root mean square over pairs, as a function of (floor, scale, length)."""
    classes = by_distance(matrix, kernel)
    distance = np.sqrt(list(classes))
    means = np.array([np.mean(entries) for entries in classes.values()])
    share = np.array([len(entries) for entries in classes.values()]) / (matrix.size - len(matrix))

    def of(parameters: np.ndarray) -> float:
        floor, scale, length = parameters
        fitted = floor + scale * np.exp(-distance / length)
        return float(np.sqrt(2 * share @ (fitted - means) ** 2))

    return of


@pytest.mark.parametrize(
    ("floor", "scale", "length"),
    [(0.1, 0.6, 1.2), (0.0, 0.9, 2.5), (0.3, 0.0, 1.0), (0.2, 0.8, 0.7), (0.0, 0.0, 1.0)],
)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7,), (3, 3, 3)])
def test_a_matrix_of_the_model_is_found_again(
    floor: float, scale: float, length: float, kernel: tuple[int, ...]
) -> None:
    matrix = DistanceModel(floor, scale, length).matrix(kernel)
    found = fit_distance_model(matrix, kernel)
    # The lengths are a grid of steps of 2 %: half a step moves an exponential by less than 4e-3.
    torch.testing.assert_close(found.matrix(kernel), matrix, rtol=0, atol=4e-3)
    torch.testing.assert_close(
        found.matrix((5, 5)), DistanceModel(floor, scale, length).matrix(5), rtol=0, atol=4e-3
    )
    parameters = np.array([found.floor, found.scale, found.length])
    assert found.rms == pytest.approx(misfit(matrix.numpy(), kernel)(parameters), abs=1e-9)


@pytest.mark.parametrize("kernel", [(3, 3), (4, 4), (6,), (2, 2, 3)])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["random", "smooth", "strong", "negative"])
def test_no_other_model_fits_better(kind: str, seed: int, kernel: tuple[int, ...]) -> None:
    taps = math.prod(kernel)
    matrix = {
        "random": lambda: random_correlation(taps, seed),
        "smooth": lambda: 0.7 * smooth_correlation(kernel) + 0.3 * random_correlation(taps, seed),
        # Nearly 1 everywhere: the constraint floor + scale <= 1 is active.
        "strong": lambda: 0.97 * np.ones((taps, taps)) + 0.03 * random_correlation(taps, seed),
        "negative": lambda: equal_correlation(taps, -0.9 / taps),
    }[kind]()
    found = fit_distance_model(matrix, kernel)
    assert found.floor >= 0
    assert found.scale >= 0
    assert found.floor + found.scale <= 1 + 1e-15
    longest = math.sqrt(sum((axis - 1) ** 2 for axis in kernel))
    bounds = [(0, 1), (0, 1), (0.1, 30 * longest)]
    best = min(
        minimize(
            misfit(matrix, kernel),
            start,
            method="SLSQP",
            bounds=bounds,
            constraints={"type": "ineq", "fun": lambda p: 1 - p[0] - p[1]},
        ).fun
        for start in ([0.1, 0.5, 1.0], [0.5, 0.3, 0.5], [0.0, 0.9, 10.0])
    )
    assert found.rms <= best * (1 + 1e-3) + 1e-6  # steps of the grid of lengths; SLSQP's tolerance


@given(kernel=KERNELS, floor=st.floats(0, 1), share=st.floats(0, 1), length=st.floats(1e-3, 1e3))
@settings(derandomize=True)
def test_every_model_gives_correlation_matrices(
    kernel: tuple[int, ...], floor: float, share: float, length: float
) -> None:
    matrix = DistanceModel(floor, (1 - floor) * share, length).matrix(kernel)
    assert torch.equal(matrix.diagonal(), torch.ones(math.prod(kernel)).double())
    assert torch.equal(matrix, matrix.mT)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-13  # 27 taps, entries up to 1
    assert torch.equal(check_correlation(matrix), matrix)


def test_a_model_is_a_function_of_distance() -> None:
    model = DistanceModel(0.2, 0.5, 2.0)
    found = model(torch.tensor([[0.0, 1.0], [2.0, 40.0]]))
    expected = [[1.0, 0.2 + 0.5 * math.exp(-0.5)], [0.2 + 0.5 * math.exp(-1), 0.2]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-8)  # exp(-20) = 2e-9
    constant = DistanceModel(0.2, 0.5, math.inf).matrix(3)
    np.testing.assert_allclose(constant.numpy(), equal_correlation(9, 0.7), rtol=0, atol=1e-15)


# ---------------------------------------------------------------------------------------- resample


def test_the_same_kernel_is_left_alone() -> None:
    corr = priors.load("resnet10-cifar10")
    assert torch.equal(resample_correlation(corr, 3), corr)
    assert torch.equal(resample_correlation(corr.numpy(), (3, 3)), corr)
    named = FilterCorrelation.of(corr, (1, 9))
    assert torch.equal(resample_correlation(named, (1, 9)), corr)
    assert not torch.equal(resample_correlation(named, 3), corr)
    assert torch.equal(resample_correlation(named, 3, source_kernel=3), corr)


@pytest.mark.parametrize("wanted", [5, 7, 2, (5,), (1, 3), (3, 3, 3), (1, 7)])
@pytest.mark.parametrize("name", priors.available())
def test_other_kernels_follow_the_model(name: str, wanted: Any) -> None:
    corr = priors.load(name)
    found = resample_correlation(corr, wanted)
    model = fit_distance_model(corr)
    kernel = (wanted, wanted) if isinstance(wanted, int) else wanted
    for squared, entries in by_distance(found.numpy(), kernel).items():
        expected = model.floor + model.scale * math.exp(-math.sqrt(squared) / model.length)
        np.testing.assert_allclose(entries, expected, rtol=0, atol=1e-14)
    assert found.dtype == torch.float64
    assert torch.equal(check_correlation(found, math.prod(kernel)), found)


def test_one_tap() -> None:
    assert resample_correlation(smooth_correlation((3, 3)), 1).tolist() == [[1.0]]
    assert resample_correlation([[1.0]], (1, 1, 1)).tolist() == [[1.0]]
    with pytest.raises(CorrelationError, match="at least two taps"):
        resample_correlation([[1.0]], 3)


@pytest.mark.parametrize(
    ("corr", "wanted", "source", "error"),
    [
        (np.eye(8), 3, None, CorrelationError),
        (np.eye(9), 3, (2, 4), CorrelationError),
        (-np.eye(9), 3, None, CorrelationError),
        (np.eye(9), 0, None, OptionError),
        (np.eye(9), (3, 3, 3, 3), None, OptionError),
        (np.eye(9), 2.5, None, OptionTypeError),
        (np.eye(9), 5, "3", OptionTypeError),
        ("resnet10-cifar10", 5, None, OptionTypeError),
    ],
)
def test_bad_input(corr: Any, wanted: Any, source: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        resample_correlation(corr, wanted, source_kernel=source)


def test_everything_happens_on_the_cpu() -> None:
    """Whatever device new tensors have by default."""
    matrix = torch.from_numpy(smooth_correlation((3, 3)))
    with torch.device("meta"):
        found = resample_correlation(matrix, 5)
        profile = correlation_by_distance(matrix)
    assert torch.equal(found, resample_correlation(matrix, 5))
    assert torch.equal(profile.correlation, correlation_by_distance(matrix).correlation)
