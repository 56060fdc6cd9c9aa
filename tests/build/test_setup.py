"""Compiling the CUDA extension with a faked nvcc, and setup.py around it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest
from build_helpers import (
    ARCHIVER,
    COMPILER,
    ROOT,
    compilation,
    empty_machine,
    headers,
    nvcc,
    run_setup,
    toolkit,
    write,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fakes are shell scripts")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    empty_machine(monkeypatch, tmp_path)
    return monkeypatch


# ----------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("wanted", "entries", "flags"),
    [
        (None, ["8.0", "9.0a", "9.0+PTX"], ["80,sm_80", "90a,sm_90a", "90,compute_90"]),
        (" 8.6 9.0+PTX", ["8.6", "9.0+PTX"], ["86,sm_86", "90,sm_90", "90,compute_90"]),
        ("10.0f;8.0;8.0;", ["10.0f", "8.0"], ["100f,sm_100f", "80,sm_80"]),
        ("7.5; 8.0", ["8.0"], ["80,sm_80"]),
    ],
)
def test_architectures(
    bare: pytest.MonkeyPatch,
    tmp_path: Path,
    wanted: str | None,
    entries: list[str],
    flags: list[str],
) -> None:
    if wanted is not None:
        bare.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert compilation.architectures(nvcc(tmp_path)) == entries
    expected = [f"-gencode=arch=compute_{flag.replace(',', ',code=')}" for flag in flags]
    assert compilation.gencode(entries) == expected


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("Hopper", "'Hopper' is not an architecture. Expected entries such as 8.0, 9.0a"),
        ("8.0,9.0", "'8.0,9.0' is not an architecture"),
        ("sm_90", "'sm_90' is not an architecture"),
        ("8.0 +PTX", "'[+]PTX' is not an architecture"),
        ("12.0", "does not know 12.0; it knows 7.5, 8.0, 8.6, 9.0, 10.0"),
        ("8.0a", "does not know 8.0a"),
        ("7.0 7.5", "expected 8.0 or higher, got '7.0 7.5'"),
    ],
)
def test_bad_architectures(
    bare: pytest.MonkeyPatch, tmp_path: Path, wanted: str, text: str
) -> None:
    bare.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    with pytest.raises(toolkit.BuildError, match=f"TORCH_CUDA_ARCH_LIST: .*{text}"):
        compilation.architectures(nvcc(tmp_path))


# -------------------------------------------------------------------------------------- compilation


@pytest.fixture
def project(bare: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tiny extension: a "kernel" with a header, and a module on Python's own C interface."""
    if COMPILER is None or ARCHIVER is None:
        pytest.skip("no C++ compiler")
    pytest.importorskip("ninja")
    home, root = tmp_path / "cuda", tmp_path / "with space"
    nvcc(home)
    headers(home / "include")
    (home / "lib").mkdir()
    subprocess.run([ARCHIVER, "rcs", home / "lib/libcudart_static.a"], check=True)
    bare.setenv("CUDA_HOME", str(home))
    bare.setenv("CXX", COMPILER)
    bare.setenv("PATH", f"{Path(ARCHIVER).parent}{os.pathsep}{os.defpath}")
    pybind11 = types.ModuleType("pybind11")
    pybind11.__version__ = "3.0.0"  # type: ignore[attr-defined]
    pybind11.get_include = lambda: str(root)  # type: ignore[attr-defined]
    bare.setitem(sys.modules, "pybind11", pybind11)
    write(root / "csrc/cuda/kern.cu", '#include "answer.h"\nint kern() { return ANSWER; }\n')
    write(root / "csrc/answer.h", "#define ANSWER 42\n")
    write(root / "csrc/cuda/other.cpp", "int other() { return 0; }\n")
    write(
        root / "csrc/cuda/bindings.cpp",
        """#include <Python.h>
        int kern();
        static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1};
        PyMODINIT_FUNC PyInit__cuda() {
          PyObject* m = PyModule_Create(&definition);
          PyModule_AddIntConstant(m, "ANSWER", kern());
          PyModule_AddStringConstant(m, "CSRC_HASH", SYLVINIT_CSRC_HASH);
          PyModule_AddStringConstant(m, "ARCHITECTURES", SYLVINIT_ARCHITECTURES);
          return m;
        }
        """,
    )
    # The compiler that pretends to be nvcc finds it without -I.
    (root / "csrc/cuda/answer.h").symlink_to("../answer.h")
    return root


def attributes(module: Path) -> list[str]:
    code = "import _cuda; print(_cuda.ANSWER, _cuda.CSRC_HASH, _cuda.ARCHITECTURES, sep=chr(10))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=module.parent, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_build(project: Path, bare: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    bare.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    module = compilation.build(project)
    assert attributes(module) == ["42", compilation.csrc_hash(project), "8.0;9.0+PTX"]
    report = json.loads((module.parent / "ptxas.json").read_text())
    assert report["csrc"] == compilation.csrc_hash(project)
    assert (report["nvcc"], report["architectures"]) == ("13.0.88", "8.0;9.0+PTX")
    assert [row["registers"] for row in report["kernels"]] == [32]
    capfd.readouterr()

    # An isolated build has its pybind11 somewhere else each time.
    elsewhere = str(project / "csrc")
    bare.setattr(sys.modules["pybind11"], "get_include", lambda: elsewhere)
    compilation.build(project)
    assert "no work to do" in capfd.readouterr().out
    bare.setattr(sys.modules["pybind11"], "__version__", "3.1.0")
    compilation.build(project)
    assert "bindings.cpp" in capfd.readouterr().out

    (project / "csrc/answer.h").write_text("#define ANSWER 43\n")
    module = compilation.build(project)
    assert attributes(module)[:2] == ["43", compilation.csrc_hash(project)]
    out = capfd.readouterr().out
    assert "kern.cu" in out
    assert "bindings.cpp" in out  # it has the hash
    assert "other.cpp" not in out


def test_compiler_fails(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "csrc/cuda/kern.cu").write_text("int kern() { return nothing; }\n")
    with pytest.raises(toolkit.BuildError, match="a compiler failed, see its messages above"):
        compilation.build(project)
    assert "nothing" in capfd.readouterr().out


def test_no_pybind11(project: Path, bare: pytest.MonkeyPatch) -> None:
    bare.setitem(sys.modules, "pybind11", None)
    with pytest.raises(toolkit.BuildError, match="pip install pybind11"):
        compilation.build(project)


# --------------------------------------------------------------------------------- setup.py itself


def build_ext(tmp_path: Path, **environment: str) -> tuple[int, str]:
    folders = [f"--build-lib={tmp_path / 'lib'}", f"--build-temp={tmp_path / 'temp'}"]
    code, _, err = run_setup("build_ext", *folders, **environment)
    return code, err


def test_required(tmp_path: Path) -> None:
    nvcc(tmp_path, "11.8")
    code, err = build_ext(tmp_path, SYLVINIT_CUDA="1", SYLVINIT_CUDA_HOME=str(tmp_path))
    assert code == 1
    assert "SYLVINIT_CUDA=1, but the CUDA extension cannot be built: " in err
    assert f"{tmp_path}/bin/nvcc is of CUDA 11.8, older than 12.0" in err


def test_automatic(tmp_path: Path) -> None:
    nvcc(tmp_path, "11.8")
    left = write(tmp_path / "lib/sylvinit/_cuda.cpython-of-an-earlier-build.so")
    code, err = build_ext(tmp_path, SYLVINIT_CUDA="auto", SYLVINIT_CUDA_HOME=str(tmp_path))
    assert code == 0
    assert "warning: installing without the CUDA extension: " in err
    assert f"{tmp_path}/bin/nvcc is of CUDA 11.8, older than 12.0" in err
    assert not left.exists()


def test_never(tmp_path: Path) -> None:
    nvcc(tmp_path, "11.8")
    left = write(tmp_path / "lib/sylvinit/_cuda.cpython-of-an-earlier-build.so")
    code, err = build_ext(tmp_path, SYLVINIT_CUDA="0", SYLVINIT_CUDA_HOME=str(tmp_path))
    assert code == 0
    assert "CUDA" not in err
    assert not left.exists()


@pytest.mark.parametrize("variable", ["SYLVINIT_CUDA", "SYLVINIT_LAPACK"])
def test_unknown_choice(tmp_path: Path, variable: str) -> None:
    code, err = build_ext(tmp_path, **{variable: "2"})
    assert code == 1
    assert f"{variable} must be 0, 1 or auto, got '2'" in err


def test_sdist_builds_with_the_same_hash(tmp_path: Path) -> None:
    code, _, err = run_setup(
        "egg_info", f"--egg-base={tmp_path}", "sdist", f"--dist-dir={tmp_path}"
    )
    assert code == 0, err
    (archive,) = tmp_path.glob("sylvinit-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (root,) = (tmp_path / "unpacked").iterdir()
    assert compilation.csrc_hash(root) == compilation.csrc_hash(ROOT)
    assert compilation.sources(root) == compilation.sources(ROOT)
    assert {path.name for path in (ROOT / "buildtools").glob("*.py")} == {
        path.name for path in (root / "buildtools").iterdir()
    }
    assert (root / "sylvinit/backends/verified.json").is_file()


def test_hash_is_that_of_git_and_sha256sum() -> None:
    command = """git ls-files -z --cached --others --exclude-standard -- 'csrc/*.h' 'csrc/*.cuh' \\
        'csrc/*.cu' 'csrc/*.cpp' ':!csrc/solver' |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"""
    if not (ROOT / ".git").exists() or not all(map(shutil.which, ("git", "sha256sum", "xargs"))):
        pytest.skip("needs git and the coreutils")
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert compilation.csrc_hash(ROOT) == done.stdout[:16]
