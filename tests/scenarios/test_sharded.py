"""Networks that lie on several processes: sharded by FSDP2, tensor parallel, flat in FSDP1."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shard_jobs
from rank_pool import RankPool, needs_gloo
from shard_jobs import Arrays

pytestmark = needs_gloo

PROCESSES = 2


def piece_of(x: np.ndarray, rank: int, pieces: int, axis: int = 0) -> np.ndarray:
    """What a rank has of a tensor: torch cuts into pieces of one length, and the last are short."""
    step = -(-x.shape[axis] // pieces)
    return x[(slice(None),) * axis + (slice(rank * step, (rank + 1) * step),)]


def assert_pieces(found: list[Arrays], whole: Arrays, pieces: int) -> None:
    """Every rank has, to the bit, its piece of the parameters, and all of buffers."""
    for rank, shards in enumerate(found):
        assert shards.keys() == whole.keys()
        for name, x in shards.items():
            expected = whole[name]
            if x.shape != expected.shape:
                axis = next(i for i, n in enumerate(x.shape) if n != expected.shape[i])
                expected = piece_of(expected, rank % pieces, pieces, axis)
            assert x.shape == expected.shape, name
            assert x.tobytes() == expected.tobytes(), name


def assert_close(found: Arrays, expected: Arrays, bound: float) -> None:
    for name, x in found.items():
        y = expected[name]
        difference = np.linalg.norm(np.nan_to_num(x - y))
        assert difference <= bound * np.linalg.norm(np.nan_to_num(y)) + 1e-12, name


@pytest.fixture(scope="module")
def replica(pool: RankPool) -> Callable[..., Arrays]:
    """The state of a model that is not sharded after the same call on so many ranks."""

    @functools.cache
    def state(ranks: int, name: str, head: bool = False) -> Arrays:
        return pool.values(ranks, shard_jobs.replica, name, head)[0]

    return state


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["batch norm", "float32", "bert", "uneven"])
def test_shards_of_the_weights_of_one_process(
    pool: RankPool, replica: Callable[..., Arrays], name: str, ranks: int
) -> None:
    """With uneven parts of the data, one of which is empty: forwards may wait for nobody.

    To the bit those of replicas, and after three steps of training by an optimizer of before still
    as close to those of one process as rounding allows.
    """
    if name == "bert" and importlib.util.find_spec("transformers") is None:
        pytest.skip("no transformers here")
    found = pool.values(ranks, shard_jobs.initialize, name)
    assert all(outcome.kept for outcome in found)
    whole = replica(ranks, name)
    assert_pieces([outcome.shards for outcome in found], whole, ranks)
    # Rounding is amplified by about 3 a layer; float32 has 1e-7 of it.
    expected = shard_jobs.alone(name)
    assert_close(whole, expected.shards, 1e-5)
    assert_close(found[0].whole, expected.whole, 1e-5)


@pytest.mark.parametrize(
    "how",
    [
        *("hybrid", "bfloat16", "offloaded", "second axis", "to two", "the root alone"),
        *("in pairs", "some ignored", "after a forward"),
    ],
)
def test_ways_of_sharding(pool: RankPool, replica: Callable[..., Arrays], how: str) -> None:
    """Mixed precision is that of FSDP2's own forwards: weights are solved as they are stored."""
    from torch.distributed.fsdp import fully_shard

    if how == "some ignored" and "ignored_params" not in inspect.signature(fully_shard).parameters:
        pytest.skip("a torch that ignores no parameters")
    # Without buffers: those of batch norm stay float64, and forwards in training change them.
    name = "uneven" if how in ("bfloat16", "after a forward") else "batch norm"
    found = pool.values(4, shard_jobs.initialize, name, how)
    whole = replica(4, name)
    shards = [outcome.shards for outcome in found]
    assert any(x.size < whole[key].size for key, x in shards[0].items())
    assert_pieces(shards, whole, 2 if how == "hybrid" else 4)
    assert all(outcome.kept for outcome in found)
    bound = 0.1 if how == "bfloat16" else 1e-5  # which trains with 8 bits
    assert_close(found[0].whole, shard_jobs.alone(name).whole, bound)


def test_a_method_that_is_a_forward(pool: RankPool) -> None:
    found = pool.values(2, shard_jobs.initialize, "predictor", "methods")
    assert_pieces([x.shards for x in found], pool.values(2, shard_jobs.replica, "predictor")[0], 2)


@pytest.mark.parametrize("options", [{"preset": "auto"}, {"storage": "recompute"}], ids=str)
def test_options(pool: RankPool, options: dict[str, Any]) -> None:
    arguments = "batch norm", "", False, options
    first, second = (pool.values(4, shard_jobs.initialize, *arguments) for _ in range(2))
    whole = pool.values(4, shard_jobs.replica, "batch norm", False, options)[0]
    for found in (first, second):
        assert_pieces([outcome.shards for outcome in found], whole, 4)


def test_the_head_alone(pool: RankPool, replica: Callable[..., Arrays]) -> None:
    found = pool.values(4, shard_jobs.initialize, "batch norm", "", True)
    whole = replica(4, "batch norm", True)
    assert_pieces([outcome.shards for outcome in found], whole, 4)
    assert_close(whole, shard_jobs.alone("batch norm", head=True).shards, 1e-5)


def test_correlated_filters_and_matrices_of_inputs(pool: RankPool) -> None:
    sharded, plain = (pool.values(2, shard_jobs.correlated, how) for how in ("sharded", "plain"))
    for one, other in zip(sharded, plain, strict=True):
        for found, expected in zip(one, other, strict=True):
            assert found.keys() == expected.keys()
            assert all(np.array_equal(x, expected[name]) for name, x in found.items())


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("raises", "RuntimeError"),
        ("NaN", "NonFiniteError"),
        ("Ctrl-C", "KeyboardInterrupt"),
        ("NaN in the data", "DataError"),
    ],
)
def test_an_error_of_one_rank_leaves_all_shards(pool: RankPool, kind: str, error: str) -> None:
    for rank, (found, text, same) in enumerate(pool.values(2, shard_jobs.fault, kind, 1)):
        assert same
        if rank == 1:
            assert found == error
        else:
            assert found == ("NonFiniteError" if kind == "NaN" else "RankError")
            assert f"rank 1 raised {error}" in text


def test_without_a_group(pool: RankPool) -> None:
    for (text,) in pool.values(2, shard_jobs.without_group):
        assert "sharded by fully_shard" in text
        assert "process_group='world'" in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("tensor parallel", "0.weight is a DTensor"),
        ("two kinds", "0.weight is a DTensor"),
        ("a part", "0.weight is a DTensor"),
        ("another group", "over the ranks [0, 1], and the call is one of [0, 1, 2, 3]"),
        ("meta", "on the meta device"),
        ("a broken forward", "reset_iter_state"),
        ("on some ranks", "different"),
    ],
)
def test_what_is_refused(pool: RankPool, kind: str, said: str) -> None:
    """Before anything is touched."""
    for rank, (error, text) in enumerate(pool.values(4, shard_jobs.refused, kind)):
        assert error in ("ModelError", "RankError")
        if rank == 0:
            assert said in text


@pytest.mark.parametrize("kind", ["flat", "original"])
def test_flat_parameters_are_left_alone(pool: RankPool, kind: str) -> None:
    for found in pool.values(2, shard_jobs.flat, kind == "original"):
        assert found["same"] == [True]
        assert (found["solved"], found["calibrated"]) == (["1"], [])
        (message,) = found["messages"]
        assert message.startswith("skipped, flat FSDP parameters: 0.")
        assert "before it is wrapped" in message
