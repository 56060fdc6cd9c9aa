"""Eigendecompositions and the division on a GPU, against float64 on the CPU."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch
from torch import Tensor

import sylvinit
from sylvinit.backends import choose, cusolver, eigen, extension, kernels
from sylvinit.backends.eigen import Thresholds
from sylvinit.errors import DeviceMemoryError, SolverError
from sylvinit.sylvester import shifted
from sylvinit.sylvester.semidefinite import solve_positive

pytestmark = pytest.mark.skipif(not extension.available(), reason=extension.reason())

DEVICE = "cuda"
# Backward error of a decomposition of a matrix of unit size, and of its eigenvectors'
# orthogonality: n eps, with room for the constant of another algorithm.
CLOSE = 1e-12
SIZES = [(1, 1), (2, 1), (1, 2), (7, 3), (33, 5), (64, 2), (100, 40), (129, 1), (300, 3), (1000, 1)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive(batch: int, n: int, kind: str, seed: int = 0) -> Tensor:
    """On the CPU: of full rank, of a third of it, graded over 16 decades, or the identity."""
    random = partial(torch.randn, generator=generator(seed), dtype=torch.float64)
    if kind == "graded":
        vectors = torch.linalg.qr(random(batch, n, n)).Q
        values = torch.logspace(0, -16, n, dtype=torch.float64)
        a = vectors * values @ vectors.mT
    elif kind == "equal":
        a = torch.eye(n, dtype=torch.float64).expand(batch, n, n)
    else:
        x = random(batch, n, max(1, n // 3) if kind == "low rank" else n + 5)
        a = x @ x.mT / n
    return (a + a.mT) / 2


def assert_decomposition(a: Tensor, values: Tensor, vectors: Tensor) -> None:
    values, vectors = values.cpu(), vectors.cpu()
    size = a.abs().amax(dim=(-2, -1), keepdim=True)
    product = vectors * values[..., None, :] @ vectors.mT
    n = a.shape[-1]
    assert float(((product - a) / size).abs().amax()) < CLOSE * n
    eye = torch.eye(n, dtype=torch.float64)
    assert float((vectors.mT @ vectors - eye).abs().amax()) < CLOSE * n
    assert bool((values.diff(dim=-1) >= 0).all())
    expected = torch.linalg.eigvalsh(a)
    assert float(((values - expected) / size[..., 0]).abs().amax()) < CLOSE * n


def test_the_row_is_the_one_that_is_chosen() -> None:
    row = choose("auto", torch.device(DEVICE, torch.cuda.current_device()))
    assert row.name == "cuda"
    assert cusolver.library().version >= (11, 0, 0)


@pytest.mark.parametrize("kind", ["full", "low rank", "graded", "equal"])
@pytest.mark.parametrize(("n", "batch"), SIZES)
@pytest.mark.parametrize("routine", ["chosen", "xsyevd", "xsyev_batched", "syevj_batched"])
def test_decompositions(monkeypatch, n, batch, kind, routine) -> None:
    if routine != "chosen":
        if routine == "xsyev_batched" and not cusolver.library().xsyev_batched:
            pytest.skip(f"cuSOLVER {cusolver.library().version} has no XsyevBatched")
        if routine == "syevj_batched" and n > 300:
            pytest.skip("sweeps over one large matrix may take longer than there is time")
        alone = [rule for rule in cusolver.RULES if rule.routine == routine][:1]
        monkeypatch.setattr(cusolver, "routines_for", lambda *_: alone)
    a, notes = positive(batch, n, kind), []
    for scale in (1.0, 1e-200, 1e200):
        values, vectors = cusolver.eigh((scale * a).to(DEVICE), notes)
        assert_decomposition(a, values / scale, vectors)
    assert notes == []  # else the host has computed what the routine should


def test_empty() -> None:
    for shape in ((0, 0), (3, 0, 0), (0, 4, 4)):
        values, vectors = cusolver.eigh(torch.zeros(shape, dtype=torch.float64, device=DEVICE))
        assert values.shape == shape[:-1]
        assert vectors.shape == shape


def test_many_small_matrices() -> None:
    a = positive(40_000, 3, "full")
    assert_decomposition(a, *cusolver.eigh(a.to(DEVICE)))


def test_values_that_are_not_finite() -> None:
    a = positive(3, 40, "full").to(DEVICE)
    a[1, 2, 3] = float("nan")
    with pytest.raises(SolverError, match="NaN or infinite"):
        cusolver.eigh(a)
    assert_decomposition(
        positive(3, 40, "full"), *cusolver.eigh(positive(3, 40, "full").to(DEVICE))
    )


@pytest.mark.parametrize(("k", "d"), [(9, 9), (16, 144), (64, 576), (200, 30)])
def test_two_at_a_time_on_any_stream(k, d) -> None:
    """Other work between the calls reuses memory that is freed too early."""
    a, b = positive(2, k, "full", 1), positive(2, d, "low rank", 2)
    stream = torch.cuda.Stream()
    for _ in range(10):
        with torch.cuda.stream(stream):
            on_a, on_b = (x.to(DEVICE, non_blocking=True) for x in (a, b))
            of_a, of_b = cusolver.eigh_pair(on_a, on_b)
            del on_a, on_b
            torch.full((d, d), float("nan"), dtype=torch.float64, device=DEVICE)
        stream.synchronize()
        assert_decomposition(a, *of_a)
        assert_decomposition(b, *of_b)


def test_the_same_bits_again() -> None:
    for n, batch in ((100, 20), (300, 1)):
        a = positive(batch, n, "low rank").to(DEVICE)
        first, second = cusolver.eigh(a), cusolver.eigh(a)
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("batch", "k", "d"), [(1, 1, 1), (3, 7, 5), (2, 33, 129), (1, 512, 4608), (5000, 3, 2)]
)
def test_division(batch, k, d) -> None:
    random = partial(torch.randn, generator=generator(0), dtype=torch.float64)
    c, a, b = random(batch, k, d), random(batch, k), random(batch, d)
    thresholds = random(batch).abs() + 0.1, random(batch).abs() + 0.1
    expected = eigen.divide(c, a, b, Thresholds(*thresholds))
    on_gpu = Thresholds(*(x.to(DEVICE) for x in thresholds))
    found = kernels.divide(c.to(DEVICE), a.to(DEVICE), b.to(DEVICE), on_gpu)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("n", [1, 64, 65, 700])
def test_scaling(n) -> None:
    a = positive(4, n, "full")
    a[1] = 0
    scaled, scale = (x.cpu() for x in kernels.scale_to_unit(a.to(DEVICE)))
    largest = a.abs().amax(dim=(1, 2))
    largest[1] = 1
    assert torch.equal(scale, largest)
    assert torch.equal(scaled, a / largest[:, None, None])


@pytest.mark.parametrize("kinds", [("full", "full"), ("low rank", "low rank"), ("graded", "full")])
@pytest.mark.parametrize(("k", "d"), [(16, 27), (40, 40), (128, 1152)])
def test_equations(k, d, kinds) -> None:
    """The minimum-norm solution, with the zero rule, as on the CPU."""
    a, b = positive(2, k, kinds[0], 1), positive(2, d, kinds[1], 2)
    q = torch.randn(2, k, d, generator=generator(3), dtype=torch.float64)
    thresholds = [torch.full((2,), 1e-12, dtype=torch.float64) for _ in range(2)]
    operands = (a, b, q)
    expected = solve_positive(*operands, Thresholds(*thresholds), choose("cpu", a.device))
    row = choose("cuda", torch.device(DEVICE, torch.cuda.current_device()))
    on_gpu = Thresholds(*(x.to(DEVICE) for x in thresholds))
    found = solve_positive(*(x.to(DEVICE) for x in operands), on_gpu, row)
    assert found.dropped == expected.dropped
    assert found.residual < 1e-12
    # Eigenvalues just above the threshold of 1e-12 are accurate to eps in units of the largest.
    error = (found.w.cpu() - expected.w).norm() / expected.w.norm()
    assert float(error) < (1e-3 if "graded" in kinds else 1e-9)


@pytest.mark.parametrize("assume", ["sym", "pos"])
def test_users_equations(assume) -> None:
    """A large batch of one size, which is decomposed at once, and one of two sizes."""
    for batch, k, d in ((500, 100, 100), (20, 30, 90)):
        a, b = positive(batch, k, "full", 1), positive(batch, d, "full", 2)
        q = torch.randn(batch, k, d, generator=generator(3), dtype=torch.float64)
        expected = sylvinit.solve_sylvester(a, b, q, assume_a=assume)
        found = sylvinit.solve_sylvester(*(x.to(DEVICE) for x in (a, b, q)), assume_a=assume)
        assert found.device.type == DEVICE
        assert float((found.cpu() - expected).norm() / expected.norm()) < 1e-10


@pytest.mark.parametrize(("batch", "k", "d"), [(3, 5, 200), (1, 150, 20), (2, 128, 128)])
def test_users_general_equations(batch, k, d) -> None:
    """Shifted systems on the GPU; and equations that are left to the host."""
    a, b, q = (
        torch.randn(batch, m, n, generator=generator(1), dtype=torch.float64)
        for m, n in ((k, k), (d, d), (k, d))
    )
    for shift, apart in ((4 * d**0.5, True), (0.0, False)):
        left = a + shift * torch.eye(k)
        expected = sylvinit.solve_sylvester(left, b, q)
        on_gpu = [x.to(DEVICE) for x in (left, b, q)]
        found = sylvinit.solve_sylvester(*on_gpu)
        assert float(sylvinit.sylvester_residual(*on_gpu, found).max()) < 1e-12
        if apart:
            assert shifted.pays(on_gpu[2])
            assert float((found.cpu() - expected).norm() / expected.norm()) < 1e-10


def test_out_of_memory_names_sizes_and_leaks_nothing() -> None:
    n = 8000
    a = torch.zeros((n, n), dtype=torch.float64, device=DEVICE)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    before = torch.cuda.memory_allocated()
    # Room for half a copy of the matrix.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    try:
        with pytest.raises(DeviceMemoryError, match=f"1 of size {n}"):
            cusolver.eigh(a)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()  # the frames of the exception
    assert torch.cuda.memory_allocated() == before
    del a
    torch.cuda.empty_cache()
