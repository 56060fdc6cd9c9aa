"""bench/gpu/leading.py with the stand-in for cuSOLVER, on CPU tensors."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import fake_cuda
import pytest
import torch
from build_helpers import ROOT, toolkit
from gpu import eigen, leading
from gpu.context import Context
from torch import Tensor

from sylvinit.backends import extension

# Jacobi rotations and LAPACK are backward stable: n eps of the largest eigenvalue, which is 1.
CLOSE = 1e-13


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    try:
        compiler, found = toolkit.host_compiler(), toolkit.find_toolkit()
    except toolkit.BuildError as error:
        pytest.skip(f"the stand-in is not built: {error}")
    path = tmp_path_factory.mktemp("fake") / "cusolver.so"
    source = str(ROOT / "tests" / "csrc" / "fake_cusolver.cpp")
    command = [*compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", source]
    command += ["-DFAKE_MAJOR=12", "-DFAKE_BATCHED=1", "-Wl,-Bsymbolic"]
    command += [f"-isystem{folder}" for folder in found.includes]
    subprocess.run([*command, "-o", str(path)], check=True)
    return str(path)


@pytest.fixture
def opened(path: str, monkeypatch: pytest.MonkeyPatch) -> leading.Library:
    stream = SimpleNamespace(cuda_stream=16)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    return leading.Library(path)


def matrix(kind: str, n: int) -> Tensor:
    """Symmetric, with a largest eigenvalue of 1."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    index = torch.arange(n)
    values = torch.logspace(0, -2, n, dtype=torch.float64)
    if kind == "clustered":
        values = values[index // 3 * 3] * (1 - 1e-9 * (index % 3))
    elif kind == "repeated":
        values = values[index // 4 * 4]
    elif kind == "zero":
        values = torch.where(index < n // 2, values, 0.0)
    a = vectors * values @ vectors.mT
    return (a + a.mT) / 2


@pytest.mark.parametrize("kind", ["spread", "clustered", "repeated", "zero"])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_the_largest(opened: leading.Library, kind: str, count: int) -> None:
    a = matrix(kind, 12)
    call = leading.Leading(a, count, opened)
    for _ in range(2):  # the matrix is still there
        call()
        values, vectors = call.result()
        expected = torch.linalg.eigvalsh(a)[-count:]
        torch.testing.assert_close(values, expected, rtol=0, atol=CLOSE)
        torch.testing.assert_close(a @ vectors, vectors * values, rtol=0, atol=CLOSE)
        eye = torch.eye(count, dtype=torch.float64)
        torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=CLOSE)


def test_failures(opened: leading.Library) -> None:
    """See fake_cusolver.cpp for the eigenvalues that it fails for."""
    cases = {13.0: "info 3, 2 of 2", 17.0: "info 0, 1 of 2"}
    for largest, message in cases.items():
        call = leading.Leading(torch.diag(torch.tensor([1, 2, largest]).double()), 2, opened)
        call()
        with pytest.raises(RuntimeError, match=message):
            call.result()
    with pytest.raises(RuntimeError, match="Xsyevdx_bufferSize returned status 3"):
        leading.Leading(torch.eye(3, dtype=torch.float64), 4, opened)


@pytest.mark.parametrize("kind", ["spread", "clustered", "repeated", "zero"])
def test_rank_by_inertia(kind: str) -> None:
    a = matrix(kind, 40)
    values = torch.linalg.eigvalsh(a)
    for threshold in (1e-12, 0.05, 0.3, 1.5):
        assert leading.rank_above(a, threshold) == int((values > threshold).sum())
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # one block of two pivots
    assert leading.rank_above(swap, 0.0) == 1


def test_the_step(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch)
    monkeypatch.setattr(extension, "reason", lambda: "")
    monkeypatch.setattr(eigen, "library", lambda: leading.Library(path))
    context = Context(dry=True)
    eigen.run(context)
    assert "failures" not in context.results
    (row,) = context.results["leading"]
    assert row["rank_found"] == row["rank_expected"] == 2
    assert max(row["value_error"], row["defect"]) < CLOSE
    assert row["largest_over_whole"] > 0
