"""csrc/solver/small_batch.h, compiled for the host: every kernel against NumPy's eigenvalues."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from compiler import STRICT, built_once, find_compiler, run
from hypothesis import given
from hypothesis import strategies as st
from sylvester_problems import hermitian, residual

HERE = Path(__file__).parent
SOLVER = HERE.parents[1] / "csrc" / "solver"
EPS = float(np.finfo(np.float64).eps)
LARGEST = 48  # kSmall

Equations = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    # The flags of setup.py. One kernel says what all the others do, to the bit, only without
    # contractions.
    flags = ["-O3", "-std=c++17", "-fno-math-errno", "-ffp-contract=off", "-pthread"]
    flags += ["-shared", "-fPIC", *STRICT, f"-I{SOLVER}"]
    command = [find_compiler(), *flags, str(HERE / "small_batch_entry.cpp"), "-o"]
    name = "small_batch.so"
    path = built_once(tmp_path_factory, name, lambda path: run([*command, str(path)]))
    return ctypes.CDLL(str(path))


def _pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(x.ctypes.data) for x in arrays]


def solve_with(library, kernel: int, equations: Equations, positive: bool, eps: float = EPS):
    a, b, q = equations
    count, k, d = q.shape
    x, solved = np.full_like(q, np.nan), np.zeros(count, np.int32)
    last = ctypes.c_double(eps), int(positive), *_pointers(x, solved)
    library.solve_with(kernel, k, d, count, *_pointers(a, b, q), *last)
    return x, solved.astype(bool)


def solve_small(library, equations: Equations, positive: bool, threads: int):
    """The solutions, the largest residual and what is left; None where one is not regular."""
    a, b, q = equations
    count, k, d = q.shape
    x, worst, left = np.full_like(q, np.nan), np.zeros(1), np.zeros(count, np.int32)
    last = ctypes.c_double(EPS), int(positive), threads, *_pointers(x, worst, left)
    found = library.solve_small(k, d, count, *_pointers(a, b, q), *last)
    return None if found < 0 else (x, worst[0], left[:found])


@st.composite
def equations(draw: st.DrawFn) -> tuple[Equations, bool]:
    """Batches with spectra clear of each other, of kinds that QL iterations find hard as well."""
    k = draw(st.integers(1, 12) | st.just(33))
    d = draw(st.integers(k, k + 9))
    count = draw(st.integers(1, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    positive = draw(st.booleans())
    size = 10.0 ** draw(st.sampled_from([-40, 0, 0, 40]))
    a, b = np.empty((count, k, k)), np.empty((count, d, d))
    for i in range(count):
        kind = rng.choice(["spread", "repeated", "diagonal", "graded", "low rank"])
        for matrix, n, low in ((a[i], k, 0.5), (b[i], d, 0.0)):
            values = rng.uniform(low, 2, n)
            if kind == "repeated":
                values = rng.choice([low, 1.0, 2.0], n)
            elif kind == "graded":
                values = low + 10.0 ** -rng.uniform(0, 20, n)
            elif kind == "low rank":
                values = np.where(np.arange(n) < (n + 1) // 2, values, low)
            matrix[...] = np.diag(values) if kind == "diagonal" else hermitian(rng, values)
        if not positive:
            sign = rng.choice([-1.0, 1.0])
            a[i] *= sign
            # The spectrum of A on both sides of that of -B, or all on one.
            b[i] = b[i] * sign if rng.integers(2) else (b[i] - 1) * 0.1 * np.eye(d)
    q = rng.standard_normal((count, k, d))
    return (a * size, b * size, q * size), positive


@given(problem=equations())
def test_every_kernel_solves_to_the_same_bits(library, problem) -> None:
    (a, b, q), positive = problem
    first, solved = solve_with(library, 0, (a, b, q), positive)
    for i in range(len(q)):
        of_a, of_b = np.linalg.eigvalsh(a[i]), np.linalg.eigvalsh(b[i])
        distance = np.abs(of_a[:, None] + of_b).min()
        if positive:  # eigenvalues near zero are looked at, too
            distance = min(distance, of_a[0], of_b[0])
        if distance > 1e-3 * (np.abs(of_a).max() + np.abs(of_b).max()):
            assert solved[i]
        # The bound of the public solver is 1e-12; rounding of 33 x 42 products is a few 1e-16.
        assert not solved[i] or residual(a[i], b[i], q[i], first[i]) <= 2e-15
    for kernel in range(1, library.kernel_count()):
        x, same = solve_with(library, kernel, (a, b, q), positive)
        assert np.array_equal(same, solved)
        assert np.array_equal(x[solved], first[solved])
    for threads in (1, 3):
        found = solve_small(library, (a, b, q), positive, threads)
        assert found is not None
        assert np.array_equal(found[0][solved], first[solved])
        assert found[2].tolist() == np.flatnonzero(~solved).tolist()
        assert found[1] <= 1e-15 or not solved.any()


def _clear(count: int, k: int, d: int) -> Equations:
    rng = np.random.default_rng(k + d)
    a = np.array([hermitian(rng, rng.uniform(0.5, 2, k)) for _ in range(count)])
    b = np.array([hermitian(rng, rng.uniform(0.5, 2, d)) for _ in range(count)])
    return a, b, rng.standard_normal((count, k, d))


@pytest.mark.parametrize("kind", ["nearly singular", "semi-definite", "negative", "huge", "tiny"])
def test_what_has_to_be_judged_is_left_and_costs_its_companions_nothing(library, kind) -> None:
    positive = kind in ("semi-definite", "negative")
    a, b, q = _clear(7, 5, 6)
    expected, solved = solve_with(library, 0, (a, b, q), positive)
    assert solved.all()
    rng = np.random.default_rng(0)
    if kind == "nearly singular":
        b[2] = hermitian(rng, np.append(-np.linalg.eigvalsh(a[2])[1] * (1 + 1e-10), np.ones(5)))
    elif kind == "semi-definite":
        a[2], b[2] = np.diag([0.0, 0, 1, 2, 3]), np.diag([0.0, 0, 0, 1, 2, 3])
    elif kind == "negative":
        b[2] -= 0.7 * np.eye(6)
    else:
        a[2] *= 1e200 if kind == "huge" else 1e-200
        b[2] *= 1e200 if kind == "huge" else 1e-200
    for kernel in range(library.kernel_count()):
        x, solved = solve_with(library, kernel, (a, b, q), positive)
        assert np.flatnonzero(~solved).tolist() == [2]
        assert np.array_equal(x[solved], expected[solved])


def test_callers_precision_decides_what_is_clear(library) -> None:
    a, b = np.diag([1.0, 2.0])[None], np.diag([-1 + 1e-5, 3.0])[None]
    q = np.ones((1, 2, 2))
    assert solve_with(library, 0, (a, b, q), False)[1].all()
    assert not solve_with(library, 0, (a, b, q), False, float(np.finfo(np.float32).eps))[1].any()


@pytest.mark.parametrize("operand", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 6])
def test_entries_that_are_not_finite_are_found(library, operand, value, at) -> None:
    problem = _clear(7, 3, 4)
    problem[operand][at, -1, -1] = value
    assert solve_small(library, problem, False, 2) is None


@pytest.mark.parametrize("operand", [0, 1])
def test_one_bit_of_asymmetry_is_found(library, operand) -> None:
    problem = _clear(7, 40, 45)
    entries = problem[operand][5]
    entries[-1, 1] = np.nextafter(entries[-1, 1], 9)
    assert solve_small(library, problem, False, 2) is None


@pytest.mark.parametrize("size", [1, 2, LARGEST - 1, LARGEST])
def test_smallest_and_largest_sizes(library, size) -> None:
    for k in {1, size}:
        a, b, q = _clear(3, k, size)
        for kernel in range(library.kernel_count()):
            x, solved = solve_with(library, kernel, (a, b, q), True)
            assert solved.all()
            for i in range(3):
                assert residual(a[i], b[i], q[i], x[i]) <= 2e-15
