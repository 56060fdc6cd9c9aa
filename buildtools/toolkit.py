"""Finding nvcc, the headers, a C++ compiler and ninja."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST_NVCC = (12, 0)
OLDEST = ".".join(map(str, OLDEST_NVCC))
STANDARD = Path("/usr/local/cuda")
# What is included, and the wheel that has it where the toolkit does not.
HEADERS = {
    "cuda_runtime.h": "nvidia-cuda-runtime",
    "nv/target": "nvidia-cuda-cccl",
    "cublas_v2.h": "nvidia-cublas",
    "cusolverDn.h": "nvidia-cusolver",
}


class BuildError(Exception):
    """The extension cannot be built; the text says why and what to do."""


@dataclass(frozen=True)
class Toolkit:
    """nvcc, its version, and the folders that the host compiler and the linker need."""

    nvcc: Path
    version: tuple[int, int]
    release: str
    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]


def find_toolkit() -> Toolkit:
    """The first nvcc of the search order, checked, with the headers found around it."""
    if sys.platform == "win32":
        raise BuildError("Windows is not supported.")
    nvcc = _find_nvcc()
    release, version = _release(nvcc)
    if version < OLDEST_NVCC:
        raise BuildError(
            f"{nvcc} is of CUDA {version[0]}.{version[1]}, older than {OLDEST}. Put a newer one "
            "first: CUDA_HOME=/path/to/toolkit."
        )
    major = _torch_cuda_major()
    if major is not None and major != version[0]:
        raise BuildError(
            f"{nvcc} is of CUDA {version[0]} and the installed torch of CUDA {major}; they have to "
            f"agree. Set CUDA_HOME to a CUDA {major} toolkit, or install torch for CUDA "
            f"{version[0]}."
        )
    roots = [*_own_roots(nvcc), *_named_roots(), *_wheel_roots()]
    includes = _find_headers(roots, version[0])
    libraries = {
        path.resolve().parent
        for root in _own_roots(nvcc)
        for pattern in ("lib64", "lib", "targets/*/lib")
        for path in root.glob(f"{pattern}/libcudart_static.a")
    }
    return Toolkit(nvcc, version, release, includes, tuple(sorted(libraries)))


def _named_roots() -> list[Path]:
    """Roots that the environment names, in the order of the search."""
    named = os.environ.get("SYLVINIT_CUDA_HOME", "").split(os.pathsep)
    named += [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", "")]
    return [Path(name).expanduser().absolute() for name in named if name.strip()]


def _wheel_roots() -> list[Path]:
    """Folders called nvidia of the installed wheels; only without build isolation are there any."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(path) for path in (spec.submodule_search_locations or [])] if spec else []


def _find_nvcc() -> Path:
    on_path = shutil.which("nvcc")
    candidates = [
        *(path for root in _named_roots() for path in _nvccs(root)),
        *([Path(on_path)] if on_path else []),
        *_nvccs(STANDARD),
        *(path for root in _wheel_roots() for path in _nvccs(root)),
    ]
    for path in candidates:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    named = ", ".join(map(str, _named_roots())) or "not set"
    raise BuildError(
        f"nvcc was not found: SYLVINIT_CUDA_HOME, CUDA_HOME and CUDA_PATH ({named}), PATH, "
        f"{STANDARD}. Install the CUDA toolkit, {OLDEST} or newer (building needs no GPU), and "
        "set CUDA_HOME to it."
    )


def _nvccs(root: Path) -> list[Path]:
    wheels = (path for folder in _wheels(root) for path in sorted(folder.glob("*/bin/nvcc")))
    return [root / "bin" / "nvcc", *wheels]


def _wheels(root: Path) -> list[Path]:
    """Where wheels would be, if the root is their parent or their folder "nvidia" itself."""
    return [root / "nvidia", *([root] if root.name == "nvidia" else [])]


def _release(nvcc: Path) -> tuple[str, tuple[int, int]]:
    """The version of nvcc as "13.0.88" and (13, 0)."""
    output = ask(nvcc, "--version")
    found = re.search(r"release (\d+)\.(\d+)(?:, V([\d.]+))?", output)
    if not found:
        raise BuildError(f"{nvcc} --version does not tell a release: {output.strip()[-300:]!r}.")
    version = int(found[1]), int(found[2])
    return found[3] or f"{found[1]}.{found[2]}", version


def ask(nvcc: Path, *arguments: str) -> str:
    """Everything that nvcc prints for these arguments."""
    try:
        answer = subprocess.run(
            [nvcc, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{nvcc} does not run: {error}.") from None
    return answer.stdout + answer.stderr


def _own_roots(nvcc: Path) -> list[Path]:
    """Where nvcc itself looks: the nvcc on the path may be a script or a link to another folder."""
    said = re.search(r"^#\$ TOP=(.+)$", ask(nvcc, "--dryrun", "-c", "none.cu"), re.MULTILINE)
    roots = [Path(said[1].strip()).resolve()] if said else []
    return list(dict.fromkeys([*roots, nvcc.absolute().parents[1]]))


def _torch_cuda_major() -> int | None:
    """CUDA's major version of the torch in the build environment; None without either."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    try:  # importing torch takes seconds
        cuda = runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
        return int(cuda.split(".")[0]) if cuda else None
    except (OSError, ValueError, AttributeError):
        return None


def _find_headers(roots: Iterable[Path], major: int) -> tuple[Path, ...]:
    folders = list(dict.fromkeys(folder for root in roots for folder in _includes(root, major)))
    used: list[Path] = []
    missing: list[str] = []
    for header in HEADERS:
        folder = next((folder for folder in folders if (folder / header).is_file()), None)
        if folder is None:
            missing.append(header)
        elif folder not in used:
            used.append(folder)
    if missing:
        suffix = "-cu12" if major == 12 else ""  # later wheels have no suffix
        wheels = " ".join(HEADERS[header] + suffix for header in missing)
        raise BuildError(
            f"{' and '.join(missing)} of CUDA {major} cannot be found. Install the whole toolkit, "
            f"or the headers alone: pip install --no-deps --target DIR {wheels}, and set "
            "SYLVINIT_CUDA_HOME=DIR."
        )
    return tuple(used)


def _includes(root: Path, major: int) -> Iterator[Path]:
    """Include folders of a toolkit, or of wheels: nvidia/cu13, before that a folder a library."""
    folders = [root / "include", *sorted(root.glob("targets/*/include"))]
    for wheels in _wheels(root):
        if major >= 13:
            folders.append(wheels / f"cu{major}" / "include")
        else:
            libraries = sorted(wheels.glob("*/include"))
            folders += [path for path in libraries if not re.fullmatch(r"cu\d+", path.parent.name)]
    for folder in folders:
        yield from (folder, folder / "cccl")


def host_compiler() -> list[str]:
    """CXX, or a compiler on the path, as the start of a command."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        path = shutil.which(command[0])
        if path:
            return [path, *command[1:]]
    raise BuildError(
        f"the C++ compiler that CXX names was not found: {shlex.join(named)}."
        if named
        else "no C++ compiler was found: g++ or clang++ on the PATH, or one named by CXX."
    )


def find_ninja() -> str:
    """The program of the package ninja, or one on the path."""
    folder = None
    if importlib.util.find_spec("ninja"):
        folder = getattr(importlib.import_module("ninja"), "BIN_DIR", None)
    path = (shutil.which("ninja", path=folder) if folder else None) or shutil.which("ninja")
    if path is None:
        raise BuildError("ninja was not found. pip install ninja.")
    return path
