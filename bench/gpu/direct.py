"""cuSOLVER's routines called directly: no scaling, no checks, no fallback."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sylvinit.backends import cusolver, extension

ROUTINES = ("xsyevd", "xsyev_batched", "syevj_batched")


class Direct:
    """One routine on a batch of symmetric matrices, with all memory allocated beforehand.

    The routines overwrite their input, so a call copies it first.
    """

    def __init__(self, routine: str, a: Tensor) -> None:
        self.routine, self._a = routine, a
        batch, n = a.shape[:2]
        index, module = a.device.index or 0, extension.module
        place = (routine, index, stream_of(a))
        cusolver.library()  # opened before its routines are called
        size: Any = module.symmetric_eigen_workspace(*place, n, batch)
        self._rows = torch.empty_like(a)
        self.values = a.new_empty((batch, n))
        self.info = torch.full((batch,), -1, dtype=torch.int32, device=a.device)
        self._workspace = torch.empty(size, dtype=torch.uint8, device=a.device)

    def __call__(self) -> None:
        self._rows.copy_(self._a)
        batch, n = self._a.shape[:2]
        extension.module.symmetric_eigen(
            self.routine,
            self._a.device.index or 0,
            stream_of(self._a),
            n,
            batch,
            self._rows.data_ptr(),
            self.values.data_ptr(),
            self.info.data_ptr(),
            self._workspace.data_ptr(),
            self._workspace.numel(),
        )

    def failed(self) -> int:
        """Matrices without a result; waits for the device."""
        return int((self.info != 0).sum())


def stream_of(a: Tensor) -> int:
    """The current stream of its device, as an integer."""
    return torch.cuda.current_stream(a.device).cuda_stream


def covariances(batch: int, n: int, device: str) -> Tensor:
    """Symmetric positive definite float64 matrices (batch, n, n)."""
    generator = torch.Generator(device).manual_seed(n)
    x = torch.randn(batch, n, n + 5, generator=generator, dtype=torch.float64, device=device)
    a = x @ x.mT / n
    return (a + a.mT) / 2
