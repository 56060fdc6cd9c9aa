"""buildtools, and faked CUDA toolkits: shell scripts that answer as nvcc does."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parents[1]

if TYPE_CHECKING:
    from buildtools import compilation, ptxas, toolkit
else:
    # Not by sys.path: the tests are for the sylvinit that is installed, and the root has another.
    if "buildtools" not in sys.modules:
        folder = ROOT / "buildtools"
        spec = importlib.util.spec_from_file_location(
            "buildtools", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["buildtools"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["buildtools"])
    from buildtools import compilation, ptxas, toolkit

__all__ = [
    "ARCHIVER",
    "COMPILER",
    "ROOT",
    "compilation",
    "empty_machine",
    "headers",
    "nvcc",
    "ptxas",
    "run_setup",
    "toolkit",
    "write",
]

COMPILER = shutil.which("g++") or shutil.which("c++")
ARCHIVER = shutil.which("ar")

# Compiles .cu files as C++ and says about them what ptxas would.
NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.88"; exit 0;;
--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_100\\n'; exit 0;;
--dryrun) echo "#$ TOP={top}" >&2; exit 0;;
esac
for word; do
  case "$word" in *.cu) source="$word";; build/*.o) object="$word";; *.d) depfile="$word";; esac
done
echo "ptxas info    : Compiling entry function '_Z4kernv' for 'sm_80'"
echo "    8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads"
echo "ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem, 380 bytes cmem[0]"
exec {compiler} -x c++ -fPIC -MMD -MF "$depfile" -c "$source" -o "$object"
"""


def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables, an empty PATH, no wheels, no torch."""
    for name in ("SYLVINIT_CUDA_HOME", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(toolkit, "STANDARD", tmp_path / "nowhere")
    monkeypatch.setattr(toolkit, "_wheel_roots", list)
    monkeypatch.setattr(toolkit, "_torch_cuda_major", lambda: None)


def write(path: Path, text: str = "", executable: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if executable:
        path.chmod(0o755)
    return path


def nvcc(root: Path, version: str = "13.0", top: Path | None = None) -> Path:
    text = NVCC.format(version=version, top=top or root, compiler=COMPILER)
    return write(root / "bin/nvcc", text, executable=True)


def headers(folder: Path, *names: str) -> Path:
    for name in names or toolkit.HEADERS:
        write(folder / name)
    return folder


def run_setup(*arguments: str, **environment: str) -> tuple[int, str, str]:
    pytest.importorskip("setuptools", minversion="77")
    inherited = {name: value for name, value in os.environ.items() if "CUDA" not in name}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=ROOT,
        env={**inherited, "SYLVINIT_LAPACK": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr
