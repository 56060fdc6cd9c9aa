"""Data, recipes, measures, arms and networks of the panel."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from panel import arms, data
from panel.networks import SequenceTransformer, build
from panel.training import LOWEST, Recipe, loss, measure, train
from sklearn.metrics import jaccard_score, r2_score
from torch import nn

from sylvinit.io.datasets import Samples


def numbered(count: int) -> Samples:
    return Samples(torch.arange(count).float().view(-1, 1), torch.arange(count) % 5)


def test_pools_share_no_sample() -> None:
    parts = data.divided(numbered(100), 50, 20)
    assert [len(part.labels) for part in parts] == [50, 20, 30]
    assert sorted(torch.cat([part.inputs for part in parts]).flatten().tolist()) == [*range(100)]


def test_draws_depend_on_the_seed_alone() -> None:
    pools = data.Pools(*data.divided(numbered(2000), 500, 300))
    train_samples, measured = data.draw(pools, 4, 7, "test")
    assert train_samples.labels.bincount().tolist() == [4] * 5
    assert len(measured.labels) == data.MEASURED
    again = data.draw(pools, 4, 7, "test")
    assert torch.equal(measured.inputs, again[1].inputs)
    assert torch.equal(train_samples.inputs, again[0].inputs)
    assert not torch.equal(train_samples.inputs, data.draw(pools, 4, 8, "test")[0].inputs)
    known = set(pools.validation.inputs.flatten().tolist())
    assert set(data.draw(pools, 4, 7, "validation")[1].inputs.flatten().tolist()) == known
    assert len(data.draw(pools, 0.5, 7, "test")[0].labels) == 250


def test_images_are_resized_after_the_draw() -> None:
    images = Samples(torch.rand(20, 3, 8, 8), torch.arange(20) % 2)
    pools = data.Pools(images, images, images)
    chosen, measured = data.draw(pools, 2, 0, "test", size=4)
    assert chosen.inputs.shape == (4, 3, 4, 4)
    # An average over each 2 x 2 block and its neighborhood: means are kept but for the border.
    assert float(measured.inputs.mean()) == pytest.approx(float(images.inputs.mean()), abs=0.02)


def test_tables_are_standardized_by_the_pool_that_is_trained_on() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 5 + 3 * torch.randn(200, 3, generator=generator)
    x[:, 1] = 4.0  # constant
    pools = data.Pools(*data.divided(Samples(x, 7 * x[:, :1] - 2), 100, 40))
    scaled = data._standardized(pools, (0,), targets=True)
    for values in (scaled.train.inputs[:, ::2], scaled.train.labels):
        # float32: 100 values of size 1, whose sums round by about 1e-6.
        assert values.mean(dim=0).abs().max() < 1e-5
        assert (values.std(dim=0) - 1).abs().max() < 1e-5
    assert not scaled.test.inputs[:, 1].any()
    assert torch.allclose(scaled.test.inputs[:, :1], scaled.test.labels, atol=1e-5)


def test_schedules() -> None:
    adamw = [Recipe("AdamW", 0.5, 40, 1).rate_of(update) for update in range(40)]
    assert adamw[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert max(adamw) == 0.5
    assert adamw[4:] == sorted(adamw[4:], reverse=True)
    sgd = [Recipe("SGD", 0.5, 40, 1).rate_of(update) for update in range(40)]
    assert sgd[0] == 0.5
    assert sgd[20] == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_training_is_that_of_a_plain_loop(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    samples = Samples(torch.randn(12, 4, generator=generator), torch.arange(12) % 3)
    model = nn.Linear(4, 3)
    other = copy.deepcopy(model)
    recipe = Recipe(name, 0.1, 5, 4)
    state = torch.get_rng_state()
    train(model, samples, recipe, seed=3)
    assert torch.equal(state, torch.get_rng_state())

    order = torch.Generator().manual_seed(3)
    batches = [part for _ in range(2) for part in torch.randperm(12, generator=order).split(4)]
    if name == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            other.parameters(), 0.1, 0.9, weight_decay=5e-4
        )
    else:
        optimizer = torch.optim.AdamW(other.parameters(), 0.1, weight_decay=0.05)
    for update, batch in enumerate(batches[:5]):
        optimizer.param_groups[0]["lr"] = recipe.rate_of(update)
        optimizer.zero_grad()
        F.cross_entropy(other(samples.inputs[batch]), samples.labels[batch]).backward()
        optimizer.step()
    # Fused steps round in another order: five updates of float32.
    assert torch.allclose(model.weight, other.weight, atol=1e-6)


def test_measures() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(600, 3, generator=generator)
    numbers = x.sum(dim=1, keepdim=True) + torch.randn(600, 1, generator=generator)
    model = nn.Linear(3, 1)
    expected = r2_score(numbers.numpy(), model(x).detach().numpy())
    # float32 outputs.
    assert measure(model, Samples(x, numbers)) == pytest.approx(100 * expected, abs=1e-3)
    nn.init.constant_(model.weight, math.nan)
    assert measure(model, Samples(x, numbers)) == LOWEST
    nn.init.constant_(model.weight, 1e6)
    assert measure(model, Samples(x, numbers)) == LOWEST

    maps = torch.randint(0, 4, (6, 5, 5), generator=generator)
    maps[maps == 3] = data.IGNORED
    scores = torch.randn(6, 4, 5, 5, generator=generator)
    seen = (maps >= 0).numpy()
    truth, found = maps.numpy()[seen], scores.argmax(dim=1).numpy()[seen]
    expected = jaccard_score(truth, found, average="macro", labels=np.unique(truth))
    assert measure(nn.Identity(), Samples(scores, maps)) == pytest.approx(100 * expected)
    assert measure(nn.Identity(), Samples(torch.eye(4)[[0, 1, 2, 0]], torch.arange(4))) == 75.0


def test_losses() -> None:
    scores, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = data.IGNORED
    chosen = labels != data.IGNORED
    expected = F.cross_entropy(scores.permute(0, 2, 3, 1)[chosen], labels[chosen])
    assert loss(scores, labels) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]))) == 5.0


def test_networks_are_the_same_for_a_seed_and_random_state_is_kept() -> None:
    shape = torch.Size((5, 7))
    state = torch.get_rng_state()
    first, again, other = (build("transformer", {"depth": 2}, 3, shape, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    same = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(x, y) for x, y in same)
    assert isinstance(first, SequenceTransformer)
    assert not torch.equal(first.head.weight, build("transformer", {}, 3, shape, 2).head.weight)
    assert not torch.equal(
        other.get_parameter("blocks.0.linear1.weight"),
        other.get_parameter("blocks.1.linear1.weight"),
    )
    assert first(torch.randn(4, *shape)).shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet20", (1, 8, 8)),
        ("vgg8", (3, 32, 32)),
        ("digits_net", (1, 8, 8)),
        ("mlp", (6,)),
        ("series_fcn", (2, 20)),
        ("segmentation_fcn", (3, 16, 16)),
    ],
)
def test_networks_take_their_inputs(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, {}, 11, torch.Size(shape), 0)
    outputs = model(torch.randn(2, *shape))
    assert outputs.shape[:2] == (2, 11)


def small() -> tuple[nn.Sequential, Samples]:
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3)),
        )
    images = torch.randn(60, 2, 6, 6, generator=generator).cumsum(dim=3)
    return model, Samples(images, torch.arange(60) % 3)


def test_the_own_start_is_left_as_it_came() -> None:
    model, samples = small()
    before = copy.deepcopy(model.state_dict())
    assert arms.apply(arms.OWN, model, samples, 0) == {"warnings": 0}
    assert all(
        torch.equal(x, y) for x, y in zip(before.values(), model.state_dict().values(), strict=True)
    )


def test_variants_of_best() -> None:
    (own, samples), models = small(), {}
    for name in (arms.BEST, "best-body", "best-norms", "own+head"):
        models[name], _ = small()
        found = arms.apply(name, models[name], samples, 0)
        assert found["warnings"] >= 0
    best, body, norms = (models[name] for name in (arms.BEST, "best-body", "best-norms"))
    assert torch.equal(body[6].weight, own[6].weight)
    assert torch.equal(body[6].bias, own[6].bias)
    assert torch.equal(body[0].weight, best[0].weight)
    assert not torch.equal(best[6].weight, own[6].weight)
    for layer in (0, 4, 6):
        ours, theirs, whole = (x[layer].weight.flatten(1) for x in (norms, own, best))
        # float32.
        assert torch.allclose(ours.norm(dim=1), theirs.norm(dim=1), rtol=1e-5)
        assert torch.allclose(F.cosine_similarity(ours, whole), torch.ones(len(ours)))
    assert torch.equal(models["own+head"][0].weight, own[0].weight)
    assert not torch.equal(models["own+head"][6].weight, own[6].weight)


def test_choices_of_a_gate_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = [{"name": "own", "chosen": False}, {"name": "best", "chosen": True}]

    class Report:
        warnings = ("one", "two")

        def to_dict(self) -> dict[str, object]:
            return {"candidates": candidates, "layers": []}

    monkeypatch.setitem(arms.ARMS, "x", lambda model, samples, seed: Report())  # type: ignore[arg-type]
    model, samples = small()
    assert arms.apply("x", model, samples, 0) == {
        "warnings": 2,
        "candidates": candidates,
        "choice": "best",
    }
