"""The dispatch table of the solver: which route takes which equation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sylvinit.sylvester import lapack


@dataclass(frozen=True)
class Route:
    """A row of the table.

    Attributes:
        name: "tridiagonal", "spectral" or "schur".
        structures: values of ``assume_a`` that it takes ("auto" becomes "sym" or "gen" first).
        devices: device types, "*" for any.
        available: whether it can run in this process.
        text: what it does.
    """

    name: str
    structures: tuple[str, ...]
    devices: tuple[str, ...]
    available: bool
    text: str


def table() -> list[Route]:
    """All routes; the first that fits is taken."""
    compiled = lapack.AVAILABLE
    return [
        Route(
            "tridiagonal",
            ("sym", "pos"),
            ("cpu",),
            compiled,
            "smaller matrix diagonalised, larger one to tridiagonal form: LAPACK in float64, "
            "batches over threads"
            if compiled
            else f"needs the compiled module: {lapack.REASON}",
        ),
        Route(
            "spectral",
            ("sym", "pos"),
            ("*",),
            True,
            "both matrices diagonalised in float64, by cuSOLVER where backend cuda runs, else by "
            "torch.linalg.eigh; also for sylvester_factor",
        ),
        Route(
            "schur",
            ("gen",),
            ("*",),
            True,
            "Schur forms, recursively blocked trsyl: "
            + ("LAPACK, batches over threads" if compiled else "SciPy, one equation at a time")
            + "; tensors on other devices are solved on the host",
        ),
    ]


def choose(structure: str, device: torch.device) -> str:
    """Name of the route; "auto" where values cannot be looked at takes Schur forms."""
    if structure in ("gen", "auto"):
        return "schur"
    return "tridiagonal" if lapack.AVAILABLE and device.type == "cpu" else "spectral"
