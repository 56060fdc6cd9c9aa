"""Build script: pyproject.toml holds the metadata, this file decides about the compiled parts.

Both are optional, and environment variables say what is wanted: 0 builds without, 1 requires it,
auto (the default) builds it where possible.

SYLVINIT_LAPACK  sylvinit._lapack, the CPU solver (csrc/solver): needs a C++17 compiler.
SYLVINIT_CUDA    sylvinit._cuda, the CUDA kernels (csrc/cuda): needs nvcc and the headers of cuBLAS
                 and cuSOLVER, but no GPU; see buildtools/. Read with it: SYLVINIT_CUDA_HOME,
                 CUDA_HOME, TORCH_CUDA_ARCH_LIST, CXX, MAX_JOBS.

SYLVINIT_URLS    the project's links in the metadata, "Source=https://... Documentation=https://...":
                 who publishes a build knows where it lives. None by default.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # an isolated build does not have it there

from buildtools import compilation  # noqa: E402
from buildtools.toolkit import BuildError  # noqa: E402


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
        # Square roots that set errno would not be taken several at a time; and with contractions a
        # solution would depend on the instruction set and on its place in a batch.
        else [
            "-O3",
            "-std=c++17",
            "-fno-math-errno",
            "-ffp-contract=off",
            "-fvisibility=hidden",
            "-g0",
            "-pthread",
        ]
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


class CudaExtension(Extension):
    """Compiled by nvcc and ninja instead of setuptools."""


def cuda_extensions() -> list[Extension]:
    wanted = choice("SYLVINIT_CUDA")
    if wanted == "0":
        return []
    sources = compilation.sources(ROOT)
    return [CudaExtension("sylvinit._cuda", sources, optional=wanted == "auto")]


class BuildExt(build_ext):
    def run(self) -> None:
        # setuptools packs whatever an earlier build has left.
        folders = [Path(self.get_ext_fullpath("sylvinit._cuda")).parent]
        if self.editable_mode:
            folders.append(ROOT / "sylvinit")
        for folder in folders:
            for left in folder.glob("_cuda.*.so"):
                left.unlink()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        if not isinstance(ext, CudaExtension):
            super().build_extension(ext)
            return
        try:
            module = compilation.build(ROOT)
        except (BuildError, OSError, UnicodeError) as error:
            if not ext.optional:
                text = f"SYLVINIT_CUDA=1, but the CUDA extension cannot be built: {error}"
                raise SystemExit(text) from None
            sys.stderr.write(
                f"warning: installing without the CUDA extension: {error} GPU tensors will run on "
                "plain torch operations.\n"
            )
            return
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(module, path)


def project_urls() -> dict[str, str]:
    entries = [entry.partition("=") for entry in os.environ.get("SYLVINIT_URLS", "").split()]
    for name, _, url in entries:
        if not name or not url.startswith("https://"):
            text = "SYLVINIT_URLS: expected entries NAME=https://..., separated by spaces, got "
            raise SystemExit(f"{text}{os.environ['SYLVINIT_URLS']!r}")
    return {name: url for name, _, url in entries}


setup(
    project_urls=project_urls(),
    ext_modules=cuda_extensions() + lapack_extensions(),
    cmdclass={"build_ext": BuildExt},
)
