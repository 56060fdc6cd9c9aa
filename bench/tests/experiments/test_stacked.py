from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from stacked import train_stacked
from torch import nn
from training import Recipe, train

from sylvinit.demo.networks import resnet20
from sylvinit.io.datasets import Samples

IMAGES = 20
RECIPE: dict[str, Any] = {
    "epochs": 2,
    "rate": 0.05,
    "decay_at": [1],
    "batch": 8,  # the last batch of an epoch has four
    "weight_decay": 1e-2,
}


def samples(seed: int, dtype: torch.dtype) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, 3, 8, 8, generator=generator, dtype=dtype)
    return Samples(images, torch.arange(IMAGES) % 10)


def largest_gap(change: dict[str, Any], dtype: torch.dtype) -> float:
    """Between stacked training and training one by one, over all parameters and statistics."""
    torch.manual_seed(0)
    recipe = Recipe.of(RECIPE | change)
    models: list[nn.Module] = [resnet20(widths=(4, 8), blocks=1).to(dtype) for _ in range(3)]
    before, alone = copy.deepcopy(models), copy.deepcopy(models)
    data = [samples(seed, dtype) for seed in range(3)]
    for model, some, seed in zip(alone, data, range(3), strict=True):
        list(train(model, some, recipe, seed))
    assert list(train_stacked(models, data, recipe, range(3), {1, 2})) == [1, 2]
    gaps = []
    for stacked, single, start in zip(models, alone, before, strict=True):
        expected = single.state_dict()
        for name, value in stacked.state_dict().items():
            gaps.append(float((value - expected[name]).abs().max()))
        assert not torch.equal(start.state_dict()["fc.weight"], expected["fc.weight"])
        assert int(stacked.state_dict()["bn1.num_batches_tracked"]) == 6
    return max(gaps)


@pytest.mark.parametrize("change", [{}, {"augment": True}, {"nesterov": True}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_stack_is_trained_as_its_networks_one_by_one(
    change: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    # Six updates with sums in another order; seen: 3.4e-16 in float64 and 1.2e-7 in float32.
    assert largest_gap(change, dtype) < tolerance
