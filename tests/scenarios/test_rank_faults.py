"""One rank is at fault: all ranks raise, and every model is as it was."""

from __future__ import annotations

import pytest
import rank_jobs
from rank_pool import RankPool, needs_gloo

pytestmark = needs_gloo


@pytest.mark.parametrize("culprit", [0, 2])
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("raises", "RuntimeError"),
        ("NaN", "NonFiniteError"),
        ("Ctrl-C", "KeyboardInterrupt"),
        ("out of memory", "OutOfMemoryError"),
        ("bad data", "OSError"),
        ("NaN in the data", "DataError"),
        ("invalid options", "OptionError"),
    ],
)
def test_an_error_of_one_rank_is_one_of_all(
    pool: RankPool, kind: str, error: str, culprit: int
) -> None:
    for rank, (found, text) in enumerate(pool.values(3, rank_jobs.fault, kind, culprit)):
        if rank == culprit:
            assert found == error
        else:
            # What only puts a start of preset "auto" out is raised as what it is.
            assert found == ("NonFiniteError" if kind == "NaN" else "RankError")
            assert f"rank {culprit} raised {error}" in text


def test_a_start_that_fails_on_one_rank_is_out_on_all(pool: RankPool) -> None:
    """Of preset "auto"; the others go on, and a rank without samples follows."""
    (first, reasons), *others = pool.values(3, rank_jobs.with_a_start_that_fails)
    for state, said in others:
        assert said == reasons
        assert all(x.tobytes() == first[name].tobytes() for name, x in state.items())
    assert "rank 2 raised NonFiniteError" in reasons["own"]
    assert reasons["best"] == ""


@pytest.mark.parametrize(
    ("kind", "difference"),
    [
        ("other options", "'lam=10.0' on rank 0, 'lam=3.0' on rank 1"),
        ("other weights", "'conv2.weight: torch.float64 (8, 4, 3, 3)"),
        ("other layers", "'nothing' on rank 0, '12.weight: torch.float64 (4, 4)"),
        ("other order", "'fc (Linear): 1 calls, input 0, addends' on rank 0, 'frozen (Linear)"),
    ],
)
def test_ranks_that_differ(pool: RankPool, kind: str, difference: str) -> None:
    """The first difference is said before anything is written."""
    for found, text in pool.values(3, rank_jobs.fault, kind, 1):
        assert found == "RankError"
        assert difference in text


def test_labels_on_some_ranks_alone(pool: RankPool) -> None:
    for found, text in pool.values(3, rank_jobs.fault, "no labels", 1):
        assert found == "LabelError"
        assert "give all or none" in text


def test_no_samples_at_all(pool: RankPool) -> None:
    for found, text in pool.values(3, rank_jobs.fault, "empty", 0):
        assert found == "DataError"
        assert "empty on every rank" in text


def test_the_ranks_work_on(pool: RankPool) -> None:
    """After errors the group is as before, and so are the processes."""
    pool.values(3, rank_jobs.fault, "raises", 1)
    assert pool.values(3, rank_jobs.fault, "none", 1) == [("", "")] * 3


def test_a_rank_that_is_killed() -> None:
    """The others end with an error, and nothing half-written."""
    pool = RankPool(3)
    try:
        one, two, three = pool.run(3, rank_jobs.fault, "killed", 1, fails=True)
        assert two.error == "ended"
        for outcome in (one, three):
            assert not outcome.error, outcome.trace  # the model was as before
            assert outcome.value[0] == "RankError"
            assert "A rank has ended" in outcome.value[1]
    finally:
        pool.close()
