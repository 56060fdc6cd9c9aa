"""csrc/solver/tridiagonal.h, compiled for the host, against NumPy's eigenvalues."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from compiler import built_once, find_compiler, run
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).parent
SOLVER = HERE.parents[1] / "csrc" / "solver"
EPS = np.finfo(np.float64).eps
TINY = 2 * np.finfo(np.float64).tiny  # of a zero matrix


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    flags = ["-O3", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{SOLVER}"]
    command = [find_compiler(), *flags, str(HERE / "tridiagonal_entry.cpp"), "-o"]
    name = "tridiagonal.so"
    path = built_once(tmp_path_factory, name, lambda path: run([*command, str(path)]))
    library = ctypes.CDLL(str(path))
    integer = ctypes.c_int
    real, whole = (np.ctypeslib.ndpointer(x, flags="C") for x in (np.float64, np.int32))
    for name, arguments, result in (
        ("count_below", [ctypes.c_int64, real, whole], None),
        ("eigenvalues", [real], None),
        ("spectral_radius", [], ctypes.c_double),
        ("nearest_to_zero", [integer, real, real, whole], None),
        ("solve_definite", [integer, real, integer, real], integer),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = [integer, real, real, *arguments], result
    return library


def dense(diagonal: np.ndarray, off: np.ndarray) -> np.ndarray:
    return np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)


@st.composite
def tridiagonals(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray]:
    """Random, graded, with zeros off the diagonal, and of the kinds that bisection finds hard."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "graded", "split", "constant", "wilkinson", "zero"]))
    diagonal, off = rng.standard_normal(n), rng.standard_normal(n - 1)
    if kind == "graded":
        diagonal, off = diagonal * 0.1 ** np.arange(n), off * 0.1 ** np.arange(n - 1)
    elif kind == "split":
        off = off * rng.integers(0, 2, n - 1)
    elif kind == "constant":
        diagonal, off = np.full(n, 2.0), np.full(n - 1, -1.0)
    elif kind == "wilkinson":  # pairs of eigenvalues that agree to many digits
        diagonal, off = np.abs(np.arange(n) - (n - 1) / 2), np.ones(n - 1)
    elif kind == "zero":
        diagonal, off = np.zeros(n), np.zeros(n - 1)
    scale = draw(st.sampled_from([1.0, 1e-100, 1e100]))
    return n, scale * diagonal, scale * off


@given(matrix=tridiagonals())
def test_eigenvalues(library, matrix) -> None:
    n, diagonal, off = matrix
    expected = np.linalg.eigvalsh(dense(diagonal, off))
    found = np.empty(n)
    library.eigenvalues(n, diagonal, off, found)
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * EPS * n * size + TINY)
    radius = library.spectral_radius(n, diagonal, off)
    assert radius == pytest.approx(size, rel=0.05, abs=TINY)


@given(matrix=tridiagonals(), seed=st.integers(0, 2**32 - 1))
def test_counts(library, matrix, seed) -> None:
    n, diagonal, off = matrix
    values = np.linalg.eigvalsh(dense(diagonal, off))
    size = np.abs(values).max()
    rng = np.random.default_rng(seed)
    points = np.sort(rng.uniform(-1.2, 1.2, 64) * (size or 1.0))
    below = np.empty(64, dtype=np.int32)
    library.count_below(n, diagonal, off, 64, points, below)
    slack = 10 * EPS * n * size
    assert (below >= np.searchsorted(values, points - slack, side="left")).all()
    assert (below <= np.searchsorted(values, points + slack, side="right")).all()
    assert (np.diff(below) >= 0).all()


@given(
    matrix=tridiagonals(),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 30),
    hit=st.booleans(),
)
def test_nearest_to_zero(library, matrix, seed, count, hit) -> None:
    n, diagonal, off = matrix
    values = np.linalg.eigvalsh(dense(diagonal, off))
    rng = np.random.default_rng(seed)
    size = np.abs(values).max() or 1.0
    shifts = np.sort(rng.standard_normal(count)) * size
    if hit:
        shifts[rng.integers(count)] = -values[rng.integers(n)]
    found, indices = np.empty(2), np.empty(2, dtype=np.int32)
    library.nearest_to_zero(n, diagonal, off, count, shifts, found, indices)
    sums = np.abs(values[:, None] + shifts)
    slack = 10 * EPS * n * max(size, np.abs(shifts).max())
    assert abs(found[0] - sums.min()) <= slack
    shift, index = indices
    assert sums[index, shift] <= sums.min() + 2 * slack
    assert abs(found[1] - values[index]) <= slack


@given(
    n=st.integers(1, 30),
    count=st.integers(1, 20),
    parts=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_solve_definite(library, n, count, parts, seed) -> None:
    rng = np.random.default_rng(seed)
    off = rng.standard_normal(n - 1)
    diagonal = rng.uniform(0.1, 1, n) + np.append(np.abs(off), 0) + np.append(0, np.abs(off))
    shifts = rng.uniform(0, 3, count)
    right = rng.standard_normal((count, n, parts))
    f = right.copy()
    assert library.solve_definite(n, diagonal, off, count, shifts, parts, f) == count
    t = dense(diagonal, off)
    expected = np.stack(
        [np.linalg.solve(t + s * np.eye(n), g) for s, g in zip(shifts, right, strict=True)]
    )
    np.testing.assert_allclose(f, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_solve_definite_stops_at_the_first_pack_that_is_not(library) -> None:
    n, count = 5, 20
    diagonal, off = np.full(n, 2.0), np.full(n - 1, -1.0)
    shifts = np.ones(count)
    shifts[13] = -3.0
    right = np.ones((count, n))
    f = right.copy()
    assert library.solve_definite(n, diagonal, off, count, shifts, 1, f) == 8
    expected = np.linalg.solve(dense(diagonal, off) + np.eye(n), np.ones(n))
    np.testing.assert_allclose(f[:8], np.tile(expected, (8, 1)), rtol=1e-14)
    np.testing.assert_array_equal(f[8:], right[8:])
