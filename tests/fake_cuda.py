"""The extension's part for eigenvalues, on CPU tensors: NumPy behind addresses, faults on demand.

It stands for sylvinit._cuda in tests of what Python does around it. The kernels and the calls of
cuSOLVER themselves are tested in tests/csrc.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sylvinit.backends import cusolver, extension

Array = np.ndarray
# Changes what a routine returns: (values, rows, info, matrices that were passed in).
Fault = Callable[[Array, Array, Array, Array], None]


def view(address: int, *shape: int, dtype: type = np.float64) -> Array:
    """The memory at an address as an array."""
    count = int(np.prod(shape))
    kind = np.ctypeslib.as_ctypes_type(dtype)
    return np.ctypeslib.as_array((kind * count).from_address(address)).reshape(shape)


class FakeModule:
    """Same functions as csrc/cuda/spectral_bindings.cpp."""

    CUSOLVER_SONAME = "libcusolver.so.12"
    CUDA_VERSION = 13000
    ARCHITECTURES = "8.0;9.0a;9.0+PTX"
    CSRC_HASH = "0123456789abcdef"

    def __init__(self) -> None:
        self.batched = True
        self.version = (12, 0, 4)
        self.faults: dict[str, Fault] = {}
        self.workspace = lambda routine, n, batch: 16 * n * batch
        self.calls: list[tuple[str, int, int, int]] = []  # routine, stream, n, batch

    def open_cusolver(self, candidates: list[str]) -> tuple[str, tuple[int, int, int], bool]:
        assert candidates[-1] == self.CUSOLVER_SONAME
        return candidates[-1], self.version, self.batched

    def symmetric_eigen_workspace(
        self, routine: str, device: int, stream: int, n: int, batch: int
    ) -> int:
        if routine == "xsyev_batched" and not self.batched:
            raise RuntimeError("this cuSOLVER has no cusolverDnXsyevBatched")
        return self.workspace(routine, n, batch)

    def symmetric_eigen(
        self,
        routine: str,
        device: int,
        stream: int,
        n: int,
        batch: int,
        a: int,
        values: int,
        info: int,
        workspace: int,
        workspace_bytes: int,
    ) -> None:
        assert workspace_bytes >= self.workspace(routine, n, 1 if routine == "xsyevd" else batch)
        self.calls.append((routine, stream, n, batch))
        if routine == "xsyev_batched" and self.version <= (11, 7, 1):
            buffer = view(workspace, workspace_bytes, dtype=np.uint8)
            if buffer.any():
                raise RuntimeError("the workspace is not zero")
            buffer[:] = 1
        rows, w, codes = (
            view(a, batch, n, n),
            view(values, batch, n),
            view(info, batch, dtype=np.int32),
        )
        matrices = rows.copy()
        lower = np.tril(matrices.transpose(0, 2, 1))  # of the column-major matrix
        full = lower + np.tril(lower, -1).transpose(0, 2, 1)
        w[:], vectors = np.linalg.eigh(full)
        rows[:], codes[:] = vectors.transpose(0, 2, 1), 0
        if routine in self.faults:
            self.faults[routine](w, rows, codes, matrices)

    def spectral_slices(self, entries: int) -> int:
        return 1 + entries // 4096

    def scale_to_unit(
        self,
        device: int,
        stream: int,
        batch: int,
        entries: int,
        a: int,
        scaled: int,
        scale: int,
        partial: int,
    ) -> None:
        source, target = view(a, batch, entries), view(scaled, batch, entries)
        largest = np.abs(source).max(axis=1)
        finite = np.isfinite(largest)
        view(scale, batch)[:] = np.where(finite, np.where(largest == 0, 1, largest), np.nan)
        divisor = np.where(largest == 0, 1, largest)[:, None]
        with np.errstate(invalid="ignore"):
            target[:] = np.where(finite[:, None], source / divisor, 0)

    def divide_positive(
        self, device: int, stream: int, batch: int, k: int, d: int, *addresses: int
    ) -> None:
        c, a, b, threshold_a, threshold_b, y, keep = (
            view(address, *shape, dtype=dtype)
            for address, shape, dtype in zip(
                addresses,
                [(batch, k, d), (batch, k), (batch, d), (batch,), (batch,)] + [(batch, k, d)] * 2,
                [np.float64] * 6 + [np.bool_],
                strict=True,
            )
        )
        small = (a <= threshold_a[:, None])[:, :, None] & (b <= threshold_b[:, None])[:, None, :]
        divisor = np.maximum(a, 0)[:, :, None] + np.maximum(b, 0)[:, None, :]
        keep[:] = ~small
        y[:] = np.where(small, 0, c / np.where(small, 1, divisor))


class FakeStream:
    """A stream by its number; ``log`` takes what waits for what."""

    def __init__(self, number: int, log: list[tuple[Any, ...]]) -> None:
        self.cuda_stream, self._log = number, log

    def wait_stream(self, other: FakeStream) -> None:
        self._log.append(("wait", self.cuda_stream, other.cuda_stream))


class FakeCuda:
    """Streams of one device, without one."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.current = FakeStream(7, self.log)
        self.side = FakeStream(8, self.log)

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        former, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = former

    def record(self, tensor: torch.Tensor, stream: FakeStream) -> None:
        self.log.append(("record", tensor.data_ptr(), stream.cuda_stream))


def install(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeModule, FakeCuda]:
    """Let sylvinit.backends.cusolver and kernels work on CPU tensors."""
    module, cuda = FakeModule(), FakeCuda()
    monkeypatch.setattr(extension, "module", module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: cuda.current)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: cuda.side)
    monkeypatch.setattr(torch.cuda, "stream", cuda.stream)
    properties = SimpleNamespace(total_memory=2**33)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: cuda.record(x, stream))
    cusolver.library.cache_clear()
    cusolver._side_stream.cache_clear()
    return module, cuda
