"""The same weights from any number of processes."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import rank_jobs
from rank_pool import RankPool, needs_gloo

import sylvinit

pytestmark = needs_gloo

State = dict[str, np.ndarray]
PARTS = {2: (23, 18), 3: (3, 30, 8), 4: (20, 1, 0, 20)}


def alone(name: str, **options: Any) -> State:
    """What one process makes of all the data."""
    model, data = rank_jobs.network(name)
    sylvinit.initialize_(model, data, **{"preset": "best", **options})
    return rank_jobs.arrays_of(model)


def assert_same_bits(states: list[State]) -> None:
    for state in states[1:]:
        different = [name for name, x in state.items() if x.tobytes() != states[0][name].tobytes()]
        assert not different


def assert_close(found: State, expected: State, bound: float = 1e-5) -> None:
    """Relative to the norm of every tensor; rounding is amplified by about 3 a layer."""
    for name, x in expected.items():
        assert np.array_equal(np.isnan(found[name]), np.isnan(x))
        size, difference = (np.linalg.norm(np.nan_to_num(y)) for y in (x, found[name] - x))
        # Running means of centered outputs are sums of numbers of about 1 that cancel.
        assert difference <= bound * size + 1e-12, name


@pytest.mark.parametrize("preset", ["best", "frozen", "auto"])
@pytest.mark.parametrize("name", ["resnet20", "bert", "batch norm"])
def test_any_number_of_ranks_gives_the_weights_of_one(
    pool: RankPool, name: str, preset: str
) -> None:
    if name == "bert" and importlib.util.find_spec("transformers") is None:
        pytest.skip("no transformers here")
    expected = alone(name, preset=preset)
    untouched = rank_jobs.arrays_of(rank_jobs.network(name)[0])
    assert any(not np.array_equal(x, expected[key]) for key, x in untouched.items())
    for ranks, sizes in PARTS.items():
        states = pool.values(ranks, rank_jobs.initialize, name, sizes, {"preset": preset})
        assert_same_bits(states)
        assert_close(states[0], expected)


@pytest.mark.parametrize(
    "options",
    [
        {"microbatches": (5, 11, 30)},
        {"storage": "recompute"},
        {"max_samples": 25},
        {"preset": "paper", "head_code": "logistic"},
        {"code": "ica", "patches": 40},
        {"balance": True, "patches": "all"},
    ],
    ids=str,
)
@pytest.mark.parametrize("sizes", [(14, 2, 25), (0, 30, 11)], ids=str)
def test_options(pool: RankPool, sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    plain = {name: value for name, value in options.items() if name != "microbatches"}
    states = pool.values(3, rank_jobs.initialize, "batch norm", sizes, options)
    assert_same_bits(states)
    assert_close(states[0], alone("batch norm", **plain))


@pytest.mark.parametrize("name", ["tied", "numbers", "dual"])
def test_networks(pool: RankPool, name: str) -> None:
    """A weight that is called twice; targets with some missing; fewer rows than features."""
    expected = alone(name)
    states = pool.values(3, rank_jobs.initialize, name, (10, 11, 20), {})
    assert_same_bits(states)
    assert_close(states[0], expected)


def test_twice_the_same_bits(pool: RankPool) -> None:
    runs = [pool.values(3, rank_jobs.initialize, "resnet20", PARTS[3], {}) for _ in range(2)]
    assert_same_bits([run[0] for run in runs])


def test_replicas_stay_equal_in_training(pool: RankPool) -> None:
    first, second = pool.values(2, rank_jobs.train, 20)
    for one, other in zip(first, second, strict=True):
        assert_same_bits([one, other])
    assert not np.array_equal(first[0]["conv1.weight"], first[1]["conv1.weight"])


def test_one_report_and_the_warnings_of_rank_0(pool: RankPool) -> None:
    (first, warned), *others = pool.values(3, rank_jobs.report_of, (0, 3, 2))
    assert all(report == first for report, _ in others)
    assert first["samples"] == 5
    assert [layer["status"] for layer in first["layers"]].count("solved") == 3
    assert warned == first["warnings"]
    assert any("fewer rows" in text for text in warned)
    assert [texts for _, texts in others] == [[], []]


def test_a_call_that_names_no_group(pool: RankPool) -> None:
    for texts in pool.values(2, rank_jobs.without_group, False):
        assert any("process_group='world'" in text for text in texts)
    for outcome in pool.run(2, rank_jobs.without_group, True, fails=True):
        assert outcome.error == "ModelError"
        assert "process_group='world'" in outcome.message


def rows_in(messages: list[bytes], rows: np.ndarray) -> int:
    """How many of the rows (n, d) are in the messages, each as the bytes of its numbers."""
    said = b"".join(messages)
    return sum(row.tobytes() in said for row in rows)


def test_no_sample_leaves_its_rank(pool: RankPool) -> None:
    """Rows are sent only by layers with fewer of them than features, and for reservoirs."""
    for name, options, most in (("table", {}, 0), ("dual", {}, 41), ("table", {"code": "ica"}, 41)):
        inputs = rank_jobs.network(name)[1][0].numpy()
        said = pool.values(2, rank_jobs.sent, name, options)
        assert rows_in(said[1], inputs[:20]) == 0
        found = rows_in(said[1], inputs[20:])
        assert (found == 21) if most else (found == 0), (name, options)


def test_bytes_that_are_sent(pool: RankPool) -> None:
    """From rank 1 the triangles of the moments, from rank 0 the weights; little else."""
    model, _ = rank_jobs.network("table")
    said = pool.values(2, rank_jobs.sent, "table", {"head_code": "pca"})
    layers = [(x.in_features, x.out_features) for x in model if hasattr(x, "in_features")]
    moments = sum(8 * (d * (d + 1) // 2 + d) for d, _ in layers)
    weights = sum(8 * (d + 1) * k for d, k in layers)
    steps = 64  # meetings and agreements, of some hundred bytes each
    for messages, least in zip(said, (weights, moments), strict=True):
        total = sum(map(len, messages))
        assert least <= total <= least + steps * 200
