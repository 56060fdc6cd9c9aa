"""Eigendecompositions on CUDA devices, by cuSOLVER's routines called directly.

torch.linalg.eigh looks for failures of a batch as a whole and chooses its routine by rules of its
own, which in some versions decompose a batch matrix by matrix. Here the choice is one table,
:data:`RULES`; every matrix is scaled beforehand and checked afterwards; and those that a routine
fails for go to the next, and at last to the host.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sylvinit.backends import eigen, extension, kernels
from sylvinit.backends.eigen import Pair
from sylvinit.backends.memory import memory_for
from sylvinit.errors import BackendError, SolverError

logger = logging.getLogger(__name__)


class Rule(NamedTuple):
    """Where a routine for float64 matrices is the first choice."""

    routine: str  # its name in the extension
    function: str  # and in cuSOLVER
    batch_from: int  # smallest batch
    n_to: int | None  # largest matrix, None for any


# The first rule that fits a batch is taken, the others are fallbacks. No threshold has been
# measured on a GPU yet: they come from cuSOLVER's documentation and from what users of other
# libraries report. bench/gpu_check.py prints a table of times by n and batch to tune them with.
RULES = (
    # One call for the whole batch; in cuSOLVER 11.7.1 (CUDA 12.6.2) and later. A few matrices that
    # fill a GPU each gain nothing from it, and two of them are decomposed on two streams.
    Rule("xsyev_batched", "XsyevBatched", 2, 1024),
    Rule("xsyev_batched", "XsyevBatched", 8, None),
    # Older libraries have one batched routine, by Jacobi rotations: several sweeps of O(n^3), which
    # pays as long as a matrix alone leaves most of a GPU idle.
    Rule("syevj_batched", "syevjBatched", 2, 256),
    # Divide and conquer, matrix by matrix: one large matrix fills a GPU.
    Rule("xsyevd", "Xsyevd", 1, None),
)
# As a fallback: the sweeps of larger matrices are expected to take longer than LAPACK on the host.
_JACOBI_TO = 1024
# Matrices in one call of a batched routine: larger batches are reported as invalid values from
# somewhere between 32 and 64 thousand matrices on, or where sizes in bytes pass 32 bits.
_MOST_MATRICES = 16384
_MOST_BYTES = 2**31 - 1
# Workspace of one call, also as a part of the GPU's memory: 300 KB a matrix have been reported for
# XsyevBatched at n = 16. What needs more is decomposed in several calls.
_MOST_WORKSPACE, _PART_OF_MEMORY = 4 * 2**30, 8
# The first XsyevBatched reads workspace before it has written it.
_WANTS_ZEROS = (11, 7, 1)


class Library(NamedTuple):
    """The cuSOLVER that was opened."""

    path: str
    version: tuple[int, int, int]
    xsyev_batched: bool


@functools.cache
def library() -> Library:
    """Open cuSOLVER: the one that torch has loaded, torch's or NVIDIA's packages', the system's."""
    module: Any = extension.module
    try:
        opened = Library(*module.open_cusolver(_candidates(module.CUSOLVER_SONAME)))
    except RuntimeError as error:
        raise BackendError(
            f"{error}\nInstall a torch for the CUDA version that sylvinit was built with"
        ) from error
    logger.debug("cuSOLVER %s from %s", ".".join(map(str, opened.version)), opened.path)
    return opened


def _candidates(soname: str) -> list[str]:
    folders = [Path(torch.__file__).parent / "lib"]
    packages = importlib.util.find_spec("nvidia")
    for root in (packages.submodule_search_locations or ()) if packages else ():
        folders += sorted(Path(root).glob("*/lib"))
    paths = [folder / soname for folder in folders]
    return [*(str(path) for path in paths if path.exists()), soname]


def routines_for(n: int, batch: int, xsyev_batched: bool) -> list[Rule]:
    """The routines for a batch of matrices of size n, in the order in which they are tried."""
    able = [
        rule
        for rule in RULES
        if (xsyev_batched or rule.routine != "xsyev_batched")
        and (n <= _JACOBI_TO or rule.routine != "syevj_batched")
    ]
    first = [r for r in able if batch >= r.batch_from and (r.n_to is None or n <= r.n_to)]
    once: dict[str, Rule] = {}
    for rule in [*first, *reversed(able)]:
        once.setdefault(rule.routine, rule)
    return list(once.values())


def eigh(a: Tensor, notes: list[str] | None = None) -> Pair:
    """Eigenvalues (..., n), ascending, and eigenvectors of symmetric matrices on a CUDA device.

    One triangle of the float64 matrices (..., n, n) is read, and the eigenvectors are transposed in
    memory; complex128 is left to torch.linalg. ``notes`` takes a sentence if the first routine
    failed. SolverError if all failed or entries are not finite.
    """
    if a.numel() == 0:
        return a.new_empty(a.shape[:-1], dtype=torch.float64), a.clone()
    if not _usable(a, notes):
        return eigen.eigh(a, notes)
    with _memory_for(a):
        task = _Decomposition(a)
        task.run()
        return task.result(notes)


def eigh_pair(a: Tensor, b: Tensor, notes: list[str] | None = None) -> tuple[Pair, Pair]:
    """Two of :func:`eigh` at once: in one batch if the sizes agree, else on two streams."""
    if a.numel() == 0 or b.numel() == 0 or not _usable(a, notes) or not _usable(b, notes):
        return eigh(a, notes), eigh(b, notes)
    n = a.shape[-1]
    if n == b.shape[-1]:
        flat_a, flat_b = a.reshape(-1, n, n), b.reshape(-1, n, n)
        count = len(flat_a)
        first = routines_for(n, count + len(flat_b), library().xsyev_batched)[0]
        if first.batch_from > 1:
            values, vectors = eigh(torch.cat((flat_a, flat_b)), notes)
            return (
                (values[:count].view(a.shape[:-1]), vectors[:count].reshape(a.shape)),
                (values[count:].view(b.shape[:-1]), vectors[count:].reshape(b.shape)),
            )
    with _memory_for(a, b):
        of_a, of_b = _side_by_side(a, b)
        return of_a.result(notes), of_b.result(notes)


class _RoutineError(Exception):
    """A routine of cuSOLVER returned a status."""


def _call(name: str, *arguments: Any) -> Any:
    module: Any = extension.module
    try:
        return getattr(module, name)(*arguments)
    except RuntimeError as error:
        raise _RoutineError(str(error)) from error


def _usable(a: Tensor, notes: list[str] | None) -> bool:
    if a.dtype != torch.float64:
        return False
    try:
        library()
    except BackendError as error:
        message = f"cuSOLVER cannot be called directly ({str(error).splitlines()[0]})"
        if notes is not None and message not in notes:
            notes.append(message)
        return False
    return True


def _memory_for(*tensors: Tensor) -> Any:
    sizes = " and ".join(f"{x.numel() // x.shape[-1] ** 2} of size {x.shape[-1]}" for x in tensors)
    total = sum(x.nbytes for x in tensors)
    return memory_for(f"the eigendecomposition of matrices, {sizes}", total)


class _Attempt:
    """A batch on its way through one routine, with all its memory from torch, on one stream."""

    def __init__(self, rule: Rule, scaled: Tensor) -> None:
        batch, n = scaled.shape[:2]
        self.rule, self.failure = rule, ""
        self._index, self._stream = kernels.place(scaled)
        try:
            self._chunk, size = self._split(n, batch)
        except _RoutineError as error:
            self._chunk, size, self.failure = batch, 0, str(error)
        self._rows = scaled.clone()
        self.values = scaled.new_empty((batch, n))
        # A code that no routine returns: one that returns none has failed.
        self.info = torch.full((batch,), -(2**31), dtype=torch.int32, device=scaled.device)
        # Each call has zeros of its own where they are wanted; else all share what is there.
        zeros = rule.routine == "xsyev_batched" and library().version <= _WANTS_ZEROS
        make = scaled.new_zeros if zeros else scaled.new_empty
        calls = -(-batch // self._chunk) if zeros else 1
        self._workspace = make((calls, size), dtype=torch.uint8)

    def _split(self, n: int, batch: int) -> tuple[int, int]:
        """Matrices in one call, and bytes of workspace for it."""
        place = self.rule.routine, self._index, self._stream
        workspace = functools.partial(_call, "symmetric_eigen_workspace", *place, n)
        if self.rule.batch_from == 1:
            return batch, workspace(batch)  # one matrix after the other
        chunk = max(1, min(batch, _MOST_MATRICES, _MOST_BYTES // (8 * n * n)))
        size = workspace(chunk)
        memory = torch.cuda.get_device_properties(self._index).total_memory
        most = min(_MOST_WORKSPACE, memory // _PART_OF_MEMORY)
        while chunk > 1 and size > most:
            chunk = (chunk + 1) // 2
            size = workspace(chunk)
        return chunk, size

    def run(self) -> None:
        """Queue the work. Uses nothing of torch that belongs to a thread."""
        batch, n = self.values.shape
        place = self.rule.routine, self._index, self._stream
        calls, size = self._workspace.shape
        arrays = self._rows, self.values, self.info
        for first in range(0, 0 if self.failure else batch, self._chunk):
            addresses = [x.data_ptr() + first * x.stride(0) * x.element_size() for x in arrays]
            chunk = min(self._chunk, batch - first)
            workspace = self._workspace.data_ptr() + first // self._chunk % calls * size
            try:
                _call("symmetric_eigen", *place, n, chunk, *addresses, workspace, size)
            except _RoutineError as error:
                self.failure = str(error)
                return

    @property
    def vectors(self) -> Tensor:
        """Eigenvectors (batch, n, n) as columns, a view of what the routine wrote as rows."""
        return self._rows.mT


class _Decomposition:
    """The decomposition of a tensor of matrices, from scaling to a checked result."""

    def __init__(self, a: Tensor) -> None:
        n = a.shape[-1]
        self._shape = a.shape
        self._scaled, self._scale = kernels.scale_to_unit(a.detach().reshape(-1, n, n))
        first, *self._others = routines_for(n, len(self._scaled), library().xsyev_batched)
        self._attempt = _Attempt(first, self._scaled)

    def run(self) -> None:
        self._attempt.run()

    def used_by(self, stream: Any) -> None:
        attempt = self._attempt
        for x in (self._scaled, self._scale, attempt.vectors, attempt.values, attempt.info):
            x.record_stream(stream)

    def result(self, notes: list[str] | None) -> Pair:
        """Eigenvalues and eigenvectors, those that failed from the next routines."""
        attempt, failures, used = self._attempt, [], ""
        values, vectors = attempt.values, attempt.vectors
        bad, reason = self._examine(attempt, self._scaled, self._scale)
        rows = list(range(len(values)))  # that the attempt was for
        while bad:
            which = "" if len(bad) == len(values) else f" for {len(bad)} of {len(values)} matrices"
            failures.append(f"{attempt.rule.function} failed{which} ({reason})")
            rows = [rows[index] for index in bad]
            left = self._scaled[rows]
            if not self._others:
                try:
                    values[rows], vectors[rows] = eigen.eigh_scipy(left)
                except SolverError as error:
                    raise SolverError(f"{error} (cuSOLVER's {', '.join(failures)})") from error
                used = "SciPy's QR iteration on the host"
                break
            attempt = _Attempt(self._others.pop(0), left)
            attempt.run()
            used = f"cuSOLVER's {attempt.rule.function}"
            bad, reason = self._examine(attempt, left, self._scale[rows])
            values[rows], vectors[rows] = attempt.values, attempt.vectors
        if failures and notes is not None:
            notes.append(f"cuSOLVER's {', '.join(failures)}; {used} was used")
        values = values * self._scale[:, None]
        return values.view(self._shape[:-1]), vectors.reshape(self._shape)

    def _examine(self, attempt: _Attempt, scaled: Tensor, scale: Tensor) -> tuple[list[int], str]:
        """The matrices without a result, and why the first has none; waits for the device, once."""
        n = scaled.shape[-1]
        errors = eigen.defects(scaled, attempt.values, attempt.vectors)
        seen = torch.stack((attempt.info.double(), errors, scale)).cpu()
        if not bool(seen[2].isfinite().all()):
            raise SolverError(
                f"a matrix of size {n} to be decomposed has entries that are NaN or infinite; "
                "check the data"
            )
        if attempt.failure:
            return list(range(len(scaled))), attempt.failure
        reasons = [
            f"info {int(info)}" if info else eigen.describe_defect(error, n)
            for info, error in seen[:2].T.tolist()
        ]
        bad = [index for index, reason in enumerate(reasons) if reason]
        return bad, reasons[bad[0]] if bad else ""


def _side_by_side(a: Tensor, b: Tensor) -> tuple[_Decomposition, _Decomposition]:
    """Both run, b on a stream and a thread of its own.

    One thread would feed one stream after the other, since cuSOLVER may wait for the device.
    """
    current, side = torch.cuda.current_stream(a.device), _side_stream(a.device.index or 0)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        of_b = _Decomposition(b)
    b.record_stream(side)
    of_a = _Decomposition(a)
    with ThreadPoolExecutor(max_workers=1) as executor:
        running = executor.submit(of_b.run)
        of_a.run()
        running.result()
    current.wait_stream(side)
    of_b.used_by(current)
    return of_a, of_b


@functools.cache
def _side_stream(index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device=index)
