"""The Sylvester solver against other solvers, small sizes: pytest bench/bench_solver.py.

solver_speed.py has all sizes, JAX, targets, and rounds in which the contenders take turns.
"""

from __future__ import annotations

import contextlib

import contenders
import pytest
import torch
from contenders import Contender, Problem, limited, ours
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import sylvinit
from sylvinit.sylvester import lapack

SIZES = [(16, 27), (16, 144), (32, 288), (64, 576)]
BATCH = 500
# Equations in the batches of test_threads.
COUNT = 16
THREADED = [16, 32, 64, 128, 192, 256, 384, 512]
# Threads over the batch (0: all), and those of BLAS (None: as it finds them).
MANNERS: dict[str, tuple[int, int | None]] = {
    "over the batch and in BLAS": (0, None),
    "over the batch": (0, 1),
    "in BLAS": (1, None),
    "one thread": (1, 1),
}


def _choices(positive: bool) -> list[str]:
    """Contenders by label: small problems tell which there are."""
    make = _positive if positive else _general
    problem = contenders.positive(2, 2) if positive else contenders.general(2, 2)
    return [contender.label for contender in make(problem)]


def _positive(problem: Problem) -> list[Contender]:
    found = [ours(problem, "auto"), ours(problem, "pos")]
    return found + contenders.scipy_contenders(problem) + contenders.eigh_contenders(problem)


def _general(problem: Problem) -> list[Contender]:
    return [ours(problem, "gen"), *contenders.scipy_contenders(problem)]


def _run(benchmark: BenchmarkFixture, problem: Problem, found: list[Contender], label: str) -> None:
    contender = next(contender for contender in found if contender.label == label)
    with limited(contender.threads):
        assert problem.error(contender.call()) <= 1e-9
        benchmark(contender.call)


@pytest.mark.parametrize("contender", _choices(True))
@pytest.mark.parametrize(("k", "d"), SIZES)
def test_positive(benchmark: BenchmarkFixture, k: int, d: int, contender: str) -> None:
    benchmark.group = f"positive definite ({k}, {d})"
    problem = contenders.positive(k, d)
    _run(benchmark, problem, _positive(problem), contender)


@pytest.mark.parametrize("contender", _choices(False))
@pytest.mark.parametrize(("k", "d"), SIZES)
def test_general(benchmark: BenchmarkFixture, k: int, d: int, contender: str) -> None:
    benchmark.group = f"general ({k}, {d})"
    problem = contenders.general(k, d)
    _run(benchmark, problem, _general(problem), contender)


@pytest.mark.parametrize("contender", _choices(True))
def test_positive_batch(benchmark: BenchmarkFixture, contender: str) -> None:
    benchmark.group = f"positive definite, {BATCH} x (32, 32)"
    problem = contenders.positive(32, 32, (BATCH,))
    _run(benchmark, problem, _positive(problem), contender)


@pytest.mark.parametrize("contender", _choices(False))
def test_general_batch(benchmark: BenchmarkFixture, contender: str) -> None:
    benchmark.group = f"general, {BATCH} x (32, 32)"
    problem = contenders.general(32, 32, (BATCH,))
    _run(benchmark, problem, _general(problem), contender)


@pytest.mark.parametrize("what", ["forward", "forward and backward"])
@pytest.mark.parametrize("structure", ["pos", "gen"])
def test_gradient(benchmark: BenchmarkFixture, structure: str, what: str) -> None:
    benchmark.group = f"gradient, {structure} (64, 576)"
    problem = (contenders.positive if structure == "pos" else contenders.general)(64, 576)
    backward = what != "forward"
    a, b, q = (x.clone().requires_grad_(backward) for x in problem[:3])

    def run() -> None:
        x = sylvinit.solve_sylvester(a, b, q, assume_a=structure)
        if backward:
            torch.autograd.grad(x, (a, b, q), problem.x)

    benchmark(run)


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("n", THREADED)
@pytest.mark.parametrize("structure", ["pos", "gen"])
def test_threads(
    benchmark: BenchmarkFixture,
    monkeypatch: pytest.MonkeyPatch,
    structure: str,
    n: int,
    manner: str,
) -> None:
    """Why lapack.py shares batches out and holds BLAS back: a batch of 16 equations."""
    benchmark.group = f"threads, {structure}, {COUNT} x ({n}, {n})"
    over_batch, in_blas = MANNERS[manner]
    threads = over_batch or contenders.ALL_THREADS
    monkeypatch.setattr(lapack, "threads_for", lambda count, k, d: min(count, threads))
    monkeypatch.setattr(lapack, "blas_for", lambda *_: contextlib.nullcontext())
    problem = (contenders.positive if structure == "pos" else contenders.general)(n, n, (COUNT,))
    solve = ours(problem, structure).call
    with limited(in_blas):
        assert problem.error(solve()) <= 1e-9
        benchmark.pedantic(solve, rounds=5 if n > 128 else 20, warmup_rounds=1)


def test_lowrank(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "low rank 100 (64, 20000)"
    generator = torch.Generator().manual_seed(0)
    a = contenders.covariance(64, (), 128, generator)
    x = torch.randn(20000, 100, dtype=torch.float64, generator=generator) / 10
    w: Tensor = torch.randn(64, 20000, dtype=torch.float64, generator=generator)
    q = a @ w + (w @ x) @ x.mT
    found = benchmark(sylvinit.solve_sylvester_lowrank, a, x, q)
    assert Problem(a, x, q, w).error(found) <= 1e-9
