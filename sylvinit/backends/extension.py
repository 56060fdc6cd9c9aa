"""The CUDA extension sylvinit._cuda (csrc/cuda): whether it can run in this process, and why not.

Everything else reaches the compiled module through here. Importing it needs neither a GPU nor a
driver.
"""

from __future__ import annotations

import importlib
import json
import re
from importlib import resources
from typing import Any

import torch

module: Any
try:
    module = importlib.import_module("sylvinit._cuda")
    _import_error = ""
except ModuleNotFoundError:
    module, _import_error = None, ""
except ImportError as error:
    module, _import_error = None, str(error)


def reason() -> str:
    """Why the extension cannot run on this process's GPUs; empty if it can on one of them.

    This initializes torch's CUDA state: ask only for tensors on a GPU, or if the user wants it.
    """
    if module is None:
        if _import_error:
            return f"the CUDA extension does not load: {_import_error}"
        return (
            "the CUDA extension is not built: install sylvinit from source with SYLVINIT_CUDA=1 "
            "and a CUDA toolkit"
        )
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA; the extension is for CUDA "
            f"{_version()}"
        )
    major = int(torch.version.cuda.split(".")[0])
    if major != module.CUDA_VERSION // 1000:
        return (
            f"the CUDA extension is built with CUDA {_version()}, torch {torch.__version__} with "
            f"{torch.version.cuda}: build it with a CUDA {major} toolkit (CUDA_HOME)"
        )
    if not torch.cuda.is_available():
        return "torch finds no GPU, or no driver that fits"
    capabilities = [*map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))]
    if not any(map(supports, capabilities)):
        found = ", ".join(sorted({f"{major}.{minor}" for major, minor in capabilities}))
        return (
            f"no GPU of a supported architecture: built for {module.ARCHITECTURES}, found {found}; "
            "build it with TORCH_CUDA_ARCH_LIST (8.0 or higher)"
        )
    return ""


def available() -> bool:
    """Whether the extension can run on a GPU of this process."""
    return not reason()


def supports(capability: tuple[int, int]) -> bool:
    """Whether the extension has code for GPUs of this compute capability.

    Code for 8.0 runs on every 8.x from there on, for 9.0a on 9.0 alone, for 10.0f on every 10.x
    from there on. PTX (+PTX) is compiled by the driver for anything later; that of 9.0a is again
    for 9.0 alone.
    """
    built = module.ARCHITECTURES if module is not None else ""
    for major, minor, variant, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", built):
        lowest = int(major), int(minor)
        if variant == "a":
            fits = capability == lowest
        elif ptx and not variant:
            fits = capability >= lowest
        else:
            fits = capability[0] == lowest[0] and capability >= lowest
        if fits:
            return True
    return False


def description() -> str:
    """What is built, in one line."""
    if module is None:
        return "not built" if not _import_error else "does not load"
    return f"CUDA {_version()}, architectures {module.ARCHITECTURES}, csrc {module.CSRC_HASH}"


def verification() -> str:
    """Whether bench/gpu_check.py has passed on a GPU with the sources that are built here.

    sylvinit/backends/verified.json lists the runs as {csrc, device, date}.
    """
    file = resources.files("sylvinit.backends") / "verified.json"
    runs = json.loads(file.read_text(encoding="utf-8"))
    runs = [run for run in runs if module is None or run["csrc"] == module.CSRC_HASH]
    built = "" if module is None else f" (csrc {module.CSRC_HASH})"
    if not runs:
        return f"not yet verified on a GPU at this version{built}"
    sources = "this csrc hash" if module is not None else "csrc {csrc}"
    line = f"verified on {{device}} at {sources} on {{date}}"
    return "; ".join(line.format(**run) for run in runs)


def _version() -> str:
    return f"{module.CUDA_VERSION // 1000}.{module.CUDA_VERSION % 1000 // 10}"
