from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from training import Draw, Recipe, augment, draw_epoch, train

from sylvinit.io.datasets import Samples


def test_augmentation_is_that_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 2, 5, 7, generator=generator)
    offsets = torch.tensor([[0, 0], [8, 8], [4, 4], [1, 6], [7, 2], [4, 4]])
    mirrored = torch.tensor([False, True, False, True, False, True])
    found = augment(images, offsets, mirrored)
    for image, (top, left), flip, crop in zip(
        images, offsets.tolist(), mirrored.tolist(), found, strict=True
    ):
        expected = F.pad(image, (4, 4, 4, 4))[:, top : top + 5, left : left + 7]
        assert torch.equal(crop, expected.flip(2) if flip else expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_seed_alone_decides_on_the_batches() -> None:
    recipe = Recipe(epochs=1, rate=0.1, batch=4, augment=True)

    def draws(seed: int) -> list[Draw]:
        return list(draw_epoch(9, recipe, torch.Generator().manual_seed(seed)))

    first, again, other = draws(0), draws(0), draws(1)
    assert len(first) == 2  # a batch of one is left out
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.chosen, two.chosen)
        assert one.offsets is not None
        assert two.offsets is not None
        assert torch.equal(one.offsets, two.offsets)
    assert any(not torch.equal(a.chosen, b.chosen) for a, b in zip(first, other, strict=True))


def test_rate_decays_like_multisteplr() -> None:
    recipe = Recipe(epochs=6, rate=0.5, batch=4, decay_at=(2, 4))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.1)
    for epoch in range(1, 7):
        # 0.1 ** 2 is not 0.1 * 0.1 to the last bit.
        assert abs(recipe.rate_of(epoch) - optimizer.param_groups[0]["lr"]) < 1e-15
        optimizer.step()
        schedule.step()


def test_training_is_gradient_descent_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    weight = model[1].weight.detach().clone()
    momentum = torch.zeros_like(weight)
    recipe = Recipe(epochs=3, rate=0.3, batch=4, decay_at=(1,), weight_decay=0.1)
    assert list(train(model, Samples(inputs, labels), recipe, 0)) == [1, 2, 3]
    x = inputs.flatten(1)
    for rate in (0.3, 0.03, 0.03):
        errors = (x @ weight.T).softmax(1) - F.one_hot(labels, 2)
        gradient = errors.T @ x / 4 + 0.1 * weight
        momentum = 0.9 * momentum + gradient
        weight = weight - rate * momentum
    # The four samples are summed in another order in float64.
    torch.testing.assert_close(model[1].weight.detach(), weight, rtol=1e-12, atol=1e-14)
