"""Layers of principal components from the leading eigenpairs alone, against NumPy and closed forms.

Every case is solved by both routes; hard spectra are clustered, repeated and zero eigenvalues.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import principal_axes

import sylvinit
from sylvinit.backends import choose
from sylvinit.codes import PCA, SignPairs
from sylvinit.moments.statistics import LayerStatistics, layer_statistics, without_constant
from sylvinit.solve import equation
from sylvinit.solve.principal import PrincipalRows, solve_principal
from sylvinit.sylvester import lapack

pytestmark = pytest.mark.skipif(not lapack.AVAILABLE, reason="needs the compiled module")
LAM = 3.0
# Rounding, eps |Sigma| / gap, of eigenvectors from two sums; the gaps are at least 1e-3 of the
# largest eigenvalue. The worst seen is 4e-12.
CLOSE = 1e-10


def spectrum(kind: str, d: int) -> np.ndarray:
    """Standard deviations of d components, descending."""
    if kind == "spread":
        return np.geomspace(1, 0.05, d)
    if kind == "clustered":  # in threes that agree to eight digits
        return np.geomspace(1, 0.1, d)[np.arange(d) // 3 * 3] * (1 - 1e-8 * (np.arange(d) % 3))
    if kind == "repeated":
        return np.geomspace(1, 0.1, d)[np.arange(d) // 4 * 4]
    return np.where(np.arange(d) < d // 2, np.geomspace(1, 0.1, d), 0)  # "zero"


def rows(kind: str, n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows about a mean, whose covariance has a spectrum of this kind (cut off at n - 1)."""
    generator = np.random.default_rng(seed)
    centered = generator.normal(size=(n, min(n - 1, d)))
    basis = np.linalg.qr(centered - centered.mean(axis=0))[0]
    axes = np.linalg.qr(generator.normal(size=(d, d)))[0]
    x = basis * spectrum(kind, d)[: basis.shape[1]] @ axes[: basis.shape[1]] * n**0.5
    return x + generator.normal(size=d) * 0.3


def statistics(*groups: np.ndarray, dtype: torch.dtype = torch.float64) -> LayerStatistics:
    x = torch.from_numpy(np.stack(groups)).to(dtype)
    moments = sylvinit.PatchMoments(x.shape[2], groups=len(x)).update(x)
    return layer_statistics(moments, choose("auto", torch.device("cpu")))


def solve(stats: LayerStatistics, k: int, skip: int = 0, copies: int = 1) -> PrincipalRows:
    found = solve_principal(stats, k, LAM, skip=skip, copies=copies)
    assert found is not None
    return found


def closed_form(x: np.ndarray, axes: np.ndarray, copies: int = 1) -> np.ndarray:
    """Rows of copies A W + W B = Q for orthonormal eigenvectors, one linear system each."""
    mean, sigma = x.mean(axis=0), np.cov(x.T, bias=True)
    b = LAM * (sigma + np.outer(mean, mean))
    values = np.diag(axes @ sigma @ axes.T)
    right = (1 + LAM) * values[:, None] * axes
    identity = np.eye(len(mean))
    return np.stack(
        [np.linalg.solve(copies * a * identity + b, q) for a, q in zip(values, right, strict=True)]
    )


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(("n", "k"), [(80, 9), (31, 30), (30, 9), (29, 9), (29, 28), (12, 30)])
def test_rows_are_those_of_the_closed_form(n: int, k: int, copies: int) -> None:
    x = rows("spread", n, 30)
    found = solve(statistics(x), k, copies=copies)
    count = min(k, n - 1)
    assert found.rank == min(n - 1, 30)
    assert found.solved[0].sum() == count
    expected = closed_form(x, principal_axes(x.T, count), copies)
    np.testing.assert_allclose(found.weight[0, :count], expected, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.deviation[0, :count], (x @ expected.T).std(axis=0), rtol=1e-9)
    assert found.residual < 1e-14


@pytest.mark.parametrize("kind", ["clustered", "repeated", "zero"])
@pytest.mark.parametrize(("n", "k"), [(80, 30), (31, 30), (30, 30), (29, 13), (17, 12)])
def test_hard_spectra_solve_the_equation(kind: str, n: int, k: int) -> None:
    """Eigenvectors are not unique here: the axes are taken from a second route's subspace."""
    x = rows(kind, n, 30, seed=1)
    found = solve(statistics(x), k)
    sigma, mean = np.cov(x.T, bias=True), x.mean(axis=0)
    values = np.linalg.eigvalsh(sigma)[::-1]
    rank = int((values > 1e-12 * values[0]).sum())
    assert found.rank == rank
    count = min(k, rank)
    assert found.solved[0].sum() == count
    w = found.weight[0, :count].numpy()
    # With P known, W solves A W + W B = (1 + lam) A P: P follows from W, and has to be orthonormal.
    b = LAM * (sigma + np.outer(mean, mean))
    p = w / (1 + LAM) + w @ b / (1 + LAM) / values[:count, None]
    # Divided by the smallest eigenvalue, 1e-2 of the largest: 100 eps times the clustered gaps' 30.
    np.testing.assert_allclose(p @ p.T, np.eye(count), rtol=0, atol=1e-11)
    np.testing.assert_allclose(p @ sigma @ p.T, np.diag(values[:count]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [60, 8])
@pytest.mark.parametrize(("k", "skip"), [(4, 0), (4, 4), (3, 5), (6, 6), (5, 12)])
@pytest.mark.parametrize("pairs", [False, True])
def test_both_routes_agree(
    n: int, k: int, skip: int, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of different rank, siblings that have taken some, outputs that are filled."""
    x = rows("spread", n, 12), rows("zero", n, 12, seed=3), np.ones((n, 12))
    code = SignPairs(PCA()) if pairs else PCA()

    def solution() -> equation.LayerSolution:
        return equation.solve_layer(statistics(*x), code, k, LAM, seed=5, skip=skip)

    found = solution()
    assert found.deviation is not None  # the direct route
    monkeypatch.setattr(lapack, "AVAILABLE", False)
    other = solution()
    assert other.deviation is None
    torch.testing.assert_close(found.weight, other.weight, rtol=0, atol=CLOSE)
    torch.testing.assert_close(found.bias, other.bias, rtol=0, atol=CLOSE)
    for name in ("rank", "dropped", "filled_components", "notes"):
        assert getattr(found, name) == getattr(other, name), name
    assert torch.equal(found.mixed, other.mixed)
    assert torch.equal(found.empty, other.empty)
    outputs = torch.from_numpy(np.stack(x)) @ other.weight.mT
    torch.testing.assert_close(
        found.deviation, outputs.std(dim=1, correction=0), rtol=1e-9, atol=1e-13
    )


@pytest.mark.parametrize("n", [60, 8])
def test_rows_that_see_no_constant(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that varies along the constant alone has no components then."""
    level = np.random.default_rng(0).normal(size=(n, 1))
    x = rows("spread", n, 12) + 5 * level, np.repeat(level, 12, axis=1)
    stats = without_constant(statistics(*x))
    found = equation.solve_layer(stats, PCA(), 5, LAM, seed=5)
    assert found.empty.tolist() == [False, True]
    assert found.weight.sum(dim=2).abs().max() < CLOSE
    projected = x[0] - x[0].mean(axis=1, keepdims=True)
    expected = closed_form(projected, principal_axes(projected.T, 5))
    np.testing.assert_allclose(found.weight[0], expected, rtol=0, atol=CLOSE)
    monkeypatch.setattr(lapack, "AVAILABLE", False)
    other = equation.solve_layer(without_constant(statistics(*x)), PCA(), 5, LAM, seed=5)
    assert other.deviation is None
    torch.testing.assert_close(found.weight, other.weight, rtol=0, atol=CLOSE)
    torch.testing.assert_close(found.bias, other.bias, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_the_solution_has_no_units(scale: float) -> None:
    for n in (40, 7):
        x = rows("spread", n, 12)
        found, other = solve(statistics(x * scale), 5), solve(statistics(x), 5)
        torch.testing.assert_close(found.weight, other.weight, rtol=0, atol=CLOSE)
        torch.testing.assert_close(found.deviation / scale, other.deviation, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [9, 39])
def test_small_components_of_few_rows_are_orthonormal(n: int) -> None:
    """X^T u / sigma is not, where sigma^2 is near the rounding of the largest."""
    generator = np.random.default_rng(0)
    k, count, d = 6, n - 1, 40
    left = generator.normal(size=(n, count))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    axes = np.linalg.qr(generator.normal(size=(d, count)))[0].T
    deviation = np.geomspace(1, 2e-6, count)
    mean = generator.normal(size=d)
    x = left * deviation @ axes * n**0.5 + mean
    found = solve(statistics(x), count)
    assert found.rank == count
    assert found.residual < 1e-14
    w = found.weight[0].numpy()
    # eps over the sixth variance, 7e-9, and over relative gaps of at least 0.3: 1e-7.
    expected = closed_form(x, axes)[:k]
    sign = np.sign((w[:k] * expected).sum(axis=1))
    np.testing.assert_allclose(sign[:, None] * w[:k], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("d", [460, pytest.param(4608, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("share", [9, 1])
def test_wide_layers_with_a_hard_spectrum(d: int, more: int, share: int) -> None:
    """Clustered, repeated and zero eigenvalues, with d - 1, d and d + 1 rows; P as above.

    Of d components, as many as the rank are found.
    """
    n, rank = d + more, 2 * d // 3
    k = min(d // share, rank)
    generator = torch.Generator().manual_seed(0)
    deviation = torch.from_numpy(spectrum("clustered", d))
    deviation[d // 40 : d // 20] = deviation[d // 40]
    deviation[rank:] = 0
    x = torch.randn(n, min(n - 1, d), generator=generator, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(dim=0)).Q * deviation[: x.shape[1]]
    axes = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    x = x @ axes[: x.shape[1]] * n**0.5 + 0.1
    found = solve(statistics(x.numpy()), d // share)
    assert found.solved.sum() == k
    mean, w = x.mean(dim=0), found.weight[0, :k]
    centered = x - mean
    wb = LAM * (w @ centered.mT @ centered / n + (w @ mean)[:, None] * mean)
    p = (w + wb / deviation[:k].square()[:, None]) / (1 + LAM)
    # eps d over the smallest of these eigenvalues, 0.05 of the largest: 2e-11.
    torch.testing.assert_close(p @ p.mT, torch.eye(k).double(), rtol=0, atol=1e-10)
    assert found.rank == rank
    assert found.residual < 1e-14
