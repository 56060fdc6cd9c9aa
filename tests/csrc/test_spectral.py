"""csrc/cuda/spectral.cu on host threads: against its reference, against torch, under sanitizers."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from compiler import find_compiler
from torch import Tensor

from sylvinit.backends import eigen
from sylvinit.backends.eigen import Thresholds

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = [str(CSRC / "cuda" / "spectral.cu"), str(HERE / "spectral_entry.cpp")]
NAN, INF = float("nan"), float("inf")


def compile_kernels(output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    includes = [f"-I{path}" for path in (HERE / "shim", CSRC, CSRC / "cuda")]
    command = [find_compiler(), "-std=c++20", "-pthread", "-Wall", "-Wextra", "-Werror", *flags]
    command += [*includes, "-x", "c++", *SOURCES, "-o", str(output)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module", params=["as built", "two blocks"])
def library(request, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels; with two blocks each takes every other slice."""
    path = tmp_path_factory.mktemp("csrc") / "spectral.so"
    blocks = ["-DSYLVINIT_SPECTRAL_BLOCKS=2"] if request.param == "two blocks" else []
    done = compile_kernels(path, "-O2", "-shared", "-fPIC", *blocks)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(path))
    library.spectral_slices.argtypes = [ctypes.c_int64]
    library.spectral_slices.restype = ctypes.c_int64
    sizes, address = [ctypes.c_int64] * 2, ctypes.c_void_p
    library.scale_to_unit.argtypes = [ctypes.c_bool, *sizes, *[address] * 4]
    library.divide_positive.argtypes = [ctypes.c_bool, *sizes, ctypes.c_int64, *[address] * 7]
    return library


def scale(library: ctypes.CDLL, a: Tensor, reference: bool = False) -> tuple[Tensor, Tensor]:
    batch, entries = a.shape
    slices = library.spectral_slices(entries)
    # Whatever is not written stays as it is here.
    scaled, scale = torch.full_like(a, -7.0), torch.full((batch,), -7.0, dtype=torch.float64)
    partial = torch.full((batch * slices,), -7.0, dtype=torch.float64)
    arrays = (a, scaled, scale, partial)
    library.scale_to_unit(reference, batch, entries, *(x.data_ptr() for x in arrays))
    return scaled, scale


def divide(
    library: ctypes.CDLL, c: Tensor, a: Tensor, b: Tensor, thresholds: Thresholds, reference=False
) -> tuple[Tensor, Tensor]:
    batch, k, d = c.shape
    y, keep = torch.full_like(c, -7.0), torch.full(c.shape, 7, dtype=torch.uint8)
    arrays = (c, a, b, thresholds.a, thresholds.b, y, keep)
    library.divide_positive(reference, batch, k, d, *(x.data_ptr() for x in arrays))
    return y, keep


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


SLICE = 4096  # entries of a block, csrc/cuda/spectral.h


def test_slices(library) -> None:
    found = [library.spectral_slices(n) for n in (0, 1, SLICE, SLICE + 1, 4608**2, 2**40)]
    assert found == [1, 1, 1, 2, 1024, 1024]


@pytest.mark.parametrize(
    ("batch", "entries"), [(1, 1), (3, 2), (2, 127), (2, 128), (5, 129), (1, 4097), (3, 3 * 4099)]
)
def test_scale(library, batch, entries) -> None:
    a = random(batch, entries)
    largest = a.abs().amax(dim=1)
    for reference in (False, True):
        scaled, found = scale(library, a, reference)
        assert torch.equal(found, largest)
        assert torch.equal(scaled, a / largest[:, None])


def test_scale_of_what_cannot_be_scaled(library) -> None:
    a = random(6, 5000, seed=1)
    a[1] = 0
    a[2, 4999], a[3, 0], a[4, 17] = NAN, INF, -INF
    a[5] *= 1e-310  # subnormal
    for reference in (False, True):
        scaled, found = scale(library, a, reference)
        assert found[1] == 1
        assert found[[2, 3, 4]].isnan().all()
        assert (scaled[[1, 2, 3, 4]] == 0).all()
        assert torch.equal(found[[0, 5]], a[[0, 5]].abs().amax(dim=1))
        assert (scaled[[0, 5]].abs().amax(dim=1) == 1).all()


def test_scale_in_place(library) -> None:
    a = random(2, 5000)
    expected, _ = scale(library, a)
    found, partial = torch.empty(2, dtype=torch.float64), torch.empty(4, dtype=torch.float64)
    addresses = [x.data_ptr() for x in (a, a, found, partial)]
    library.scale_to_unit(False, 2, 5000, *addresses)
    assert torch.equal(a, expected)


@pytest.mark.parametrize(
    ("batch", "k", "d"),
    [(1, 1, 1), (2, 1, 300), (2, 300, 1), (3, 7, 5), (1, 64, 128), (2, 33, 129), (1, 130, 127)],
)
@pytest.mark.parametrize("dropped", ["none", "some", "all"])
def test_divide(library, batch, k, d, dropped) -> None:
    a, b, c = random(batch, k, seed=2), random(batch, d, seed=3), random(batch, k, d, seed=4)
    level = {"none": -INF, "some": 0.5, "all": INF}[dropped]
    if dropped == "none":  # sums of zeros would be divided by
        a = a.abs()
    thresholds = Thresholds(random(batch, seed=5).abs() + level, random(batch).abs() + level)
    expected, kept = eigen.divide(c, a, b, thresholds)
    for reference in (False, True):
        y, keep = divide(library, c, a, b, thresholds, reference)
        assert torch.equal(y, expected)
        assert torch.equal(keep.bool(), kept)
    if dropped != "some":
        assert bool(kept.any()) == (dropped == "none")


def test_negative_eigenvalues_count_as_zero(library) -> None:
    a = torch.tensor([[-1e-20, 2.0]], dtype=torch.float64)
    b = torch.tensor([[-3e-20, 0.0, 5.0]], dtype=torch.float64)
    threshold = torch.tensor([1e-15], dtype=torch.float64)
    c = torch.ones(1, 2, 3, dtype=torch.float64)
    y, keep = divide(library, c, a, b, Thresholds(threshold, threshold))
    assert y.tolist() == [[[0, 0, 0.2], [0.5, 0.5, 1 / 7]]]
    assert keep.tolist() == [[[0, 0, 1], [1, 1, 1]]]


@pytest.mark.parametrize("others", [0.0, INF], ids=["kept", "dropped"])
def test_eigenvalues_that_are_nan_are_seen(library, others) -> None:
    threshold = torch.full((1,), others, dtype=torch.float64)
    thresholds = Thresholds(threshold, threshold)
    for at in (0, 39):
        a, b, c = random(1, 40).abs(), random(1, 150).abs(), random(1, 40, 150)
        a[0, at] = NAN
        for reference in (False, True):
            for turned in (False, True):
                operands = (c.mT.contiguous(), b, a) if turned else (c, a, b)
                y, _ = divide(library, *operands, thresholds, reference)
                y = y.mT if turned else y
                assert torch.allclose(y, eigen.divide(c, a, b, thresholds)[0], equal_nan=True)
                assert y[0, at].isnan().all()
                assert int(y.isnan().sum()) == 150


def test_dropped_pairs_are_zero_whatever_was_there(library) -> None:
    a, b, c = random(1, 4), random(1, 5), torch.full((1, 4, 5), NAN, dtype=torch.float64)
    threshold = torch.full((1,), INF, dtype=torch.float64)
    for reference in (False, True):
        y, *_ = divide(library, c, a, b, Thresholds(threshold, threshold), reference)
        assert (y == 0).all()


def test_empty_batches_write_nothing(library) -> None:
    none = Thresholds(torch.empty(0), torch.empty(0))
    found = divide(library, random(0, 3, 4), random(0, 3), random(0, 4), none)
    assert [len(x) for x in found] == [0, 0]
    scaled, found = scale(library, random(2, 0))
    assert scaled.shape == (2, 0)
    assert (found == -7).all()


def test_the_same_bits_again(library) -> None:
    a, b, c = random(2, 70), random(2, 130), random(2, 70, 130)
    thresholds = Thresholds(torch.ones(2).double(), torch.ones(2).double())
    first, second = (divide(library, c, a, b, thresholds) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_under_a_sanitizer(tmp_path, sanitizer) -> None:
    flags = ["-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    compiler = os.environ.get("CXX") or "c++"
    probe = [compiler, *flags, str(empty), "-o", str(tmp_path / "empty")]
    if shutil.which(compiler) is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip(f"the C++ compiler has no -fsanitize={sanitizer}")
    program = tmp_path / "spectral"
    done = compile_kernels(program, *flags, "-DSPECTRAL_MAIN", "-DSYLVINIT_SPECTRAL_BLOCKS=2")
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "same\n"), ran.stderr
