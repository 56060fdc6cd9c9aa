"""Build script: pyproject.toml holds the metadata, this file decides about the CUDA extension.

The CUDA kernels (csrc/*.cu, bound with pybind11, without torch headers) are not part of this
version, so every build is a pure Python wheel. SYLVINIT_CUDA already has its final meaning:
0 builds without the extension, 1 requires it, auto (the default) builds it where possible.
"""

import os

from setuptools import Extension, setup


def cuda_extensions() -> list[Extension]:
    choice = os.environ.get("SYLVINIT_CUDA", "auto").strip().lower()
    if choice not in ("0", "1", "auto"):
        raise SystemExit(f"SYLVINIT_CUDA must be 0, 1 or auto, got {choice!r}")
    if choice == "1":
        raise SystemExit(
            "SYLVINIT_CUDA=1 requires the CUDA kernels, but this version of sylvinit has none to "
            "build. Unset SYLVINIT_CUDA or set it to 0: GPU tensors then run on plain torch ops."
        )
    return []


setup(ext_modules=cuda_extensions())
