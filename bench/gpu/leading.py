"""cuSOLVER's Xsyevdx, which the library does not use: the largest eigenvalues alone.

A layer of k principal components needs no more eigenvectors, but also the rank of the matrix, which
Xsyevdx does not tell: an LDL^T factorization of A - t I has as many positive pivots as there are
eigenvalues above t. Both are timed beside the whole spectrum; docs/cuda_model.md says what is
expected. Called through ctypes, since nothing but this comparison needs it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gpu.direct import stream_of
from sylvinit.backends import cusolver

# Of cusolverDn.h, cublas_api.h and library_types.h.
_VECTORS, _BY_INDEX, _LOWER, _FLOAT64 = 1, 1002, 0, 1


class Library:
    """A cuSOLVER with a handle of its own."""

    def __init__(self, path: str) -> None:
        self._functions = ctypes.CDLL(path)
        self.handle, self.params = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cusolverDnCreate", ctypes.byref(self.handle))
        self.call("cusolverDnCreateParams", ctypes.byref(self.params))

    def call(self, name: str, *arguments: Any) -> None:
        """RuntimeError with the status if it is not 0."""
        if status := getattr(self._functions, name)(*arguments):
            raise RuntimeError(f"{name} returned status {status}")


@cache
def library() -> Library:
    """The one that the extension has opened."""
    return Library(cusolver.library().path)


class Leading:
    """The ``count`` largest eigenvalues and their vectors of a symmetric float64 matrix (n, n).

    All memory is allocated beforehand; a call copies the matrix, which is overwritten.
    """

    def __init__(self, a: Tensor, count: int, opened: Library) -> None:
        self._a, self._opened, self._count = a, opened, count
        self._rows, self._values = torch.empty_like(a), a.new_empty(len(a))
        self._info = torch.full((1,), -1, dtype=torch.int32, device=a.device)
        self._found, self._none = ctypes.c_int64(), ctypes.c_double()
        self._device = torch.empty(0, dtype=torch.uint8, device=a.device)
        self._host = ctypes.create_string_buffer(1)
        sizes = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cusolverDnXsyevdx_bufferSize", *map(ctypes.byref, sizes))
        self._device = self._device.new_empty(sizes[0].value)
        self._host = ctypes.create_string_buffer(max(1, sizes[1].value))
        self._sizes = sizes

    def _call(self, name: str, *rest: Any) -> None:
        n = len(self._a)
        none = ctypes.byref(self._none)
        stream = ctypes.c_void_p(stream_of(self._a))
        self._opened.call("cusolverDnSetStream", self._opened.handle, stream)
        self._opened.call(
            name,
            *(self._opened.handle, self._opened.params, _VECTORS, _BY_INDEX, _LOWER),
            *(ctypes.c_int64(n), _FLOAT64, _address(self._rows), ctypes.c_int64(n), none, none),
            *(ctypes.c_int64(n - self._count + 1), ctypes.c_int64(n), ctypes.byref(self._found)),
            *(_FLOAT64, _address(self._values), _FLOAT64, *rest),
        )

    def __call__(self) -> None:
        self._rows.copy_(self._a)
        device = _address(self._device), self._sizes[0]
        host = self._host, self._sizes[1]
        self._call("cusolverDnXsyevdx", *device, *host, _address(self._info))

    def result(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (count,), ascending, and vectors (n, count); RuntimeError if some lack."""
        info, found = int(self._info), self._found.value
        if info or found != self._count:
            raise RuntimeError(f"Xsyevdx: info {info}, {found} of {self._count} eigenvalues")
        return self._values[:found], self._rows[:found].mT


def _address(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def rank_above(a: Tensor, threshold: float) -> int:
    """How many eigenvalues of a symmetric matrix are above a threshold, by the law of inertia."""
    shifted = a - threshold * torch.eye(len(a), dtype=a.dtype, device=a.device)
    factors, pivots, _ = torch.linalg.ldl_factor_ex(shifted)
    # A block of two, both of whose pivots are negative, has one eigenvalue of either sign.
    single = pivots > 0
    return int((single & (factors.diagonal() > 0)).sum() + (~single).sum() // 2)
