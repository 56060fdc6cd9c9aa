from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from compiler import CSRC, KERNELS, ROOT, build_on_host_threads, built_once


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """patch_gram's kernels on host threads, as the module that they are on a GPU."""
    bindings = [CSRC / "cuda" / "patch_gram_bindings.cpp", ROOT / "tests/csrc/shim_module.cpp"]

    def build(path: Path) -> None:
        flags = "-O1", "-DSYLVINIT_GATHERED_NUMBERS=20000"
        build_on_host_threads([*KERNELS, *bindings], path, *flags)

    path = built_once(tmp_path_factory, "_cuda_shim.so", build)
    spec = importlib.util.spec_from_file_location("_cuda_shim", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
