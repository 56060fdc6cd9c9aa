"""csrc/cuda/cusolver.cpp on the host, with a stand-in for cuSOLVER and with the real one.

Needs CUDA's headers, but no GPU and no driver.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROUTINES = ("xsyevd", "xsyev_batched", "syevj_batched")
WITH_RUNTIME = [str(HERE / "cusolver_entry.cpp"), str(ROOT / "csrc" / "cuda" / "cusolver.cpp")]


class Module:
    """The functions of cusolver_entry.cpp; each load has its own library and handles."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        size, address, text = ctypes.c_int64, ctypes.c_size_t, ctypes.c_char_p
        array = np.ctypeslib.ndpointer
        problem = [text, ctypes.c_int, address, size, size]
        for name, arguments in {
            "soname": [],
            "open_library": [text, array(np.int32)],
            "workspace": [*problem, ctypes.POINTER(ctypes.c_size_t)],
            "decompose": [
                *problem,
                array(np.float64),
                array(np.float64),
                array(np.int32),
                address,
                ctypes.c_size_t,
            ],
        }.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, text

    @property
    def soname(self) -> str:
        return self._library.soname().decode()

    def open(self, *candidates: Path | str) -> tuple[int, ...]:
        found = np.full(4, -1, dtype=np.int32)
        error = self._library.open_library("\n".join(map(str, candidates)).encode(), found)
        if error:
            raise RuntimeError(error.decode())
        return tuple(found.tolist())

    def workspace(self, routine: str, n: int, batch: int, device: int = 0, stream: int = 0) -> int:
        size = ctypes.c_size_t()
        arguments = (routine.encode(), device, stream, n, batch)
        error = self._library.workspace(*arguments, ctypes.byref(size))
        if error:
            raise RuntimeError(error.decode())
        return size.value

    def eigh(
        self, routine: str, a: np.ndarray, *, device: int = 0, stream: int = 0, short: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues, eigenvectors as columns, and codes; guards around what is written."""
        batch, n, _ = a.shape
        size = self.workspace(routine, n, batch, device, stream) - short
        rows = np.full(a.size + 2, 7.0)
        rows[1:-1] = a.ravel()
        values = np.full(batch * n + 1, 7.0)
        info = np.full(batch + 1, 7, dtype=np.int32)
        workspace = np.zeros(size + 1, dtype=np.uint8)
        error = self._library.decompose(
            *(routine.encode(), device, stream, n, batch),
            *(rows[1:], values, info, workspace.ctypes.data, size),
        )
        if error:
            raise RuntimeError(error.decode())
        assert (rows[0], rows[-1], values[-1], info[-1], workspace[-1]) == (7, 7, 7, 7, 0)
        vectors = rows[1:-1].reshape(a.shape).transpose(0, 2, 1)
        return values[:-1].reshape(batch, n), vectors, info[:-1]


@dataclass
class Build:
    """Compiles, and hands out a fresh copy of a library for each use."""

    folder: Path
    compiler: list[str]
    includes: list[str]
    count: int = 0

    def compile(self, name: str, sources: list[str], *flags: str) -> Path:
        output = self.folder / f"{name}.so"
        command = [*self.compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra"]
        command += ["-Werror", *flags, *self.includes, *sources, "-o", str(output), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return output

    def module(self) -> Module:
        self.count += 1
        copy = self.folder / f"module{self.count}.so"
        shutil.copy(self.folder / "entry.so", copy)
        return Module(copy)

    def fake(self, name: str, *flags: str) -> Path:
        """A stand-in for cuSOLVER; ``flags`` say what it lacks."""
        path = self.folder / f"{name}.so"
        if path.exists():
            return path
        major = Module(self.folder / "entry.so").soname.rsplit(".", 1)[1]
        defaults = [f"-DFAKE_MAJOR={major}", "-DFAKE_BATCHED=1", "-pthread"]
        overridden = {flag.split("=")[0] for flag in flags}
        kept = [flag for flag in defaults if flag.split("=")[0] not in overridden]
        return self.compile(name, [str(HERE / "fake_cusolver.cpp")], *kept, *flags)


@pytest.fixture(scope="module")
def toolkit():
    """Where CUDA's headers are."""
    sys.path.insert(0, str(ROOT))
    try:
        from buildtools import toolkit
    finally:
        sys.path.remove(str(ROOT))
    try:
        return toolkit.host_compiler(), toolkit.find_toolkit()
    except toolkit.BuildError as error:
        pytest.skip(f"cusolver.cpp is not tested: {error}")


@pytest.fixture(scope="module")
def build(toolkit, tmp_path_factory) -> Build:
    compiler, found = toolkit
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    includes += [f"-isystem{path}" for path in found.includes]
    build = Build(tmp_path_factory.mktemp("cusolver"), compiler, includes)
    # A torch with CUDA has loaded the real runtime; with -Bsymbolic the stand-in is taken.
    fake = ("-DFAKE_RUNTIME", "-Ddlopen=open_candidate", "-Wl,-Bsymbolic")
    build.compile("entry", WITH_RUNTIME, *fake, "-pthread")
    return build


def symmetric(batch: int, n: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((batch, n, n))
    return x + x.transpose(0, 2, 1)


# ------------------------------------------------------------------------------------- opening it


def test_candidates_are_tried_in_order(build) -> None:
    module, fake = build.module(), build.fake("complete")
    major = int(module.soname.rsplit(".", 1)[1])
    assert module.open(build.folder / "none.so", fake) == (major, 7, 1, 1)
    assert module.open() == (major, 7, 1, 1)  # the first answer holds


def test_nothing_to_open(build) -> None:
    module = build.module()
    with pytest.raises(RuntimeError, match=r"cuSOLVER \(libcusolver.*cannot be opened; tried"):
        module.open(build.folder / "none.so")
    with pytest.raises(RuntimeError, match=r"none\.so"):
        module.open(build.folder / "none.so")
    with pytest.raises(RuntimeError, match="has not been opened"):
        module.workspace("xsyevd", 3, 1)
    module.open(build.fake("complete"))  # a failure is not remembered


def test_another_major_version(build) -> None:
    with pytest.raises(RuntimeError, match=r"it is version 10\.7, but sylvinit was built for 1"):
        build.module().open(build.fake("old", "-DFAKE_MAJOR=10"))


def test_a_missing_function(build) -> None:
    with pytest.raises(RuntimeError, match="it has no function cusolverDnCreateParams"):
        build.module().open(build.fake("incomplete", "-DFAKE_INCOMPLETE"))


def test_without_the_batched_routine(build) -> None:
    module = build.module()
    assert module.open(build.fake("unbatched", "-DFAKE_BATCHED=0"))[3] == 0
    with pytest.raises(RuntimeError, match="has no cusolverDnXsyevBatched"):
        module.workspace("xsyev_batched", 3, 2)
    values, _, _ = module.eigh("xsyevd", symmetric(2, 3))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(symmetric(2, 3)), atol=1e-13)


# ------------------------------------------------------------------------------------- calling it


@pytest.mark.parametrize("routine", ROUTINES)
@pytest.mark.parametrize(("batch", "n"), [(1, 1), (1, 7), (5, 1), (4, 6)])
def test_decompositions(build, routine, batch, n) -> None:
    module, a = build.module(), symmetric(batch, n)
    module.open(build.fake("complete"))
    values, vectors, info = module.eigh(routine, a)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a), atol=1e-13)
    np.testing.assert_allclose(
        vectors * values[:, None] @ vectors.transpose(0, 2, 1), a, atol=1e-12
    )
    assert (info == 0).all()


@pytest.mark.parametrize("routine", ROUTINES)
def test_codes_belong_to_their_matrices(build, routine) -> None:
    module = build.module()
    module.open(build.fake("complete"))
    a = np.stack([np.diag([1.0, 2.0, largest]) for largest in (5, 13, 4)])
    assert module.eigh(routine, a)[2].tolist() == [0, 3, 0]  # 13: see fake_cusolver.cpp


@pytest.mark.parametrize("routine", ROUTINES)
def test_nothing_to_do(build, routine) -> None:
    module = build.module()
    module.open(build.fake("complete"))
    for batch, n in ((0, 3), (3, 0)):
        values, vectors, _ = module.eigh(routine, symmetric(batch, n))
        assert values.shape == (batch, n)
        assert vectors.shape == (batch, n, n)


@pytest.mark.parametrize("routine", ROUTINES)
def test_bad_arguments(build, routine) -> None:
    module = build.module()
    module.open(build.fake("complete"))
    with pytest.raises(RuntimeError, match="invalid argument: the workspace has"):
        module.eigh(routine, symmetric(2, 3), short=1)
    with pytest.raises(RuntimeError, match="invalid argument: sizes must not be negative"):
        module.workspace(routine, -1, 2)
    with pytest.raises(RuntimeError, match=r"cudaSetDevice\(7\): no such device"):
        module.workspace(routine, 3, 2, device=7)
    with pytest.raises(RuntimeError, match="invalid argument: routine must be xsyevd, "):
        module.workspace("xsyev", 3, 2)
    if routine == "syevj_batched":
        with pytest.raises(RuntimeError, match=r"n must be below 2\^31"):
            module.workspace(routine, 2**31, 2)


def test_a_handle_for_each_stream_and_one_call_at_a_time(build) -> None:
    """The stand-in fails where a handle changes its stream or is used by two calls at once."""
    module, fake, a = build.module(), build.fake("handles"), symmetric(3, 5)
    module.open(fake)
    places = [(device, stream) for device in (0, 1) for stream in (0, 16, 32)]
    with ThreadPoolExecutor(max_workers=6) as executor:
        jobs = [
            executor.submit(module.eigh, routine, a, device=device, stream=stream)
            for routine in ROUTINES
            for device, stream in places * 3
        ]
        for job in jobs:
            np.testing.assert_allclose(job.result()[0], np.linalg.eigvalsh(a), atol=1e-13)
    assert ctypes.CDLL(str(fake)).fake_handles() == len(places)


# ----------------------------------------------------------------------------- the real cuSOLVER


def test_the_real_library(toolkit, build) -> None:
    """Opens and tells its version; without a driver, its use is an error like any other."""
    _, found = toolkit
    entry = Module(build.folder / "entry.so")
    # Beside the headers: lib64 in a toolkit, lib in a wheel.
    folders = [i.parent / lib for i in found.includes for lib in ("lib", "lib64")]
    path = next((f / entry.soname for f in folders if (f / entry.soname).is_file()), None)
    if path is None:
        pytest.skip(f"{entry.soname} is not installed beside CUDA's headers")
    program = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from test_cusolver import Module

module = Module(Path(sys.argv[2]))
print(*module.open(sys.argv[3]))
try:
    print(module.workspace("xsyevd", 100, 1))
except RuntimeError as error:
    print(error)
"""
    # In a process of its own: libraries of hundreds of MB stay loaded.
    command = [sys.executable, "-c", program, str(HERE), str(build.folder / "entry.so"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "cannot open shared object file" in done.stderr:
        pytest.skip(f"{entry.soname} lacks a library: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    opened, used = done.stdout.splitlines()
    major, minor, patch, batched = map(int, opened.split())
    assert entry.soname.endswith(f".{major}")
    assert bool(batched) == ((major, minor, patch) >= (11, 7, 1))
    # The CUDA runtime is the stand-in's, so cuSOLVER itself finds out whether there is a driver.
    assert used.isdecimal() or "CUSOLVER_STATUS_" in used
