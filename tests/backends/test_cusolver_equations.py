"""Equations and layers on cuSOLVER agree with those on the CPU: on CPU tensors, see fake_cuda."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sylvinit
from sylvinit.backends import Backend, cusolver, eigen, kernels
from sylvinit.backends.eigen import Thresholds
from sylvinit.codes import get_code
from sylvinit.moments.statistics import layer_statistics
from sylvinit.solve.equation import solve_layer
from sylvinit.sylvester import lapack
from sylvinit.sylvester import spectral as users
from sylvinit.sylvester.semidefinite import solve_positive

CUDA = Backend(
    "cuda", ("cuda",), "", lambda _: "", cusolver.eigh, cusolver.eigh_pair, kernels.divide
)
CPU = Backend("cpu", ("cpu",), "")


def symmetric(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + x.mT


def positive(batch: int, n: int, rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, rank, generator=generator, dtype=torch.float64)
    return x @ x.mT / n


@pytest.mark.parametrize(("k", "d"), [(1, 1), (6, 20), (20, 6), (9, 9)])
@pytest.mark.parametrize("rank", [1, 4, 30])
def test_equations_agree_with_the_cpu(module, k, d, rank) -> None:
    a, b = positive(3, k, rank, 0), positive(3, d, rank, 1)
    q = torch.randn(3, k, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    thresholds = Thresholds(*(torch.full((3,), 1e-13).double() for _ in range(2)))
    expected = solve_positive(a, b, q, thresholds, CPU)
    found = solve_positive(a, b, q, thresholds, CUDA)
    assert module.calls
    assert found.dropped == expected.dropped == 3 * max(k - rank, 0) * max(d - rank, 0)
    assert found.residual < 1e-14
    assert float((found.w - expected.w).norm() / expected.w.norm()) < 1e-9


@pytest.mark.parametrize("code", ["pca", "lda", "kmeans", "onehot"])
def test_layers_agree_with_the_cpu(module, code) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 12, generator=generator, dtype=torch.float64)
    x[..., 8:] = x[..., :4]  # rank 8
    x = x * torch.linspace(1, 3, 12) + 1
    moments = sylvinit.PatchMoments(12, groups=2, classes=5, reservoir=300)
    moments.update(x, torch.arange(300) % 5)
    found, expected = (
        solve_layer(layer_statistics(moments, row), get_code(code), 5, 10.0, seed=0)
        for row in (CUDA, CPU)
    )
    assert module.calls
    assert float((found.weight - expected.weight).norm() / expected.weight.norm()) < 1e-9
    assert found.rank == expected.rank == 8
    assert found.notes == expected.notes


def test_the_division_of_the_row_is_the_kernels(module) -> None:
    c, a, b = symmetric(2, 5, 5), symmetric(2, 5, 5)[..., 0], symmetric(2, 5, 5, seed=3)[..., 0]
    thresholds = Thresholds(torch.full((2,), 0.5).double(), torch.full((2,), 0.3).double())
    expected = eigen.divide(c, a, b, thresholds)
    found = CUDA.divide(c.clone(), a, b, thresholds)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert not expected[1].all()


@pytest.mark.parametrize("assume", ["sym", "pos"])
@pytest.mark.parametrize(("k", "d"), [(8, 8), (5, 14)])
def test_users_equations_agree_with_the_cpu(module, monkeypatch, assume, k, d) -> None:
    a, b = positive(4, k, 20, 0), positive(4, d, 20, 1)
    q = torch.randn(4, k, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = sylvinit.solve_sylvester(a, b, q, assume_a=assume)
    assert module.calls == []
    monkeypatch.setattr(lapack, "AVAILABLE", False)
    monkeypatch.setattr(users, "choose", lambda name, device: CUDA)
    found = sylvinit.solve_sylvester(a, b, q, assume_a=assume)
    assert len(module.calls) == (1 if k == d else 2)
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    none = sylvinit.solve_sylvester(a[:0], b[:0], q[:0], assume_a=assume)
    assert none.shape == (0, k, d)
