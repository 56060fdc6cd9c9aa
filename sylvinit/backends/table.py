"""The table of backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sylvinit.backends import cusolver, eigen, extension, kernels
from sylvinit.backends.eigen import Pair
from sylvinit.errors import BackendError, OptionError


@dataclass(frozen=True)
class Backend:
    """A row of the table: routines like those of :mod:`sylvinit.backends.eigen`.

    ``missing`` says why they cannot run on a device (None: in this process), or "". Asking may
    initialize CUDA, so it is not asked where all tensors are on the CPU. ``divide`` may overwrite
    its first argument.
    """

    name: str
    devices: tuple[str, ...]  # types whose tensors it takes; "*" for any
    text: str  # what it runs on
    missing: Callable[[torch.device | None], str] = lambda device: ""
    eigh: Callable[..., Pair] = eigen.eigh
    eigh_pair: Callable[..., tuple[Pair, Pair]] = eigen.eigh_pair
    divide: Callable[..., Pair] = eigen.divide

    @property
    def available(self) -> bool:
        """Whether it can run in this process."""
        return not self.missing(None)

    @property
    def reason(self) -> str:
        """What it runs on, or why it cannot."""
        return self.missing(None) or self.text

    def takes(self, device: torch.device) -> bool:
        """Whether it is for tensors on such a device."""
        return "*" in self.devices or device.type in self.devices


def table() -> list[Backend]:
    """All backends, in the order in which ``backend="auto"`` tries them."""
    threads = torch.get_num_threads()
    return [
        Backend(
            "cuda",
            ("cuda",),
            "kernels of the extension, and cuSOLVER in float64; LAPACK where it fails",
            _extension_missing,
            cusolver.eigh,
            cusolver.eigh_pair,
            kernels.divide,
        ),
        Backend(
            "cpu",
            ("cpu",),
            f"LAPACK in float64, {threads} threads; SciPy where its first route fails",
        ),
        Backend(
            "torch",
            ("*",),
            "torch.linalg in float64 on the tensor's own device; SciPy where that fails",
        ),
    ]


def _extension_missing(device: torch.device | None) -> str:
    reason = extension.reason()
    if reason or device is None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if extension.supports(capability):
        return ""
    major, minor = capability
    return (
        f"the CUDA extension has no code for {device}, a GPU of architecture {major}.{minor}; "
        f"build it with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def choose(name: str, device: torch.device) -> Backend:
    """The backend for a device; BackendError if it cannot run there, OptionError if unknown."""
    if device.type == "mps":
        raise BackendError(
            "sylvinit solves in float64, which mps devices do not have; move the model to the CPU "
            "for the initialization"
        )
    rows = {row.name: row for row in table()}
    if name == "auto":
        return next(row for row in rows.values() if row.takes(device) and not row.missing(device))
    if name not in rows:
        raise OptionError(f"backend must be 'auto' or one of {list(rows)}, got {name!r}")
    row = rows[name]
    if row.available and not row.takes(device):
        raise BackendError(
            f"backend={name!r} takes tensors on {' or '.join(row.devices)}, but the model is on "
            f"{device}; use backend='auto'"
        )
    if reason := row.missing(None) or row.missing(device):
        raise BackendError(f"backend={name!r} cannot run here: {reason}")
    return row
