"""Shifted systems in place of the larger Schur form, on the CPU, against SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

import sylvinit
from sylvinit.sylvester import shifted

EPS = torch.finfo(torch.float64).eps


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """As on a GPU; and whether the route has given a solution, for every equation."""
    seen: list[bool] = []
    solve = shifted.solve

    def spy(*arguments: Any) -> Tensor | None:
        x = solve(*arguments)
        seen.append(x is not None)
        return x

    monkeypatch.setattr(shifted, "pays", lambda q: True)
    monkeypatch.setattr(shifted, "solve", spy)
    return seen


def graded(n: int, decades: int, kind: str, seed: int) -> np.ndarray:
    """Rows, or rows and columns, or eigenvalues over so many decades; or a Jordan block."""
    rng = np.random.default_rng(seed)
    sizes, x = np.logspace(0, -decades, n), rng.standard_normal((n, n))
    if kind == "rows":
        return sizes[:, None] * x
    if kind == "rows and columns":
        return sizes[:, None] * x / np.sqrt(sizes)
    if kind == "eigenvalues":
        q, _ = np.linalg.qr(x)
        return q @ np.diag(sizes) @ (np.eye(n) + 0.3 * np.triu(x, 1)) @ q.T
    return 0.5 * np.eye(n) + np.diag(np.ones(n - 1), 1)


def residual(a: Any, b: Any, q: Any, x: Any) -> float:
    norm = np.linalg.norm
    return norm(a @ x + x @ b - q) / ((norm(a) + norm(b)) * norm(x) + norm(q))


@pytest.mark.parametrize("kind", ["rows", "rows and columns", "eigenvalues", "Jordan block"])
@pytest.mark.parametrize("decades", [0, 6, 12])
@pytest.mark.parametrize(("k", "d"), [(1, 20), (7, 30), (12, 12)])
def test_graded_matrices(k: int, d: int, decades: int, kind: str) -> None:
    """As small a residual as SciPy's, whatever the distance of the spectra; or left to the host."""
    a, b = graded(k, decades, kind, 1), graded(d, decades, kind, 2)
    q = np.random.default_rng(3).standard_normal((k, d))
    theirs = residual(a, b, q, scipy.linalg.solve_sylvester(a, b, q))
    far = a + 3 * np.linalg.norm(a) * np.eye(k)  # spectra apart: it must not be left to the host
    for left, must in ((a, False), (far, kind != "rows and columns")):
        x = shifted.solve(*map(torch.from_numpy, (left, b, q)), EPS)
        assert x is not None or not must
        if x is not None:
            # Six times SciPy's, or rounding: after refinement it is usually smaller.
            assert residual(left, b, q, x.numpy()) <= max(6 * theirs, 4 * EPS)
        if must:
            exact = scipy.linalg.solve_sylvester(left, b, q)
            assert np.linalg.norm(x.numpy() - exact) <= 1e-10 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (2, 3, 5, 6)])
def test_any_dtype_and_batch(used: list[bool], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    *batch, k, d = shape
    a, b, q = (
        torch.randn(*batch, m, n, dtype=dtype, generator=generator)
        for m, n in ((k, k), (d, d), (k, d))
    )
    a = a + 10 * torch.eye(k)
    x = sylvinit.solve_sylvester(a, b, q)
    assert used == [True]
    assert x.dtype == dtype
    assert x.shape == q.shape
    tolerance = 1e-4 if dtype in (torch.float32, torch.complex64) else 1e-12
    for at in np.ndindex(*batch):
        exact = scipy.linalg.solve_sylvester(*(y[at].numpy() for y in (a, b, q)))
        error = np.linalg.norm(x[at].numpy() - exact) / np.linalg.norm(exact)
        assert error <= tolerance


@pytest.mark.parametrize("gap", [0.0, 1e-9])
def test_what_is_not_clear_is_left_to_the_host(used: list[bool], gap: float) -> None:
    """The same error or warning as without this route."""
    rng = np.random.default_rng(0)
    a, b = np.triu(rng.standard_normal((4, 4))), np.triu(rng.standard_normal((6, 6)))
    b[2, 2] = gap - a[1, 1]
    q = rng.standard_normal((4, 6))
    operands = [torch.from_numpy(x) for x in (a, b, q)]
    if gap == 0:
        with pytest.raises(sylvinit.errors.SingularEquationError, match="share an eigenvalue"):
            sylvinit.solve_sylvester(*operands)
    else:
        with pytest.warns(sylvinit.errors.AccuracyWarning):
            sylvinit.solve_sylvester(*operands)
    assert used == [False]


def test_random_state_is_left_alone(used: list[bool]) -> None:
    before = torch.random.get_rng_state()
    a, b, q = (torch.ones(m, n, dtype=torch.float64).triu() for m, n in ((2, 2), (3, 3), (2, 3)))
    sylvinit.solve_sylvester(a, b, q)
    assert used == [True]
    assert torch.equal(torch.random.get_rng_state(), before)
