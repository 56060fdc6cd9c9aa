"""Finding a CUDA toolkit, compilers and ninja: the order, and what the errors say."""

from __future__ import annotations

import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from build_helpers import empty_machine, headers, nvcc, toolkit, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fakes are shell scripts")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    empty_machine(monkeypatch, tmp_path)
    return monkeypatch


def error() -> str:
    with pytest.raises(toolkit.BuildError) as caught:
        toolkit.find_toolkit()
    return str(caught.value)


def test_no_nvcc(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("CUDA_HOME", str(tmp_path / "gone"))
    message = error()
    assert message.startswith("nvcc was not found")
    assert str(tmp_path / "gone") in message
    assert "Install the CUDA toolkit, 12.0 or newer" in message


@pytest.mark.parametrize("version", ["11.8", "10.2"])
def test_too_old(bare: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    bare.setenv("CUDA_HOME", str(tmp_path))
    path = nvcc(tmp_path, version)
    assert f"{path} is of CUDA {version}, older than 12.0" in error()


def test_not_a_compiler(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("CUDA_HOME", str(tmp_path))
    write(tmp_path / "bin/nvcc", "#!/bin/sh\necho segmentation fault\n", executable=True)
    assert "does not tell a release: 'segmentation fault'" in error()
    write(tmp_path / "bin/nvcc", "#!/no/such/shell\n", executable=True)
    assert "does not run" in error()


@pytest.mark.parametrize(
    ("version", "wheels"),
    [
        ("12.4", "nvidia-cuda-cccl-cu12 nvidia-cublas-cu12 nvidia-cusolver-cu12"),
        ("13.0", "nvidia-cuda-cccl nvidia-cublas nvidia-cusolver"),
    ],
)
def test_missing_headers(
    bare: pytest.MonkeyPatch, tmp_path: Path, version: str, wheels: str
) -> None:
    bare.setenv("CUDA_HOME", str(tmp_path))
    nvcc(tmp_path, version)
    headers(tmp_path / "include", "cuda_runtime.h")
    message = error()
    assert message.startswith("nv/target and cublas_v2.h and cusolverDn.h of CUDA")
    assert f"pip install --no-deps --target DIR {wheels}, and set SYLVINIT_CUDA_HOME=DIR" in message


def test_whole_toolkit(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("CUDA_PATH", str(tmp_path))
    path = nvcc(tmp_path, "12.4")
    headers(tmp_path / "include", "cuda_runtime.h", "cublas_v2.h", "cusolverDn.h")
    headers(tmp_path / "include/cccl", "nv/target")
    library = write(tmp_path / "targets/x86_64-linux/lib/libcudart_static.a").parent
    found = toolkit.find_toolkit()
    assert (found.nvcc, found.version, found.release) == (path, (12, 4), "12.4.88")
    assert found.includes == (tmp_path / "include", tmp_path / "include/cccl")
    assert found.libraries == (library,)


@pytest.mark.parametrize("parent", ["wheels", "nvidia"])  # an unlucky name
@pytest.mark.parametrize(
    ("version", "layout", "fits"),
    [
        ("13.0", ["nvidia/cu13/include"], True),
        ("13.0", ["nvidia/cublas/include", "nvidia/cusolver/include"], False),  # of CUDA 12
        ("12.4", ["nvidia/cublas/include", "nvidia/cusolver/include"], True),
        ("12.4", ["nvidia/cu13/include"], False),
    ],
)
def test_headers_of_wheels(
    bare: pytest.MonkeyPatch,
    tmp_path: Path,
    version: str,
    layout: list[str],
    fits: bool,
    parent: str,
) -> None:
    main, wheels = tmp_path / "toolkit", tmp_path / parent
    nvcc(main, version)
    headers(main / "include", "cuda_runtime.h", "nv/target")
    folders = [wheels / name for name in layout]
    headers(folders[0], "cublas_v2.h")
    headers(folders[-1], "cusolverDn.h")
    bare.setenv("SYLVINIT_CUDA_HOME", os.pathsep.join([str(wheels), str(main)]))
    if fits:
        assert toolkit.find_toolkit().includes == (main / "include", *folders)
    else:
        assert "cublas_v2.h and cusolverDn.h" in error()
    # Installed wheels, seen where there is no build isolation, are found in the same layout.
    bare.delenv("SYLVINIT_CUDA_HOME")
    bare.setenv("CUDA_HOME", str(main))
    bare.setattr(toolkit, "_wheel_roots", lambda: [wheels / "nvidia"])
    if fits:
        assert toolkit.find_toolkit().includes == (main / "include", *folders)
    else:
        assert "cublas_v2.h and cusolverDn.h" in error()


def test_order_of_the_search(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("standard", "path", "cuda_path", "cuda_home", "second", "first")
    paths = {name: nvcc(tmp_path / name) for name in names}
    for name in names:
        headers(tmp_path / name / "include")
    bare.setattr(toolkit, "STANDARD", tmp_path / "standard")
    assert toolkit.find_toolkit().nvcc == paths["standard"]
    bare.setenv("PATH", str(tmp_path / "path/bin"))
    assert toolkit.find_toolkit().nvcc == paths["path"]
    bare.setenv("CUDA_PATH", str(tmp_path / "cuda_path"))
    assert toolkit.find_toolkit().nvcc == paths["cuda_path"]
    bare.setenv("CUDA_HOME", str(tmp_path / "cuda_home"))
    assert toolkit.find_toolkit().nvcc == paths["cuda_home"]
    both = [str(tmp_path / name) for name in ("first", "second")]
    bare.setenv("SYLVINIT_CUDA_HOME", os.pathsep.join(both))
    found = toolkit.find_toolkit()
    assert found.nvcc == paths["first"]
    assert found.includes == (tmp_path / "first/include",)


def test_nvcc_that_stands_elsewhere(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script on the path starts the toolkit's nvcc; the toolkit is where that one says."""
    nvcc(tmp_path / "local", top=tmp_path / "opt/cuda/bin/..")
    (tmp_path / "opt/cuda/bin").mkdir(parents=True)
    headers(tmp_path / "opt/cuda/include")
    bare.setenv("PATH", str(tmp_path / "local/bin"))
    assert toolkit.find_toolkit().includes == (tmp_path / "opt/cuda/include",)


@pytest.mark.parametrize(("cuda", "fits"), [("'12.8'", False), ("'13.2'", True), ("None", True)])
def test_torch_of_another_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str, fits: bool
) -> None:
    monkeypatch.setenv("SYLVINIT_CUDA_HOME", str(tmp_path))
    nvcc(tmp_path)
    headers(tmp_path / "include")
    write(tmp_path / "site/torch/__init__.py", "raise SystemExit('not to be imported')")
    write(tmp_path / "site/torch/version.py", f"cuda = {cuda}\nhip = None\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if fits:
        assert toolkit.find_toolkit().version == (13, 0)
    else:
        message = error()
        assert "is of CUDA 13 and the installed torch of CUDA 12; they have to agree" in message
        assert "Set CUDA_HOME to a CUDA 12 toolkit, or install torch for CUDA 13" in message


def test_windows(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(sys, "platform", "win32")
    assert error() == "Windows is not supported."


def test_compiler(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(toolkit.BuildError, match="no C\\+\\+ compiler was found: g\\+\\+ or clang"):
        toolkit.host_compiler()
    bare.setenv("CXX", "icpx -gcc-name=gcc")
    with pytest.raises(toolkit.BuildError, match="that CXX names was not found: icpx"):
        toolkit.host_compiler()
    path = write(tmp_path / "empty/icpx", executable=True)
    assert toolkit.host_compiler() == [str(path), "-gcc-name=gcc"]


def test_ninja(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = types.ModuleType("ninja")
    package.__spec__ = ModuleSpec("ninja", None)
    bare.setitem(sys.modules, "ninja", package)
    with pytest.raises(toolkit.BuildError, match="ninja was not found"):
        toolkit.find_ninja()
    package.BIN_DIR = str(tmp_path)  # type: ignore[attr-defined]
    path = write(tmp_path / "ninja", executable=True)
    assert toolkit.find_ninja() == str(path)
