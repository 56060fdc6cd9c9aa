"""The index arithmetic of patch_gram (patch_layout.cuh), far beyond what can be summed."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sylvinit.moments.fused_layout import PatchLayout
from sylvinit.moments.sampling import draws as philox_words

many = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(
    sizes=st.tuples(*(st.integers(1, 500) for _ in range(3))),
    per_sample=st.integers(1, 30),
    draws=st.sampled_from([0, 1, 10, 1000]),
    first=st.sampled_from([0, 3, 2**32 - 1, 2**40]),
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    p=st.one_of(st.integers(0, 1000), st.integers(0, 2**40 - 1)),
)
def test_patch_of_an_index(
    shim: Any,
    sizes: tuple[int, ...],
    per_sample: int,
    draws: int,
    first: int,
    key: tuple[int, int],
    p: int,
) -> None:
    layout = PatchLayout(
        *((1, 1, 1),) * 4,
        out_size=sizes,
        padding_mode=0,
        transposed=False,
        groups=1,
        tap_major=True,
        entries_per_sample=per_sample,
        first_sample=first,
        draws=draws,
        key=key,
    )
    width = prod(sizes)
    available = per_sample * width
    sample, draw = divmod(p, draws if 0 < draws < available else available)
    position = draw
    if 0 < draws < available:
        word = philox_words(key, np.array([first + sample]), draw + 1)[0, draw, 0]
        position = int(word) * available >> 32
    expected = (sample * per_sample + position // width, position % width, sample)
    args = layout.arguments(shim, torch.ones(1, 1))
    assert shim.choose_patch(args, p) == expected


@many
@given(tiles=st.integers(1, 40))
def test_tiles_of_the_upper_triangle(shim: Any, tiles: int) -> None:
    pairs = [shim.tile_pair(index, tiles) for index in range(tiles * (tiles + 1) // 2)]
    assert pairs == [(i, j) for i in range(tiles) for j in range(i, tiles)]


@many
@given(chunks=st.integers(1, 2**36), data=st.data())
def test_parts_of_the_patches(shim: Any, chunks: int, data: st.DataObject) -> None:
    splits = data.draw(st.integers(1, min(chunks, 600)))
    begins = [shim.split_begin(chunks, splits, split) for split in range(splits + 1)]
    assert (begins[0], begins[-1]) == (0, chunks)
    lengths = np.diff(begins)
    assert lengths.min() >= 1
    assert lengths.max() - lengths.min() <= 1
