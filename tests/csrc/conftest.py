from __future__ import annotations

import fcntl
import importlib.util
import os
from typing import Any

import pytest
from compiler import CSRC, KERNELS, ROOT, build_on_host_threads


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """patch_gram's kernels on host threads, as the module that they are on a GPU.

    Compiled once for all workers of pytest-xdist.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shim"
    folder.mkdir(exist_ok=True)
    path = folder / "_cuda_shim.so"
    bindings = [CSRC / "cuda" / "patch_gram_bindings.cpp", ROOT / "tests/csrc/shim_module.cpp"]
    flags = "-O1", "-DSYLVINIT_GATHERED_NUMBERS=20000"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            build_on_host_threads([*KERNELS, *bindings], path, *flags)
    spec = importlib.util.spec_from_file_location("_cuda_shim", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
