"""Table 1: the formulas against the equations, an independent evaluation, and simulation."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.signal import convolve2d
from scipy.stats import norm
from theory.propagation import propagated_variance, simulated_variance

CASES = {
    "A": {"inputs": "equal", "weights": "equal"},
    "B": {"inputs": "equal", "weights": "independent"},
    "C": {"inputs": "independent", "weights": "equal"},
    "D": {"inputs": "independent", "weights": "independent"},
}


def propagated(case: str, kernel: int, layers: int, variance: float) -> float:
    return propagated_variance(kernel, layers, **CASES[case], weight_variance=variance)


# ------------------------------------------------------------------------------------ the formulas


@pytest.mark.parametrize("variance", [1.0, 0.1, 2 / 81])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_the_recursions_of_the_paper(kernel: int, variance: float) -> None:
    """Eqs. 13 and 15 for the first layer, whose input has variance 1; 14 and 16 for a step."""
    taps = kernel**2
    for case, first, step in (
        ("A", taps**2 * variance, taps**2 / 2 * variance),
        ("B", taps * variance, taps / 2 * variance),
        ("D", taps * variance, taps / 2 * variance),
    ):
        expected = first
        for layers in range(1, 8):
            found = propagated(case, kernel, layers, variance)
            assert found == pytest.approx(expected, rel=1e-13)  # seven products
            expected *= step


def test_the_printed_exponents_do_not_follow() -> None:
    """Table 1 has eta k^(2l) and eta k^l with eta = Var[y_1] (v / 2)^l; eqs. 14 and 16 do not."""
    kernel, layers, v = 3, 3, 0.1
    for case, power in (("A", 2 * layers), ("B", layers)):
        printed = propagated(case, kernel, 1, v) * (v / 2) ** layers * kernel**power
        assert propagated(case, kernel, layers, v) > 5 * printed


def rectified(rho: float) -> float:
    """E[relu(a) relu(b)] for standard normal numbers of correlation rho, by integration."""
    rest = math.sqrt(max(1 - rho * rho, 0.0))

    def inner(a: float) -> float:
        if rest == 0:
            return a * a * norm.pdf(a)
        return (
            a * norm.pdf(a) * (rho * a * norm.cdf(rho * a / rest) + rest * norm.pdf(rho * a / rest))
        )

    return quad(inner, 0, 12, epsabs=1e-12)[0]


def case_c(kernel: int, layers: int, variance: float) -> float:
    """Case C by counting: every path of offsets, every overlap pixel by pixel.

    Behind the first layer everything is positive, so that y_l is a sum of relu(g) over all paths
    through the windows, times the weights; ReLU passes a positive weight, half of the time.
    """
    window = list(product(range(kernel), repeat=2))
    paths = Counter({(0, 0): 1})
    for _ in range(layers - 1):
        longer: Counter[tuple[int, int]] = Counter()
        for (i, j), count in paths.items():
            for a, b in window:
                longer[i + a, j + b] += count
        paths = longer
    cache: dict[int, float] = {}
    total = 0.0
    for (p, m), (q, n) in product(paths.items(), repeat=2):
        shift = (p[0] - q[0], p[1] - q[1])
        shared = sum((a + shift[0], b + shift[1]) in window for a, b in window)
        if shared not in cache:
            cache[shared] = kernel**2 * rectified(shared / kernel**2)
        total += m * n * cache[shared]
    return variance**layers * 0.5 ** (layers - 2) * total


@pytest.mark.parametrize(
    ("kernel", "layers"), [(1, 4), (2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (4, 2)]
)
def test_case_c_by_counting_paths(kernel: int, layers: int) -> None:
    # The integrals are exact to 1e-9.
    expected = case_c(kernel, layers, 0.3)
    assert propagated("C", kernel, layers, 0.3) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("kernel", "layers"), [(2, 2), (3, 2), (3, 3), (2, 5), (5, 3)])
def test_case_c_from_random_inputs(kernel: int, layers: int) -> None:
    """E[(box * ... * relu(box * x))^2], with the weights' moments put in by hand."""
    generator, box = np.random.default_rng(kernel * layers), np.ones((kernel, kernel))
    side = layers * (kernel - 1) + 1
    flat = np.zeros(4000)
    for i in range(len(flat)):
        y = np.maximum(convolve2d(generator.normal(size=(side, side)), box, "valid"), 0)
        for _ in range(layers - 1):
            y = convolve2d(y, box, "valid")
        flat[i] = y[0, 0] ** 2
    scale = 0.2**layers * 0.5 ** (layers - 2)
    error = scale * flat.std() / math.sqrt(len(flat))
    found = propagated("C", kernel, layers, 0.2)
    assert error < 0.04 * found
    assert scale * flat.mean() == pytest.approx(found, abs=4 * error)


def test_case_c_grows_like_case_a() -> None:
    for kernel in (2, 3, 5):
        taps = kernel**2
        for layers in (2, 3, 10, 60):
            bound = taps * 0.1 * (taps**2 * 0.05) ** (layers - 1)
            assert 1 / math.pi < propagated("C", kernel, layers, 0.1) / bound < 1
    assert propagated("C", 3, 1, 0.1) == pytest.approx(0.9)
    assert propagated("C", 1, 5, 0.1) == pytest.approx(propagated("A", 1, 5, 0.1))


@pytest.mark.parametrize("case", CASES)
def test_many_layers(case: str) -> None:
    """Beyond the range of float64 there is inf or 0, and nothing else."""
    assert propagated(case, 3, 480, 1.0) == math.inf
    assert propagated(case, 3, 480, 1e-4) == 0
    stable = 2 / 81 if CASES[case]["weights"] == "equal" else 2 / 9
    assert 0.01 < propagated(case, 3, 300, stable) < 3


# -------------------------------------------------------------------------------------- simulation

# Relative variances of y^2 for three layers are 323 in cases A and B (kurtosis 3 of every normal
# factor, and 2 of each ReLU), less in C and D: so many networks for 4 standard errors below 5 %.
DRAWS = {"A": (60, 400, 2600), "B": (60, 400, 2600), "C": (60, 300, 1800), "D": (60, 100, 300)}


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_simulated_networks(case: str, kernel: int, layers: int) -> None:
    mean, error = simulated_variance(
        kernel,
        layers,
        **CASES[case],
        weight_variance=0.15,
        draws=1000 * DRAWS[case][layers - 1],
        generator=torch.Generator().manual_seed(10 * kernel + layers),
    )
    expected = propagated(case, kernel, layers, 0.15)
    assert 4 * error < 0.05 * expected
    assert mean == pytest.approx(expected, abs=4 * error)


def test_the_standard_error_is_the_spread_of_the_mean() -> None:
    """Over 300 repetitions, whose spread is known to 4 %."""
    generator = torch.Generator().manual_seed(0)
    options = {**CASES["D"], "weight_variance": 0.5, "draws": 400, "generator": generator}
    runs = np.array([simulated_variance(2, 1, **options) for _ in range(300)])
    assert runs[:, 1].mean() == pytest.approx(runs[:, 0].std(), rel=0.16)


def test_seeds() -> None:
    options = {**CASES["C"], "weight_variance": 0.5, "draws": 25_000}
    before = torch.get_rng_state()
    runs = [
        simulated_variance(2, 2, **options, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.get_rng_state(), before)
