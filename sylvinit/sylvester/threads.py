"""Threads over a batch, and BLAS without threads of its own meanwhile."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

import torch
from threadpoolctl import ThreadpoolController

# Batches smaller than the number of threads are shared out up to this matrix size; above it BLAS
# is left the threads. On 2 cores, BLAS alone gains nothing up to 256 and a factor of 1.3 at 512;
# with more cores than equations nothing has been measured.
SMALL_BATCH_UP_TO = 256
# Flops from which a thread is worth starting, which takes about 20 microseconds.
_WORTH_A_THREAD = 1e6


def threads_for(count: int, k: int, d: int) -> int:
    """Threads over a batch of ``count`` equations of size (k, d)."""
    threads = min(count, torch.get_num_threads())
    if threads < 2 or 10.0 * count * (k**3 + d**3) < _WORTH_A_THREAD:
        return 1
    if count < torch.get_num_threads() and max(k, d) > SMALL_BATCH_UP_TO:
        return 1
    return threads


@functools.cache
def _libraries() -> ThreadpoolController:
    """The BLAS libraries of the process; looking for them takes milliseconds."""
    return ThreadpoolController()


# Held by the caller that limits BLAS. The limit belongs to the process, and OpenBLAS gives it back
# only to the thread that set it.
_limiting = threading.Lock()


@contextlib.contextmanager
def blas_for(threads: int) -> Iterator[None]:
    """BLAS on one thread while several threads of ours call it.

    OpenBLAS lets them wait for each other's turn on its own threads. On 2 cores, for batches of
    16 equations, the speed-up over one thread is 1.4 to 1.8 for sizes 32 to 512 with BLAS held
    back, 0.6 to 0.8 for 128 and more without (bench/bench_solver.py::test_threads).
    """
    if threads < 2 or not _limiting.acquire(blocking=False):
        yield  # another caller holds BLAS back already, and gives its threads back in its time
        return
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()
