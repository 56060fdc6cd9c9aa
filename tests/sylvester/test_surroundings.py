"""What surrounds a call must neither change its result nor be changed by it."""

from __future__ import annotations

import threading

import pytest
import torch
from threadpoolctl import threadpool_info

import sylvinit

pytestmark = pytest.mark.threads(2)

STRUCTURES = ("gen", "sym", "pos")


def equation(
    structure: str, k: int, d: int, batch: tuple[int, ...], dtype: torch.dtype
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(k + d)
    found = []
    for n in (k, d):
        x = torch.randn(*batch, n, n, dtype=dtype, generator=generator)
        found.append(
            x @ x.mT / n + torch.eye(n) if structure != "gen" else x + 3 * n * torch.eye(n)
        )
        if structure != "gen":
            found[-1] = (found[-1] + found[-1].mT) / 2
    return [*found, torch.randn(*batch, k, d, dtype=dtype, generator=generator)]


def _blas() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_default_device(structure: str) -> None:
    a, b, _ = equation(structure, 4, 6, (1,), torch.float64)
    q = torch.randn(30, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sylvinit.solve_sylvester(a, b, q, assume_a=structure)
    torch.set_default_device("meta")
    try:
        found = sylvinit.solve_sylvester(a, b, q, assume_a=structure)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)


def test_callers_on_many_threads_give_blas_its_threads_back() -> None:
    before, errors = _blas(), []

    def work(count: int) -> None:
        a, b, q = equation("pos", 60, 60, (count,), torch.float64)
        for _ in range(10):
            x = sylvinit.solve_sylvester(a, b, q, assume_a="pos")
            errors.append(float(sylvinit.sylvester_residual(a, b, q, x).max()))

    workers = [threading.Thread(target=work, args=(count,)) for count in (3, 4, 5, 7)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(errors) == 40
    assert max(errors) < 1e-15 * 10  # measured 3e-16
    assert _blas() == before


def test_autocast_leaves_derivatives_alone() -> None:
    a, b, q = (x.requires_grad_() for x in equation("gen", 20, 30, (), torch.float32))
    x = sylvinit.solve_sylvester(a, b, q)
    weights = torch.ones_like(x)
    expected = torch.autograd.grad(x, (a, b, q), weights, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(sylvinit.solve_sylvester(a, b, q), (a, b, q), weights)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_lowrank_solution_out_of_range() -> None:
    a, x = torch.full((1, 1), 1e-30), torch.zeros(1, 1)
    with pytest.raises(sylvinit.errors.SolverError, match="too large"):
        sylvinit.solve_sylvester_lowrank(a, x, torch.full((1, 1), 1e30))
