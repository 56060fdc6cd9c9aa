"""LAPACK on the CPU through the compiled module: the tridiagonal and the Schur route.

Tensors here are contiguous float64 or complex128 on the CPU, in C++ seen as column-major: what it
calls the left matrix is B^T, the right one A^T (csrc/solver/problem.h).
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from sylvinit.errors import SolverError
from sylvinit.sylvester.matrices import adjoint_of
from sylvinit.sylvester.outcome import Mode, Outcome, Status

_lapack: Any
try:
    from sylvinit import _lapack  # type: ignore[attr-defined,no-redef]

    AVAILABLE, REASON = True, ""
except ImportError as error:
    _lapack = None
    AVAILABLE, REASON = False, str(error)


def description() -> str:
    """What solve_sylvester runs on for tensors on the CPU, and why on nothing better."""
    if AVAILABLE:
        return "LAPACK through the compiled module, batches over threads"
    return f"torch.linalg and SciPy, slower: the compiled module does not load ({REASON})"


# The workspace of LAPACK's dsyevd, 1 + 6 n + 2 n^2, must fit into 32 bits.
LARGEST = 32000
# Batches smaller than the number of threads are shared out up to this matrix size; above it BLAS
# is left the threads. On 2 cores, BLAS alone gains nothing up to 256 and a factor of 1.3 at 512;
# with more cores than equations nothing has been measured.
_SMALL_BATCH_UP_TO = 256
# Up to this size BLAS takes one thread by itself.
_NO_THREADS = 32
# Size from which BLAS saves more time with its threads than they then spin (of 105 ms for 1,152, a
# third on 2 cores).
_WORTH_WAKING = 1000
# Flops from which a thread is worth starting, which takes about 20 microseconds.
_WORTH_A_THREAD = 1e6


def threads_for(count: int, k: int, d: int) -> int:
    """Threads over a batch of ``count`` equations of size (k, d)."""
    threads = min(count, torch.get_num_threads())
    too_little = 10.0 * count * (k**3 + d**3) < _WORTH_A_THREAD
    few_and_large = count < torch.get_num_threads() and max(k, d) > _SMALL_BATCH_UP_TO
    return 1 if threads < 2 or too_little or few_and_large else threads


@functools.cache
def _libraries() -> ThreadpoolController:
    """The BLAS libraries of the process; looking for them takes milliseconds."""
    return ThreadpoolController()


def _of_wheels() -> ThreadpoolController:
    """Those that wheels of NumPy and SciPy bring along; torch may use any other one, too."""
    folders = [(x.filepath, Path(x.filepath).parent) for x in _libraries().lib_controllers]
    brought = [
        path
        for path, folder in folders
        if folder.name in ("numpy.libs", "scipy.libs")
        or (folder.name == ".dylibs" and folder.parent.name in ("numpy", "scipy"))
    ]
    return _libraries().select(filepath=brought)


# Held by the caller that limits BLAS. The limit belongs to the process, and OpenBLAS gives it back
# only to the thread that set it.
_limiting = threading.Lock()
_seldom = threading.local()  # .limit: of blas_seldom(), on the thread that is in it


@contextlib.contextmanager
def blas_for(threads: int, size: int = 0) -> Iterator[None]:
    """BLAS on one thread while several threads of ours call it, or for matrices of a small size.

    OpenBLAS lets them wait for each other's turn on its own threads. On 2 cores, for batches of
    16 equations, the speed-up over one thread is 1.4 to 1.8 for sizes 32 to 512 with BLAS held
    back, 0.6 to 0.8 for 128 and more without (bench/bench_solver.py::test_threads). One small
    matrix gains nothing from them.
    """
    limit = getattr(_seldom, "limit", None)
    if limit is not None and threads < 2 and size > _WORTH_WAKING:
        limit.restore_original_limits()
        try:
            yield
        finally:
            _of_wheels().limit(limits=1, user_api="blas")
        return
    held = threads > 1 or _NO_THREADS < size <= _SMALL_BATCH_UP_TO
    if not held or not _limiting.acquire(blocking=False):
        yield  # another caller holds BLAS back already, and gives its threads back in its time
        return
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()


@contextlib.contextmanager
def blas_seldom() -> Iterator[None]:
    """BLAS on one thread but for large matrices, for a network whose layers are solved in turn.

    After a call the threads of BLAS spin for some 20 ms and so take the cores from those of torch,
    which runs the layers in between: on 2 cores ResNet-20 took 3.8 s with them and 2.8 without.
    A library that torch itself may multiply with (MKL of conda, OpenBLAS of the system) is left
    alone.
    """
    libraries = _of_wheels()
    if not libraries.lib_controllers or not _limiting.acquire(blocking=False):
        yield
        return
    try:
        with libraries.limit(limits=1, user_api="blas") as _seldom.limit:
            yield
    finally:
        _seldom.limit = None
        _limiting.release()


def inspect(x: Tensor) -> tuple[float, float]:
    """Largest |x_ij| over a batch and, for square matrices, largest |x_ij - conj(x_ji)|."""
    rows, columns = x.shape[-2:]
    count = math.prod(x.shape[:-2])
    return _lapack.inspect(x.data_ptr(), count, rows, columns, x.dtype.is_complex)


def core_shape(form: str, n: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Shape of the core of one matrix of size n."""
    if form == "spectral":
        return (n,)
    return (n, n) if form == "schur" else (4 if dtype.is_complex else 3, n)


def core_dtype(form: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the core; those of Hermitian matrices are real."""
    return dtype if form == "schur" else torch.float64


def decompose(name: str, x: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Basis (..., n, n) and core (see :func:`core_shape`), in the storage of csrc/solver.

    SolverError if the iteration does not converge or the matrices are too large.
    """
    n, count = x.shape[-1], math.prod(x.shape[:-2])
    if n > LARGEST:
        raise SolverError(
            f"{name} has size {n}, but LAPACK's 32-bit workspace ends at {LARGEST}; move the "
            "tensors to a GPU, or use solve_sylvester_lowrank"
        )
    basis = torch.empty_like(x)
    shape = (*x.shape[:-2], *core_shape(form, n, x.dtype))
    # Zeros: the off-diagonals fill their rows but for one entry.
    core = torch.zeros(shape, dtype=core_dtype(form, x.dtype), device="cpu")
    threads = threads_for(count, n, n)
    options = basis.data_ptr(), core.data_ptr(), x.dtype.is_complex, threads
    with blas_for(threads, n):
        failed = _lapack.decompose(getattr(_lapack, form.upper()), x.data_ptr(), count, n, *options)
    if failed >= 0:
        raise SolverError(
            f"the eigenvalue iteration for {name} did not converge (matrix {failed} of its batch); "
            "scale the matrices to similar size"
        )
    return basis, core


def solve_hermitian_direct(
    a: Tensor, b: Tensor, q: Tensor, eps: float, positive: bool
) -> tuple[Tensor, Outcome] | None:
    """The whole solve in one call, where each equation has its own a, b and q, and k <= d.

    None if an entry is not finite or a matrix is not Hermitian to the bit.
    """
    *batch, k, d = q.shape
    count = math.prod(batch)
    threads = threads_for(count, k, d) if count > 1 else 1
    x = torch.empty_like(q)
    operands = a.data_ptr(), b.data_ptr(), q.data_ptr(), x.data_ptr(), count, k, d
    options = q.dtype.is_complex, eps, positive, threads
    if threads < 2:
        found = _lapack.solve_hermitian_direct(*operands, *options)
    else:
        with blas_for(threads):
            found = _lapack.solve_hermitian_direct(*operands, *options)
    return None if found is None else (x, Outcome(Status(found[0]), *found[1:]))


def solve(
    matrices: tuple[Tensor, Tensor],
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    q: Tensor,
    form: str,
    mode: Mode,
) -> tuple[Tensor, Outcome]:
    """X (..., k, d) from bases and cores of a, then of b; batch dimensions broadcast.

    The form is "schur", or "tridiagonal" for the larger matrix and "spectral" for the smaller one.
    """
    k, d = q.shape[-2:]
    if form == "tridiagonal" and k > d:  # of B X^H + X^H A = Q^H
        turned = (matrices[1], matrices[0]), (*factors[2:], *factors[:2])
        x, outcome = solve(*turned, adjoint_of(q), form, mode)
        return adjoint_of(x), outcome.swapped()
    of_a, batch_a = _flat((matrices[0], *factors[:2]), (2, 2, 2 if form == "schur" else 1))
    of_b, batch_b = _flat((matrices[1], *factors[2:]), (2, 2, 2))
    right, batch_q = _flat((q,), (2,))
    batch = torch.broadcast_shapes(batch_a, batch_b, batch_q)
    count = math.prod(batch)
    x = q.new_empty((*batch, k, d))
    picks = [_index(part, batch) for part in (batch_b, batch_a, batch_q)]
    operands = _lapack.Operands(
        *(tensor.data_ptr() for tensor in (*of_b, *of_a, *right, x)),
        *(0 if pick is None else pick.data_ptr() for pick in picks),
    )
    call, flag = _lapack.solve_hermitian, mode.positive
    if form == "schur":
        call, flag = _lapack.solve_general, mode.adjoint
    threads = threads_for(count, k, d)
    options = x.dtype.is_complex, mode.eps, flag, mode.checked, threads
    with blas_for(threads, max(k, d)):
        found = call(operands, count, d, k, *options)
    return x, Outcome(Status(found[0]), *found[1:])


def _flat(tensors: Sequence[Tensor], dimensions: Sequence[int]) -> tuple[list[Tensor], torch.Size]:
    """Tensors with one batch dimension, by the dimensions of one entry; their batch shape."""
    shapes = [(x.shape[:-own], x.shape[-own:]) for x, own in zip(tensors, dimensions, strict=True)]
    batch = torch.broadcast_shapes(*(own_batch for own_batch, _ in shapes))
    return [
        x.expand(*batch, *entry).reshape(-1, *entry).contiguous()
        for x, (_, entry) in zip(tensors, shapes, strict=True)
    ], batch


def _index(batch: torch.Size, whole: torch.Size) -> Tensor | None:
    """Which entry of a batch each entry of the whole one takes; None: its own."""
    if batch == whole:
        return None
    count = torch.arange(math.prod(batch), device="cpu").view(batch)
    return count.expand(whole).flatten().contiguous()


def count_significant(core: Tensor, relative: float, absolute: Tensor, threads: int) -> Tensor:
    """Eigenvalues above relative * largest + absolute (batch,) of cores (batch, 3, n)."""
    count, _, n = core.shape
    largest = torch.empty(count, dtype=torch.float64, device="cpu")
    ranks = torch.empty(count, dtype=torch.int64, device="cpu")
    addresses = absolute.data_ptr(), largest.data_ptr(), ranks.data_ptr()
    _lapack.count_significant(core.data_ptr(), count, n, relative, *addresses, threads)
    return ranks


def principal_rows(
    operands: Sequence[Tensor], lam: float, copies: float, dual: bool, threads: int
) -> bool:
    """Fill the last five operands, those of csrc/solver/bindings.cpp; False if a matrix fails."""
    count, n, _ = operands[0].shape
    batch = _lapack.PrincipalBatch(*(tensor.data_ptr() for tensor in operands))
    most = operands[-1].shape[1]
    with blas_for(threads, n):
        return _lapack.principal_rows(batch, count, n, most, lam, copies, dual, threads) < 0
