"""Correlated filters and the matrices of inputs, on several ranks."""

from __future__ import annotations

import numpy as np
import pytest
import rank_jobs
import torch
from driver_helpers import bits
from rank_pool import RankPool, needs_gloo

import sylvinit

pytestmark = needs_gloo


@pytest.mark.parametrize("generated", [True, False])
def test_all_ranks_draw_what_rank_0_draws(pool: RankPool, generated: bool) -> None:
    """Seeds differ between ranks; weights and random states after it do not."""
    model, _ = rank_jobs.network("resnet20")
    generator = torch.Generator().manual_seed(0)
    sylvinit.correlated_init_(model, generator=generator)
    expected = rank_jobs.arrays_of(model)
    for state, random in pool.values(3, rank_jobs.draw, generated):
        assert all(np.array_equal(x, expected[name]) for name, x in state.items())
        assert random == bits(generator.get_state())


def test_other_arguments(pool: RankPool) -> None:
    for error, text in pool.values(2, rank_jobs.draw_with_other_strengths):
        assert error == "RankError"
        assert "'strength': 1.0" in text
        assert "'strength': 0.75" in text


@pytest.mark.parametrize("sizes", [(5, 20, 16), (0, 40, 1)], ids=str)
def test_matrices_of_inputs(pool: RankPool, sizes: tuple[int, ...]) -> None:
    """Those of one process on all data, but for rounding; the same bits everywhere."""
    model, data = rank_jobs.network("resnet20")
    expected = sylvinit.input_correlation(model, data[0])
    first, *others = pool.values(3, rank_jobs.correlate, sizes)
    assert first.keys() == expected.keys()
    for name, (matrix, filters) in first.items():
        assert filters == expected[name].filters
        np.testing.assert_allclose(matrix, expected[name].detach().numpy(), rtol=0, atol=1e-12)
        assert all(np.array_equal(matrix, other[name][0]) for other in others)
