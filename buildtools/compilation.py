"""Compiling csrc/cuda with ninja, in a folder that stays: the next build compiles what changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from buildtools import toolkit
from buildtools.ptxas import report
from buildtools.toolkit import BuildError

FOLDER = "build/cuda"
LOWEST_ARCHITECTURE = 80  # the kernels use mma on TF32
# Code for sm_90 beside that for sm_90a would be for the same GPUs, so 9.0+PTX only adds PTX, for
# later ones.
DEFAULT_ARCHITECTURES = "8.0;9.0a;9.0+PTX"
HASHED = (".cpp", ".cu", ".cuh", ".h")


def architectures(nvcc: Path) -> list[str]:
    """Entries of TORCH_CUDA_ARCH_LIST, or the default, as "8.0", "9.0a", "9.0+PTX"."""
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;") or DEFAULT_ARCHITECTURES
    known = set(re.findall(r"sm_(\d+)", toolkit.ask(nvcc, "--list-gpu-code")))
    entries: list[str] = []
    for entry in dict.fromkeys(re.split(r"[;\s]+", text)):
        number, variant, _ = _split(entry)
        if int(number) < LOWEST_ARCHITECTURE:
            sys.stderr.write(f"note: TORCH_CUDA_ARCH_LIST: the kernels need 8.0, no {entry}\n")
        elif number not in known or (variant == "a" and int(number) < 90):
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: {nvcc} does not know {entry}; it knows "
                f"{', '.join(f'{name[:-1]}.{name[-1]}' for name in sorted(known, key=int))}."
            )
        else:
            entries.append(entry)
    if not entries:
        raise BuildError(f"TORCH_CUDA_ARCH_LIST: expected 8.0 or higher, got {text!r}.")
    return entries


def _split(entry: str) -> tuple[str, str, bool]:
    """("90", "a", False) of "9.0a"."""
    found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
    if not found:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST: {entry!r} is not an architecture. Expected entries such as "
            "8.0, 9.0a or 9.0+PTX, separated by spaces or semicolons."
        )
    return found[1] + found[2], found[3], bool(found[4])


def gencode(entries: list[str]) -> list[str]:
    """The options of nvcc for architectures."""
    flags: list[str] = []
    parts = [_split(entry) for entry in entries]
    for number, variant, ptx in parts:
        name = number + variant
        covered = not variant and any(other[:2] == (number, "a") for other in parts)
        if not (ptx and covered):
            flags.append(f"-gencode=arch=compute_{name},code=sm_{name}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{name},code=compute_{name}")
    return list(dict.fromkeys(flags))


def sources(root: Path) -> list[str]:
    """What is compiled, relative to the root; what takes longest comes first."""
    folder = root / "csrc" / "cuda"
    paths = [*sorted(folder.glob("*.cu")), *sorted(folder.glob("*.cpp"))]
    return [path.relative_to(root).as_posix() for path in paths]


def csrc_hash(root: Path) -> str:
    """Of what the extension is compiled from: csrc/ and csrc/cuda/, not the CPU solver.

    First 16 digits of sha256 over the lines of sha256sum, sorted by path.
    """
    folders = (root / "csrc", root / "csrc" / "cuda")
    paths = [path for folder in folders for path in folder.iterdir() if path.suffix in HASHED]
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    digests = ((hashlib.sha256((root / name).read_bytes()).hexdigest(), name) for name in names)
    lines = "".join(f"{digest}  {name}\n" for digest, name in digests)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def build(root: Path) -> Path:
    """Compile and link; the module, with ptxas.json beside it.

    Raises:
        BuildError: something is missing, or a compiler has failed.
    """
    found = toolkit.find_toolkit()
    entries = architectures(found.nvcc)
    ninja = toolkit.find_ninja()
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    text = ninja_file(root, found, entries)
    (folder / "build.ninja").write_text(text)
    jobs = os.environ.get("MAX_JOBS", "").strip()
    command = [ninja, "-f", f"{FOLDER}/build.ninja", *(["-j", jobs] if jobs else [])]
    sys.stdout.flush()
    if subprocess.run(command, cwd=root, check=False).returncode:
        raise BuildError("a compiler failed, see its messages above.")
    logs = [folder / f"{Path(name).name}.ptxas" for name in sources(root) if name.endswith(".cu")]
    summary: dict[str, Any] = {
        "csrc": csrc_hash(root),
        "nvcc": found.release,
        "architectures": ";".join(entries),
        **report("".join(log.read_text() for log in logs)),
    }
    (folder / "ptxas.json").write_text(json.dumps(summary, indent=1) + "\n")
    sys.stderr.write("".join(f"{message}\n" for message in summary["messages"]))
    return folder / "_cuda.so"


def ninja_file(root: Path, found: toolkit.Toolkit, entries: list[str]) -> str:
    """build.ninja, to be run in the root: paths in the objects are relative to it."""
    compiler = toolkit.host_compiler()
    own = ["-Icsrc", "-Icsrc/cuda"]
    # -isystem: after nvcc's own folders, so that wheels of another minor version hide nothing.
    system = _system(path for path in found.includes if path != Path("/usr/include"))
    device = [str(found.nvcc), "-O3", "-std=c++17", "-lineinfo", "-Xptxas=-v", *own, *system]
    device += ["-Xcompiler=-fPIC,-fvisibility=hidden", *gencode(entries)]
    if len(compiler) == 1:  # not for CXX="ccache g++"
        device += ["-ccbin", compiler[0]]
    host = [*compiler, "-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-g0", "-Wall", *own]
    python = [sysconfig.get_path(name) for name in ("include", "platinclude")]
    host += [*system, *_system([_pybind11(root), *python])]
    # Only where they are used: other objects stay when a file changes.
    macros = [
        f'-DSYLVINIT_CSRC_HASH="{csrc_hash(root)}"',
        f'-DSYLVINIT_ARCHITECTURES="{";".join(entries)}"',
    ]
    link = [*compiler, "-shared", "-Wl,--exclude-libs,ALL"]
    libraries = [f"-L{path}" for path in found.libraries]
    libraries += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {FOLDER}",
        "rule cu",
        f"  command = {_command(device)} -MD -MF $out.d -c $in -o $out > $log 2>&1 || "
        "{ cat $log; exit 1; }",
        "  description = nvcc $in",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule cpp",
        f"  command = {_command(host)} $macros -MD -MF $out.d -c $in -o $out",
        "  description = c++ $in",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {_command(link)} -o $out $in {_command(libraries)}",
        "  description = link $out",
    ]
    objects: list[str] = []
    for name in sources(root):
        out = f"{FOLDER}/{Path(name).name}"
        objects.append(f"{out}.o")
        if name.endswith(".cu"):
            lines += [f"build {out}.o: cu {name}", f"  log = {out}.ptxas"]
        else:
            lines.append(f"build {out}.o: cpp {name}")
        if Path(name).name == "bindings.cpp":
            lines.append(f"  macros = {_command(macros)}")
    lines.append(f"build {FOLDER}/_cuda.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _pybind11(root: Path) -> str:
    """A link to pybind11's headers: an isolated build has them in another folder each time."""
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 was not found. pip install pybind11.") from None
    name = f"{FOLDER}/pybind11-{pybind11.__version__}"
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(pybind11.get_include(), target_is_directory=True)
    return name


def _system(folders: Iterable[Path | str]) -> list[str]:
    return [word for path in dict.fromkeys(map(str, folders)) for word in ("-isystem", path)]


def _command(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")
