"""What a check needs, looked for before anything else is done."""

from __future__ import annotations

import contextlib
import importlib
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from gpu.context import ROOT

# What the library, its tests and its build import.
PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "threadpoolctl",
    "greenlet",
    "tqdm",
    "safetensors",
    "pytest",
    "hypothesis",
    "pybind11",
    "setuptools",
)
STEPS = ("building", "testing", "ceilings", "gram", "eigen", "initialization", "sylvester")
STEPS += ("sanitizing", "all_patches")


def problems() -> list[str]:
    """A sentence for each thing that is missing: packages, this tree, the toolkit, a GPU."""
    found = [text for name in PACKAGES if (text := _does_not_import(name))]
    if found:  # nothing else imports then
        names = " ".join(text.split(":")[0] for text in found)
        remedy = f"pip install {names}; without network, pip install --no-index from wheels"
        return [*found, f"{remedy} that were brought along (pip download {names} elsewhere)"]
    found += version_problems()
    modules = ["sylvinit", *(f"gpu.{name}" for name in STEPS)]
    found += [text for name in modules if (text := _does_not_import(name))]
    found += gpu_problems()
    if not found and importlib.import_module("gpu.building").is_current():
        return []  # nothing has to be compiled
    return toolkit_problems() + found


def _does_not_import(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return ""


def version_problems() -> list[str]:
    """Packages that are older than pyproject.toml asks for: setup.py would fail on them."""
    try:
        import tomllib
        from packaging.requirements import Requirement
    except ImportError:  # Python 3.10 has no tomllib; the build will tell
        return []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    found: list[str] = []
    for requirement in map(Requirement, wanted):
        with contextlib.suppress(metadata.PackageNotFoundError):  # imports tell what is missing
            version = metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{requirement} is needed, {version} is installed")
    return found


def toolkit_problems() -> list[str]:
    """nvcc with headers for torch's CUDA, a C++ compiler, ninja, Python.h."""
    sys.path.append(str(ROOT))
    from buildtools import toolkit

    found: list[str] = []
    for look in (toolkit.find_toolkit, toolkit.host_compiler, toolkit.find_ninja):
        try:
            look()
        except toolkit.BuildError as error:
            found.append(str(error))
    if not (header := python_header()).is_file():
        found.append(f"{header} does not exist. Install the headers of Python (python3-dev).")
    return found


def python_header() -> Path:
    """Where the build looks for it."""
    return Path(sysconfig.get_path("include")) / "Python.h"


def gpu_problems() -> list[str]:
    """Whether torch sees a GPU."""
    import torch

    if torch.cuda.is_available():
        return []
    return [f"no GPU: torch {torch.__version__} says that CUDA is not available. See --dry-run."]
