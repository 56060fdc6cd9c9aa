"""Patch positions against the published Philox vectors and the contract in plain integers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from helpers import drawn_positions, philox4x32_10, stream_key
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import nn

import sylvinit
from sylvinit.moments import sampling
from sylvinit.moments.rows import Rows, assign_rows

# Counter, key and words of philox4x32-10 from the file kat_vectors of Random123.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORD = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: Any, key: Any, words: Any) -> None:
    assert tuple(sampling.philox4x32([counter], key)[0].tolist()) == words
    assert philox4x32_10(counter, key) == words  # the oracle of the other tests


@settings(max_examples=100, deadline=None)
@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_philox_in_plain_integers(counter: Any, key: Any) -> None:
    assert tuple(sampling.philox4x32(counter, key).tolist()) == philox4x32_10(counter, key)


def test_blake2b_of_the_oracle_is_the_published_function() -> None:
    # RFC 7693, appendix A: BLAKE2b-512 of "abc" begins with these bytes.
    assert hashlib.blake2b(b"abc").hexdigest().startswith("ba80a53f981c4d0d6a2797b69f12f6e9")


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    name=st.text(max_size=20),
    call=st.integers(-1, 2**31),
)
def test_stream_key(seed: int, name: str, call: int) -> None:
    assert sampling.stream_key(seed, name, call) == stream_key(seed, name, call)


def test_keys_differ_in_every_part() -> None:
    keys = {
        sampling.stream_key(seed, name, call)
        for seed in (-1, 0, 1, 2**32)
        for name in ("", "conv", "conv.1", "conv1")
        for call in (0, 1)
    }
    assert len(keys) == 32


@settings(max_examples=150, deadline=None)
@given(
    key=st.tuples(WORD, WORD),
    start=st.sampled_from([0, 5, 2**32 - 2, 2**40]),
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    patches=st.integers(1, 12),
)
def test_contract(key: tuple[int, int], start: int, counts: list[int], patches: int) -> None:
    samples = start + np.arange(len(counts))
    row, position, priority = sampling.choose_positions(key, samples, np.array(counts), patches)
    expected = [
        (i, p)
        for i, count in enumerate(counts)
        for p in drawn_positions(key, start + i, count, patches)
    ]
    assert list(zip(row.tolist(), position.tolist(), strict=True)) == expected
    # The second word orders reservoirs.
    counters = [
        ((start + i) & 0xFFFFFFFF, (start + i) >> 32, draw, 0)
        for i, count in enumerate(counts)
        for draw in range(min(count, patches))
    ]
    assert priority.tolist() == [philox4x32_10(counter, key)[1] for counter in counters]


@pytest.mark.parametrize("available", [1, 4, 5])
def test_few_positions_are_taken_once_each(available: int) -> None:
    row, position, _ = sampling.choose_positions(
        (1, 2), np.arange(3), np.full(3, available), patches=5
    )
    assert position.tolist() == list(range(available)) * 3
    assert row.tolist() == np.repeat(np.arange(3), available).tolist()


def test_positions_may_be_as_many_as_32_bits_can_tell_apart() -> None:
    most = 2**32
    _, position, _ = sampling.choose_positions((3, 4), np.arange(50), np.full(50, most), patches=2)
    counters = [(sample, 0, draw, 0) for sample in range(50) for draw in range(2)]
    assert position.tolist() == [philox4x32_10(counter, (3, 4))[0] for counter in counters]


@pytest.mark.parametrize("available", [7, 64, 1000])
def test_positions_are_uniform(available: int) -> None:
    key = sampling.stream_key(0, "conv", 0)
    _, position, _ = sampling.choose_positions(
        key, np.arange(20_000), np.full(20_000, available), patches=6
    )
    observed = np.bincount(position, minlength=available)
    expected = len(position) / available
    statistic = ((observed - expected) ** 2 / expected).sum()
    # Fixed numbers, so this cannot fail by chance; the bounds are where 1 of 1000 keys would.
    assert chi2.ppf(0.001, available - 1) < statistic < chi2.ppf(0.999, available - 1)


def test_positions_of_one_sample_are_independent() -> None:
    available = 12
    _, position, _ = sampling.choose_positions(
        sampling.stream_key(1, "conv", 0), np.arange(30_000), np.full(30_000, 12), available - 1
    )
    pairs = position.reshape(30_000, -1)[:, :2]
    observed = np.bincount(pairs @ [available, 1], minlength=available**2)
    expected = len(pairs) / available**2
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert chi2.ppf(0.001, available**2 - 1) < statistic < chi2.ppf(0.999, available**2 - 1)


# --------------------------------------------------------------------------- rows and microbatches


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    width=st.integers(1, 4),
    patches=st.integers(1, 9),
    cut=st.integers(0, 6),
)
def test_draws_do_not_depend_on_the_microbatch(
    lengths: list[int], width: int, patches: int, cut: int
) -> None:
    key, cut = (5, 6), min(cut, len(lengths))

    def drawn(part: list[int], start: int, first_entry: int) -> list[tuple[int, int, int, int]]:
        rows = Rows(None, np.array(part, dtype=np.int64), width)
        sample, entry, position, priority = rows.draw(key, start, patches)
        both = (sample + start, entry + first_entry, position, priority)
        return list(zip(*(x.tolist() for x in both), strict=True))

    whole = drawn(lengths, 100, 0)
    parts = drawn(lengths[:cut], 100, 0) + drawn(lengths[cut:], 100 + cut, sum(lengths[:cut]))
    assert whole == parts
    expected = [
        (100 + i, sum(lengths[:i]) + p // width, p % width)
        for i, length in enumerate(lengths)
        for p in drawn_positions(key, 100 + i, length * width, patches)
    ]
    assert [item[:3] for item in whole] == expected


def test_masked_tokens_are_never_drawn() -> None:
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    rows = assign_rows("layer", torch.zeros(2, 4, 3), 2, features=1, mask=mask)
    sample, entry, _, _ = rows.draw((7, 8), 0, 3)
    # Two real tokens are all taken; of three the same, since 3 <= 3.
    assert sample.tolist() == [0, 0, 1, 1, 1]
    assert entry.tolist() == [0, 1, 5, 6, 7]
    _, entry, _, _ = rows.draw((7, 8), 0, 1)
    expected = [[0, 1], [5, 6, 7]]
    places = [drawn_positions((7, 8), i, n, 1)[0] for i, n in enumerate((2, 3))]
    assert entry.tolist() == [expected[i][place] for i, place in enumerate(places)]


def test_rows_can_be_assigned_by_the_user() -> None:
    owner = torch.tensor([1, 0, 1, 1, 0])
    rows = assign_rows(
        "layer", torch.zeros(5, 3), 2, features=1, row_to_sample=lambda name, x, samples: owner
    )
    sample, entry, _, _ = rows.draw((7, 8), 0, 3)
    assert sample.tolist() == [0, 0, 1, 1, 1]
    assert entry.tolist() == [1, 4, 0, 2, 3]


@pytest.mark.filterwarnings("ignore::sylvinit.SylvinitWarning")
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_initialization_draws_the_same_for_every_microbatch(layer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, 5, 9, generator=generator, dtype=torch.float64)
    y = torch.arange(23) % 3
    weights = []
    for microbatch in (1, 7, 23, None):
        torch.manual_seed(0)
        first = nn.Linear(9, 4) if layer == "linear" else nn.Conv1d(5, 4, 3)
        model = nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
        sylvinit.initialize_(
            model, (x, y), patches=2, microbatch=microbatch, code="lda", progress=False
        )
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    for other in weights[1:]:
        # The same rows, perhaps in sums of another order; as long as they fit into one chunk of the
        # moments they are summed together, and no difference is seen.
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-12)


def test_global_random_states_are_neither_used_nor_changed() -> None:
    x = torch.randn(8, 2, 6)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one = sylvinit.patch_moments(x, 3, patches=2, reservoir=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(2)
    two = sylvinit.patch_moments(x, 3, patches=2, reservoir=5)
    assert torch.equal(one.covariance(), two.covariance())
    three = sylvinit.patch_moments(x, 3, patches=2, seed=1)
    assert not torch.equal(one.covariance(), three.covariance())
