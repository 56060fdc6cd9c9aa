"""Whether the CUDA extension runs here, for every reason why it may not."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sylvinit import cli
from sylvinit.backends import extension

HASH = "0123456789abcdef"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A build for CUDA 13.0, torch for CUDA 13.2 and an H100; tests take one of them away."""
    built = SimpleNamespace(CUDA_VERSION=13000, ARCHITECTURES="8.0;9.0a;9.0+PTX", CSRC_HASH=HASH)
    monkeypatch.setattr(extension, "module", built)
    monkeypatch.setattr(extension, "_import_error", "")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capabilities(monkeypatch, (9, 0))
    return monkeypatch


def capabilities(monkeypatch: pytest.MonkeyPatch, *found: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found[index])


def verified(monkeypatch: pytest.MonkeyPatch, folder: Path, *runs: dict[str, str]) -> None:
    (folder / "verified.json").write_text(json.dumps(runs))
    monkeypatch.setattr(extension.resources, "files", lambda package: folder)


# --------------------------------------------------------------------------------------- reason


def test_runs(gpu: pytest.MonkeyPatch) -> None:
    assert extension.reason() == ""
    assert extension.available()


def test_not_built(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(extension, "module", None)
    assert "not built: install sylvinit from source with SYLVINIT_CUDA=1" in extension.reason()
    assert not extension.available()
    assert extension.description() == "not built"


def test_does_not_load(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(extension, "module", None)
    gpu.setattr(extension, "_import_error", "libm.so.9: cannot open")
    assert extension.reason() == "the CUDA extension does not load: libm.so.9: cannot open"
    assert extension.description() == "does not load"


def test_torch_without_cuda(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "cuda", None)
    assert f"torch {torch.__version__} is built without CUDA" in extension.reason()


def test_another_major_version(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "cuda", "12.8")
    reason = extension.reason()
    assert "built with CUDA 13.0" in reason
    assert "with 12.8: build it with a CUDA 12 toolkit" in reason


def test_no_gpu(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in extension.reason()


def test_no_gpu_of_a_supported_architecture(gpu: pytest.MonkeyPatch) -> None:
    capabilities(gpu, (7, 5), (7, 0), (7, 5))
    reason = extension.reason()
    assert "built for 8.0;9.0a;9.0+PTX, found 7.0, 7.5" in reason
    assert "TORCH_CUDA_ARCH_LIST" in reason


def test_one_supported_gpu_suffices(gpu: pytest.MonkeyPatch) -> None:
    capabilities(gpu, (7, 5), (8, 6))
    assert extension.available()


@pytest.mark.parametrize(
    ("built", "runs", "does_not_run"),
    [
        ("8.0;9.0a;9.0+PTX", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 1)], [(7, 5)]),
        ("8.0", [(8, 0), (8, 6)], [(9, 0), (7, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0)]),
        ("9.0a", [(9, 0)], [(8, 0), (10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("12.0+PTX", [(12, 0), (12, 1), (13, 0)], [(10, 3), (9, 0)]),
    ],
)
def test_supports(
    gpu: pytest.MonkeyPatch,
    built: str,
    runs: list[tuple[int, int]],
    does_not_run: list[tuple[int, int]],
) -> None:
    extension.module.ARCHITECTURES = built
    assert all(extension.supports(capability) for capability in runs)
    assert not any(extension.supports(capability) for capability in does_not_run)


def test_nothing_is_supported_without_a_build(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(extension, "module", None)
    assert not extension.supports((9, 0))


# ------------------------------------------------------------------------------------ description


def test_description(gpu: pytest.MonkeyPatch) -> None:
    line = "CUDA 13.0, architectures 8.0;9.0a;9.0+PTX, csrc 0123456789abcdef"
    assert extension.description() == line
    extension.module.CUDA_VERSION = 12090
    assert extension.description().startswith("CUDA 12.9,")


def test_not_yet_verified(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    verified(gpu, tmp_path, {"csrc": "f" * 16, "device": "NVIDIA H100", "date": "2030-01-02"})
    text = f"not yet verified on a GPU at this version (csrc {HASH})"
    assert extension.verification() == text


def test_verified(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = [
        {"csrc": csrc, "device": "NVIDIA H100", "date": "2030-01-02"} for csrc in (HASH, "f" * 16)
    ]
    verified(gpu, tmp_path, *runs)
    text = "verified on NVIDIA H100 at this csrc hash on 2030-01-02"
    assert extension.verification() == text


def test_verification_without_a_build(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu.setattr(extension, "module", None)
    verified(gpu, tmp_path)
    assert extension.verification() == "not yet verified on a GPU at this version"
    verified(gpu, tmp_path, {"csrc": HASH, "device": "NVIDIA H100", "date": "2030-01-02"})
    assert extension.verification() == f"verified on NVIDIA H100 at csrc {HASH} on 2030-01-02"


def test_the_shipped_list_is_well_formed() -> None:
    text = extension.resources.files("sylvinit.backends").joinpath("verified.json").read_text()
    runs = json.loads(text)
    assert isinstance(runs, list)
    for run in runs:
        assert set(run) == {"csrc", "device", "date"}
        assert len(run["csrc"]) == 16


def test_info_tells_all_three(gpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.setattr(torch.version, "cuda", "12.8")
    gpu.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for text in (extension.description(), extension.reason(), extension.verification()):
        assert text in out


# ----------------------------------------------------------------------------- the compiled module


@pytest.mark.skipif(extension.module is None, reason="the CUDA extension is not built")
def test_compiled_module_says_what_it_is() -> None:
    module = importlib.import_module("sylvinit._cuda")
    assert len(module.CSRC_HASH) == 16
    assert module.CSRC_HASH in extension.description()
    assert module.CUDA_VERSION >= 12000
    assert extension.supports((9, 0)) or "9.0" not in module.ARCHITECTURES


@pytest.mark.skipif(extension.module is None, reason="the CUDA extension is not built")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_importing_loads_no_cuda_library() -> None:
    """cudart is inside; cuBLAS, cuSOLVER and the driver are opened when they are needed."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import _cuda; "
        "print(open('/proc/self/maps').read())"
    )
    folder = str(Path(extension.module.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert "/_cuda." in done.stdout
    for library in ("libcublas", "libcusolver", "libcudart", "libcuda.", "libtorch"):
        assert library not in done.stdout


@pytest.mark.skipif(extension.module is None, reason="all tests run without it")
def test_package_imports_without_the_extension() -> None:
    code = (
        "import sys; sys.modules['sylvinit._cuda'] = None; import sylvinit; "
        "from sylvinit.backends import extension; print(extension.module, extension.available())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]
