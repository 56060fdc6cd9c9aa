"""The dispatch table of the solver: which route takes which equation, and the thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sylvinit.sylvester import lapack

# Batches are shared out over threads up to this matrix size; above it BLAS uses the threads
# itself. Measured on 2 cores, 16 equations of size (n, n): threads over the batch are faster up to
# 256 (bench/bench_solver.py::test_threads).
BATCH_THREADS_UP_TO = 256
# ... and from this many flops on: starting a thread costs about 20 microseconds.
_WORTH_A_THREAD = 1e6


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
            "both matrices diagonalised by torch.linalg.eigh in float64; also for sylvester_factor",
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


def threads_for(count: int, k: int, d: int, any_size: bool = False) -> int:
    """Threads over a batch of ``count`` equations of size (k, d).

    Args:
        count: equations.
        k: size of a.
        d: size of b.
        any_size: also for large matrices, where BLAS would not use threads itself.
    """
    if count < 2 or (max(k, d) > BATCH_THREADS_UP_TO and not any_size):
        return 1
    if 10.0 * count * (k**3 + d**3) < _WORTH_A_THREAD:
        return 1
    return min(count, torch.get_num_threads())
