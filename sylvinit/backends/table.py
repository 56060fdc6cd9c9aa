"""The table of backends."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sylvinit.backends import spectral
from sylvinit.errors import BackendError, OptionError


@dataclass(frozen=True)
class Backend:
    """A row of the table.

    Attributes:
        name: "cpu", "torch" or "cuda".
        devices: device types whose tensors it takes; "*" for any.
        available: whether it can run in this process.
        reason: what it runs on, or why it cannot.
        eigh: float64 (..., n, n) -> eigenvalues (..., n), eigenvectors (..., n, n).
    """

    name: str
    devices: tuple[str, ...]
    available: bool
    reason: str
    eigh: spectral.Eigh


def table() -> list[Backend]:
    """All backends, in the order in which ``backend="auto"`` tries them."""
    threads = torch.get_num_threads()
    return [
        Backend(
            "cuda",
            ("cuda",),
            False,
            "the CUDA kernels are not part of this version; CUDA tensors use the torch backend",
            spectral.eigh,
        ),
        Backend(
            "cpu",
            ("cpu",),
            True,
            f"LAPACK in float64, {threads} threads; SciPy where its first route fails",
            spectral.eigh,
        ),
        Backend(
            "torch",
            ("*",),
            True,
            "torch.linalg in float64 on the tensor's own device; SciPy where that fails",
            spectral.eigh,
        ),
    ]


def choose(name: str, device: torch.device) -> Backend:
    """The backend for tensors on ``device``.

    Raises:
        OptionError: there is no backend of that name.
        BackendError: it cannot run here, or not on that device.
    """
    if device.type == "mps":
        raise BackendError(
            "sylvinit solves in float64, which mps devices do not have; move the model to the CPU "
            "for the initialisation"
        )
    rows = table()
    if name == "auto":
        return next(
            row
            for row in rows
            if row.available and ("*" in row.devices or device.type in row.devices)
        )
    for row in rows:
        if row.name != name:
            continue
        if not row.available:
            raise BackendError(f"backend={name!r} cannot run here: {row.reason}")
        if "*" not in row.devices and device.type not in row.devices:
            raise BackendError(
                f"backend={name!r} takes tensors on {' or '.join(row.devices)}, but the model is "
                f"on {device}; use backend='auto'"
            )
        return row
    raise OptionError(
        f"backend must be 'auto' or one of {[row.name for row in rows]}, got {name!r}"
    )
