"""Build script: pyproject.toml holds the metadata, this file decides about the compiled parts.

Both are optional, and environment variables say what is wanted: 0 builds without, 1 requires it,
auto (the default) builds it where possible.

SYLVINIT_LAPACK  sylvinit._lapack, the CPU solver (csrc/solver): needs a C++17 compiler.
SYLVINIT_CUDA    the CUDA kernels (csrc/*.cu, bound with pybind11, without torch headers): not part
                 of this version, so 1 is an error.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup


def choice(variable: str) -> str:
    value = os.environ.get(variable, "auto").strip().lower()
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"{variable} must be 0, 1 or auto, got {value!r}")
    return value


def lapack_extensions() -> list[Extension]:
    wanted = choice("SYLVINIT_LAPACK")
    if wanted == "0":
        return []
    try:
        import pybind11
    except ImportError:
        message = "the CPU solver needs pybind11 to build (pip install pybind11)"
        if wanted == "1":
            raise SystemExit(f"SYLVINIT_LAPACK=1, but {message}") from None
        sys.stderr.write(f"warning: {message}; solve_sylvester will run on slower routes\n")
        return []
    flags = (
        ["/O2", "/std:c++17", "/EHsc"]
        if os.name == "nt"
        else ["-O3", "-std=c++17", "-fvisibility=hidden", "-g0", "-pthread"]
    )
    return [
        Extension(
            "sylvinit._lapack",
            ["csrc/solver/bindings.cpp"],
            depends=sorted(str(path) for path in Path("csrc/solver").glob("*.h")),
            include_dirs=[pybind11.get_include()],
            extra_compile_args=flags,
            extra_link_args=[] if os.name == "nt" else ["-pthread"],
            language="c++",
            # A failed compilation then costs speed, not the installation.
            optional=wanted == "auto",
        )
    ]


def cuda_extensions() -> list[Extension]:
    if choice("SYLVINIT_CUDA") == "1":
        raise SystemExit(
            "SYLVINIT_CUDA=1 requires the CUDA kernels, but this version of sylvinit has none to "
            "build. Unset SYLVINIT_CUDA or set it to 0: GPU tensors then run on plain torch ops."
        )
    return []


setup(ext_modules=lapack_extensions() + cuda_extensions())
