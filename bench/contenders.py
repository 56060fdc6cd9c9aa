"""Solvers of A X + X B = Q that are measured against each other, and problems for them.

JAX takes part if it is installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax_process
import numpy as np
import scipy.linalg
import scipy.linalg.lapack
import threadpoolctl
import torch
from jax_process import JaxProcess
from torch import Tensor

import sylvinit

POOLS = threadpoolctl.ThreadpoolController()  # of the libraries that are loaded by now
ALL_THREADS = torch.get_num_threads()
THREADS = sorted({1, ALL_THREADS})


def libraries() -> dict[str, Any]:
    """Of what is compared: JAX's version, and the BLAS and OpenMP libraries with their threads."""
    jax = metadata.version("jax") if jax_process.AVAILABLE else None
    pools = POOLS.info()
    for pool in pools:
        pool["file"] = Path(pool.pop("filepath")).name
    return {"jax": jax, "pools": pools}


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """BLAS and torch with this many threads; None: as they are."""
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    with POOLS.limit(limits=threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class Problem(NamedTuple):
    """A (..., k, k), B (..., d, d), Q = A X + X B and X (..., k, d), float64."""

    a: Tensor
    b: Tensor
    q: Tensor
    x: Tensor

    def error(self, x: Any) -> float:
        """|x - X| / |X|, largest over the batch."""
        found = x if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
        norm = torch.linalg.matrix_norm
        return float((norm(found.detach() - self.x) / norm(self.x)).max())


@dataclass(frozen=True)
class Contender:
    """What is timed. Without `threads` it runs as a user would call it, with all of them."""

    name: str
    call: Callable[[], Any]
    threads: int | None = None
    process: JaxProcess | None = None

    @property
    def label(self) -> str:
        return self.name if self.threads is None else f"{self.name}, {self.threads} thr"

    def timed(self, calls: int = 1) -> tuple[Any, float]:
        """The result and the mean seconds of a call; TimeoutError where a process is stuck."""
        if self.process is not None:
            return self.process.timed(calls)
        result = None
        begin = time.perf_counter()
        for _ in range(calls):
            result = self.call()
        return result, (time.perf_counter() - begin) / calls

    def close(self) -> None:
        if self.process is not None:
            self.process.close()


def covariance(n: int, batch: tuple[int, ...], rank: int, generator: torch.Generator) -> Tensor:
    """(*batch, n, n) positive semi-definite, eigenvalues around 1."""
    x = torch.randn(*batch, n, rank, dtype=torch.float64, generator=generator)
    c = x @ x.mT / rank
    return (c + c.mT) / 2


def positive(k: int, d: int, batch: tuple[int, ...] = (), *, deficient: bool = False) -> Problem:
    """Covariances of twice as many samples as dimensions, or (deficient) of half as many."""
    generator = torch.Generator().manual_seed(k * d)
    a, b = (covariance(n, batch, n // 2 if deficient else 2 * n, generator) for n in (k, d))
    x = torch.randn(*batch, k, d, dtype=torch.float64, generator=generator)
    if deficient:
        x = a @ x  # nothing in the null spaces: the minimum-norm solution
    return Problem(a, b, a @ x + x @ b, x)


def general(k: int, d: int, batch: tuple[int, ...] = ()) -> Problem:
    """Unsymmetric matrices, eigenvalues in the disc of radius 1 around 2."""
    generator = torch.Generator().manual_seed(k * d)

    def matrix(n: int) -> Tensor:
        g = torch.randn(*batch, n, n, dtype=torch.float64, generator=generator)
        return g / n**0.5 + 2 * torch.eye(n, dtype=torch.float64)

    a, b = matrix(k), matrix(d)
    x = torch.randn(*batch, k, d, dtype=torch.float64, generator=generator)
    return Problem(a, b, a @ x + x @ b, x)


def scipy_solve(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """scipy.linalg.solve_sylvester, in a loop over a batch."""
    if a.ndim == 2:
        return torch.from_numpy(scipy.linalg.solve_sylvester(a.numpy(), b.numpy(), q.numpy()))
    return torch.stack([scipy_solve(*matrices) for matrices in zip(a, b, q, strict=True)])


def eigh_twice(a: Tensor, b: Tensor, q: Tensor, *, drop: bool = False) -> Tensor:
    """What a user would write; with `drop`, rounding among the eigenvalues counts as zero."""
    values_a, u = torch.linalg.eigh(a)
    values_b, v = torch.linalg.eigh(b)
    sums = values_a[..., :, None] + values_b[..., None, :]
    if drop:
        eps = torch.finfo(sums.dtype).eps * max(q.shape[-2:])
        sums = torch.where(sums > eps * sums.amax((-2, -1), keepdim=True), sums, torch.inf)
    return u @ ((u.mH @ q @ v) / sums) @ v.mH


def ours(problem: Problem, structure: str) -> Contender:
    a, b, q, _ = problem
    return Contender(structure, lambda: sylvinit.solve_sylvester(a, b, q, assume_a=structure), None)


def scipy_contenders(problem: Problem) -> list[Contender]:
    call = partial(scipy_solve, *problem[:3])
    return [Contender("scipy", call, threads) for threads in THREADS]


def eigh_contenders(problem: Problem, *, drop: bool = False) -> list[Contender]:
    call = partial(eigh_twice, *problem[:3], drop=drop)
    return [Contender("eigh twice", call, threads) for threads in sorted({1, ALL_THREADS})]


def jax_contenders(problem: Problem, methods: tuple[str, ...]) -> list[Contender]:
    """Methods of jax.scipy.linalg.solve_sylvester, compiled, on the CPU; close() them."""
    if not jax_process.AVAILABLE:
        return []
    found = []
    for method in methods:
        process = JaxProcess(method, tuple(x.numpy() for x in problem[:3]))
        call = partial(process.timed, 1)
        found.append(Contender(f"jax {method}", call, None, process))
    return found


def reduction_contenders(problem: Problem) -> list[Contender]:
    """The floor of a one-off solve: LAPACK's dsytrd of the larger matrix."""
    matrix = np.asfortranarray(max(problem.a, problem.b, key=len).numpy())
    size, _ = scipy.linalg.lapack.dsytrd_lwork(len(matrix), lower=1)
    call = partial(scipy.linalg.lapack.dsytrd, matrix, lower=1, lwork=int(size))
    return [Contender("dsytrd", call, threads) for threads in THREADS]
