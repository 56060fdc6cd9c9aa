"""Which routine decomposes what, and what happens when it fails: on CPU tensors, see fake_cuda."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from fake_cuda import FakeModule
from torch import Tensor

from sylvinit.backends import cusolver, kernels
from sylvinit.backends.eigen import Thresholds
from sylvinit.errors import BackendError, DeviceMemoryError, SolverError

CLOSE = 1e-12  # backward stable decompositions of matrices of unit size, up to 60


def symmetric(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + x.mT


def assert_decomposition(a: Tensor, values: Tensor, vectors: Tensor) -> None:
    assert values.shape == a.shape[:-1]
    assert vectors.shape == a.shape
    size = a.abs().amax()
    assert float((vectors * values[..., None, :] @ vectors.mT - a).abs().amax() / size) < CLOSE
    eye = torch.eye(a.shape[-1], dtype=torch.float64)
    assert float((vectors.mT @ vectors - eye).abs().amax()) < CLOSE
    assert bool((values.diff(dim=-1) >= 0).all())


def names(n: int, batch: int, batched: bool) -> list[str]:
    return [rule.routine for rule in cusolver.routines_for(n, batch, batched)]


def used(module: FakeModule) -> list[str]:
    return [routine for routine, *_ in module.calls]


# ------------------------------------------------------------------------------------ the choice


def test_first_choices() -> None:
    assert [names(n, 1, True)[0] for n in (1, 32, 4608)] == ["xsyevd"] * 3
    assert [names(n, 2, True)[0] for n in (1, 1024, 1025)] == ["xsyev_batched"] * 2 + ["xsyevd"]
    assert [names(n, 8, True)[0] for n in (1, 4608)] == ["xsyev_batched"] * 2
    assert [names(n, 2, False)[0] for n in (1, 256, 257)] == ["syevj_batched"] * 2 + ["xsyevd"]


@pytest.mark.parametrize("batch", [1, 2, 500])
@pytest.mark.parametrize("n", [1, 256, 257, 1024, 1025])
def test_all_that_can_be_used_are_tried_once(n, batch) -> None:
    with_it, without = names(n, batch, True), names(n, batch, False)
    jacobi = ["syevj_batched"] if n <= 1024 else []
    assert sorted(with_it) == sorted(["xsyevd", "xsyev_batched", *jacobi])
    assert sorted(without) == sorted(["xsyevd", *jacobi])


@pytest.mark.parametrize(
    "shape", [(5, 5), (1, 6, 6), (4, 1, 1), (3, 2, 9, 9), (0, 4, 4), (2, 0, 0)]
)
def test_decomposition(module, shape) -> None:
    notes: list[str] = []
    a = symmetric(*shape)
    values, vectors = cusolver.eigh(a, notes)
    assert values.shape == shape[:-1]
    if a.numel():
        assert_decomposition(a, values, vectors)
        assert len(module.calls) == 1
        assert module.calls[0][1] == 7  # the current stream
    assert notes == []


def test_matrices_that_are_not_contiguous(module) -> None:
    a = symmetric(6, 8, 8).transpose(1, 2)[::2].expand(2, 3, 8, 8)
    assert_decomposition(a, *cusolver.eigh(a))
    leaf = symmetric(4, 4).requires_grad_()
    assert not cusolver.eigh(leaf)[1].requires_grad


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def test_scaled_beforehand(module, size) -> None:
    seen = []
    module.faults["xsyevd"] = lambda w, rows, info, a: seen.append(np.abs(a).max())
    a = size * symmetric(20, 20)
    assert_decomposition(a, *cusolver.eigh(a))
    assert seen == [1.0]


def test_zeros(module) -> None:
    a = symmetric(3, 5, 5)
    a[1] = 0
    values, vectors = cusolver.eigh(a)
    assert_decomposition(a, values, vectors)
    assert values[1].tolist() == [0] * 5


def test_complex_matrices_are_left_to_torch(module) -> None:
    a = torch.randn(3, 4, 4, dtype=torch.complex128)
    a = a + a.mH
    values, vectors = cusolver.eigh(a)
    assert module.calls == []
    assert torch.allclose(vectors * values[..., None, :] @ vectors.mH, a)
    (values, _), (others, _) = cusolver.eigh_pair(a, a[0])
    assert module.calls == []
    assert torch.equal(values[0], others)


# ------------------------------------------------------------------------------------- the ladder


def fail_with(code: int, only: int | None = None):
    """A fault: the info code of one matrix of a batch, or of all; results that mean nothing."""

    def fault(values, rows, info, matrices) -> None:
        at = slice(None) if only is None else slice(only, only + 1)
        info[at], rows[at], values[at] = code, 0, np.nan

    return fault


def refuse(values, rows, info, matrices) -> None:
    raise RuntimeError("cusolverDnXsyevd returned CUSOLVER_STATUS_INVALID_VALUE, status 3")


def nan_vectors(values, rows, info, matrices) -> None:
    rows[-1, 0, 0] = np.nan


def wrong_vectors(values, rows, info, matrices) -> None:
    rows[:] = np.eye(rows.shape[-1])


def swapped_values(values, rows, info, matrices) -> None:
    values[:] = values[:, ::-1].copy()


def unwritten(values, rows, info, matrices) -> None:
    info[:], rows[:] = -(2**31), matrices


FAULTS = {
    "info": (fail_with(5), "info 5"),
    "status": (refuse, "CUSOLVER_STATUS_INVALID_VALUE"),
    "nan": (nan_vectors, "not finite"),
    "wrong vectors": (wrong_vectors, "off by"),
    "wrong values": (swapped_values, "off by"),
    "nothing written": (unwritten, "info -2147483648"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("batch", [1, 5])
def test_another_routine_takes_over(module, fault, batch) -> None:
    first, second, _ = cusolver.routines_for(12, batch, True)
    module.faults[first.routine], reason = FAULTS[fault]
    a, notes = symmetric(batch, 12, 12), []
    assert_decomposition(a, *cusolver.eigh(a, notes))
    assert used(module) == [first.routine, second.routine]
    assert len(notes) == 1
    assert notes[0].startswith(f"cuSOLVER's {first.function} failed")
    assert reason in notes[0]
    assert notes[0].endswith(f"; cuSOLVER's {second.function} was used")


def test_only_what_failed_is_done_again(module) -> None:
    module.faults["xsyev_batched"] = fail_with(3, only=2)
    module.faults["syevj_batched"] = fail_with(13)
    a, notes = symmetric(6, 12, 12), []
    assert_decomposition(a, *cusolver.eigh(a, notes))
    assert [(routine, batch) for routine, _, _, batch in module.calls] == [
        ("xsyev_batched", 6),
        ("syevj_batched", 1),
        ("xsyevd", 1),
    ]
    assert notes == [
        "cuSOLVER's XsyevBatched failed for 1 of 6 matrices (info 3), syevjBatched failed for 1 of "
        "6 matrices (info 13); cuSOLVER's Xsyevd was used"
    ]


def test_different_matrices_fail_in_turn(module) -> None:
    """Of matrices 1 to 4 the second routine fails for its first and last: those are 1 and 4."""
    module.faults["xsyev_batched"] = lambda w, rows, info, a: info.__setitem__(slice(1, 5), 1)

    def second(values, rows, info, matrices) -> None:
        rows[[0, -1]] = np.nan

    module.faults["syevj_batched"] = second
    a = symmetric(6, 12, 12)
    assert_decomposition(a, *cusolver.eigh(a, None))
    assert [batch for *_, batch in module.calls] == [6, 4, 2]


def test_the_host_at_last(module) -> None:
    module.faults.update(dict.fromkeys(("xsyev_batched", "syevj_batched", "xsyevd"), refuse))
    a, notes = 1e-200 * symmetric(3, 12, 12), []
    assert_decomposition(a, *cusolver.eigh(a, notes))
    assert len(module.calls) == 3
    assert notes[0].endswith("; SciPy's QR iteration on the host was used")


def test_nothing_works(module, monkeypatch) -> None:
    module.faults.update(dict.fromkeys(("xsyev_batched", "syevj_batched", "xsyevd"), fail_with(2)))

    def gives_up(*args, **kwargs):
        raise scipy.linalg.LinAlgError("no convergence either")

    monkeypatch.setattr(scipy.linalg, "eigh", gives_up)
    with pytest.raises(SolverError, match=r"no convergence either.*XsyevBatched failed \(info 2\)"):
        cusolver.eigh(symmetric(3, 12, 12))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(module, bad) -> None:
    seen = []
    module.faults["xsyev_batched"] = lambda w, rows, info, a: seen.append(np.isfinite(a).all())
    a = symmetric(3, 12, 12)
    a[1, 2, 3] = bad
    with pytest.raises(SolverError, match="size 12 to be decomposed has entries that are NaN or"):
        cusolver.eigh(a)
    assert seen == [True]  # routines that hang on NaN never see it


def test_a_library_without_the_batched_routine(module) -> None:
    module.batched = False
    a, notes = symmetric(4, 12, 12), []
    assert_decomposition(a, *cusolver.eigh(a, notes))
    assert used(module) == ["syevj_batched"]
    assert notes == []


def test_no_library(module, monkeypatch) -> None:
    def fails(candidates):
        raise RuntimeError("cuSOLVER (libcusolver.so.12) cannot be opened; tried:\n  here")

    monkeypatch.setattr(module, "open_cusolver", fails)
    with pytest.raises(BackendError, match="Install a torch for the CUDA version"):
        cusolver.library()
    a, notes = symmetric(4, 12, 12), []
    assert_decomposition(a, *cusolver.eigh(a, notes))
    (first, second), _ = cusolver.eigh_pair(a, symmetric(7, 7), notes)
    assert_decomposition(a, first, second)
    assert module.calls == []
    assert len(notes) == 1
    assert "cannot be called directly (cuSOLVER (libcusolver.so.12) cannot be opened" in notes[0]


# ------------------------------------------------------------------------------------------ memory


def test_large_batches_are_split(module) -> None:
    module.workspace = lambda routine, n, batch: 300_000 * batch
    a = symmetric(5000, 3, 3)
    assert_decomposition(a, *cusolver.eigh(a))
    sizes = [batch for *_, batch in module.calls]
    assert sum(sizes) == 5000
    assert len(sizes) == 2  # 2500 matrices ask for less than an eighth of 8 GiB
    module.calls.clear()
    module.workspace = lambda routine, n, batch: 8
    assert_decomposition(a, *cusolver.eigh(a))
    assert [batch for *_, batch in module.calls] == [5000]


def test_the_number_of_matrices_in_a_call_is_bounded(module) -> None:
    a = symmetric(40000, 1, 1)
    assert_decomposition(a, *cusolver.eigh(a))
    assert [batch for *_, batch in module.calls] == [16384, 16384, 7232]


def test_the_first_xsyev_batched_gets_zeros_in_every_call(module, monkeypatch) -> None:
    """The stand-in of that version looks at its workspace, and leaves something in it."""
    monkeypatch.setattr(cusolver, "_MOST_MATRICES", 2)
    module.version = (11, 7, 1)
    a, notes = symmetric(7, 4, 4), []
    assert_decomposition(a, *cusolver.eigh(a, notes))
    assert used(module) == ["xsyev_batched"] * 4
    assert notes == []


def test_a_failure_of_a_part_is_one_of_the_batch(module, monkeypatch) -> None:
    monkeypatch.setattr(cusolver, "_MOST_MATRICES", 2)

    def third(values, rows, info, matrices) -> None:
        if len(module.calls) == 3:
            raise RuntimeError("status 7")

    module.faults["xsyev_batched"] = third
    a, notes = symmetric(7, 4, 4), []
    assert_decomposition(a, *cusolver.eigh(a, notes))
    assert "status 7" in notes[0]


def out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB"
    )


def test_out_of_memory(module, monkeypatch) -> None:
    message = (
        r"too little memory for the eigendecomposition of matrices, 3 of size 12: 0.0 MiB.*"
        r"\(CUDA out of memory. Tried to allocate 20.00 GiB\).*max_samples="
    )
    a = symmetric(3, 12, 12)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "clone", out_of_memory)
        with pytest.raises(DeviceMemoryError, match=message) as caught:
            cusolver.eigh(a)
        assert isinstance(caught.value, torch.OutOfMemoryError)
        with pytest.raises(DeviceMemoryError, match="3 of size 12 and 1 of size 20"):
            cusolver.eigh_pair(a, symmetric(20, 20))
    assert module.calls == []
    assert_decomposition(a, *cusolver.eigh(a))
    thresholds = Thresholds(torch.zeros(3).double(), torch.zeros(3).double())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", out_of_memory)
        with pytest.raises(DeviceMemoryError, match="for 3 right-hand sides of size 12 x 12"):
            kernels.divide(a, a[..., 0], a[..., 0], thresholds)


# ---------------------------------------------------------------------------------- two at a time


def test_pairs_of_one_size_are_one_batch(module, cuda) -> None:
    a, b = symmetric(2, 3, 9, 9), symmetric(4, 9, 9, seed=1)
    of_a, of_b = cusolver.eigh_pair(a, b)
    assert_decomposition(a, *of_a)
    assert_decomposition(b, *of_b)
    assert module.calls == [("xsyev_batched", 7, 9, 10)]
    assert cuda.log == []


def test_pairs_on_two_streams(module, cuda) -> None:
    a, b = symmetric(2, 9, 9), symmetric(2, 14, 14, seed=1)
    of_a, of_b = cusolver.eigh_pair(a, b)
    assert_decomposition(a, *of_a)
    assert_decomposition(b, *of_b)
    assert sorted(module.calls) == [("xsyev_batched", 7, 9, 2), ("xsyev_batched", 8, 14, 2)]
    waits = [entry for entry in cuda.log if entry[0] == "wait"]
    assert waits == [("wait", 8, 7), ("wait", 7, 8)]
    assert cuda.log[0] == waits[0]  # before anything of b is queued
    recorded = cuda.log.index(waits[1])
    assert ("record", b.data_ptr(), 8) in cuda.log[:recorded]
    # What the current stream reads of the other's memory: scaled matrices and their sizes, vectors,
    # values and codes.
    assert [stream for kind, _, stream in cuda.log[recorded + 1 :] if kind == "record"] == [7] * 5


def test_failures_on_the_second_stream(module, cuda) -> None:
    def of_the_larger(values, rows, info, matrices) -> None:
        if rows.shape[-1] == 14:
            info[:] = 4

    module.faults["xsyevd"] = of_the_larger
    notes: list[str] = []
    a, b = symmetric(9, 9), symmetric(14, 14, seed=1)
    of_a, of_b = cusolver.eigh_pair(a, b, notes)
    assert_decomposition(a, *of_a)
    assert_decomposition(b, *of_b)
    assert module.calls[-1] == ("syevj_batched", 7, 14, 1)
    assert len(notes) == 1


def test_errors_of_the_other_thread_are_raised(module) -> None:
    def broken(values, rows, info, matrices) -> None:
        if rows.shape[-1] == 14:
            raise ValueError("bug")

    module.faults["xsyevd"] = broken
    with pytest.raises(ValueError, match="bug"):
        cusolver.eigh_pair(symmetric(9, 9), symmetric(14, 14))


def test_a_pair_with_nothing_to_do(module) -> None:
    (values, _), (none, _) = cusolver.eigh_pair(symmetric(3, 3), torch.zeros(0, 5, 5).double())
    assert values.shape == (3,)
    assert none.shape == (0, 5)
