"""Compiling the C++ of csrc/ and of the tests with the machine's own compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
SHIM = [ROOT / "tests" / "csrc" / "shim", CSRC, CSRC / "cuda"]
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
KERNELS = sorted((CSRC / "cuda").glob("patch_*.cu"))


def find_compiler() -> str:
    """The C++ compiler; skips the test where there is none."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    found = next((name for name in names if name and shutil.which(name)), None)
    if found is None:
        pytest.skip("no C++ compiler (CXX, c++, g++, clang++): csrc/ is not tested")
    return found


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """The file that ``build`` makes at a path, one for all workers of pytest-xdist."""
    fcntl = pytest.importorskip("fcntl", reason="locks are those of POSIX")
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).exists():
            build(folder / name)
    return folder / name


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build_on_host_threads(
    sources: list[Path], output: Path, *flags: str, shared: bool = True
) -> None:
    """Compile .cu and .cpp sources against tests/csrc/shim, side by side, and link them."""
    compiler = find_compiler()
    common = [compiler, "-std=c++20", "-pthread", *STRICT, *flags, *(f"-I{p}" for p in SHIM)]
    if shared:
        pybind11 = pytest.importorskip("pybind11", reason="needed to bind the kernels")
        python = sysconfig.get_paths()["include"]
        common += ["-fPIC", "-fvisibility=hidden", f"-I{pybind11.get_include()}", f"-I{python}"]
    objects = [output.parent / f"{source.name}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            [*common, "-x", "c++", "-c", str(source), "-o", str(target)]
            for source, target in zip(sources, objects, strict=True)
        ]
        list(pool.map(run, jobs))
    kind = ["-shared"] if shared else []
    run([compiler, "-pthread", *flags, *kind, *map(str, objects), "-o", str(output)])
