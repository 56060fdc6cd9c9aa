"""What bench/gpu_check.py looks for before anything else."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import building, machine, preflight
from gpu.context import Context


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "PACKAGES", ("json", "no_such_package"))
    first, remedy = preflight.problems()
    assert first.startswith("no_such_package: ModuleNotFoundError")
    assert "pip download no_such_package" in remedy


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tomllib")
    assert preflight.version_problems() == []
    version = metadata.version
    old = {"setuptools": "68.1.2"}
    monkeypatch.setattr(metadata, "version", lambda name: old.get(name) or version(name))
    assert preflight.version_problems() == ["setuptools>=77 is needed, 68.1.2 is installed"]


def test_everything_that_is_missing_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("buildtools.toolkit.STANDARD", tmp_path)
    for name in ("SYLVINIT_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("buildtools.toolkit._wheel_roots", lambda: [])
    monkeypatch.setattr(preflight, "python_header", lambda: tmp_path / "Python.h")
    text = "\n".join(preflight.toolkit_problems())
    for what in ("nvcc was not found", "no-such-compiler", "Python.h does not exist"):
        assert what in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_a_reason_to_stop() -> None:
    context = Context()
    with pytest.raises(RuntimeError, match="no GPU"):
        machine.run(context)
    missing: Any = context.results["missing"]
    assert any("no GPU" in text for text in missing)


def test_a_machine_that_need_not_build_needs_no_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules came along."""
    monkeypatch.setattr(preflight, "toolkit_problems", lambda: ["nvcc was not found"])
    monkeypatch.setattr(preflight, "gpu_problems", list)
    for current, missing in ((True, []), (False, ["nvcc was not found"])):
        monkeypatch.setattr(building, "is_current", lambda current=current: current)
        assert preflight.problems() == missing


def test_nothing_here_fails_to_import() -> None:
    assert not [text for text in preflight.problems() if "Error:" in text]
