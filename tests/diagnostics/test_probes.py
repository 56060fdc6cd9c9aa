"""Statistics of activations and their gradients, and the rank of features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diagnostics_helpers import batches, loss, make_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sylvinit.diagnostics import Record, effective_rank, monitor
from sylvinit.diagnostics.probes import PooledVariance

# Sums of at most a few thousand numbers in float64.
NEAR = {"rtol": 1e-12, "atol": 0}


def conv_net(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.ReLU(inplace=inplace),
        nn.ConvTranspose2d(5, 3, 2),
        nn.ReLU(inplace=inplace),
        nn.Flatten(),
        nn.Linear(75, 4),
    ).double()


def images(n: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 6, 6, generator=generator, dtype=torch.float64)


def expected(model: nn.Sequential, x: Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Outputs of the layers and their gradients, of the mean of squares, step by step."""
    kept = {}
    for index, module in enumerate(model):
        x = torch.relu(x) if isinstance(module, nn.ReLU) else module(x)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            x.retain_grad()
            kept[str(index)] = x
    x.square().mean().backward()
    return {name: (y.detach().numpy(), y.grad.numpy()) for name, y in kept.items()}


def assert_statistics(record: Record, layers: dict[str, Any], update: int = 0) -> None:
    history = record.history()["layers"]
    assert list(history) == list(layers)
    for name, (output, grad) in layers.items():
        axes = tuple(i for i in range(grad.ndim) if i != 1)
        dead = int((np.abs(grad) == 0).all(axis=axes).sum())
        found = [history[name][k][update] for k in ("activation_variance", "gradient_variance")]
        np.testing.assert_allclose(found, [output.var(), grad.var()], **NEAR)
        assert history[name]["dead"][update] == dead
        assert record.units()[name] == grad.shape[1]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_statistics_are_those_of_all_microbatches_together(inplace: bool, parts: int) -> None:
    model = conv_net(inplace)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    x = images() + torch.arange(8.0).reshape(8, 1, 1, 1)  # the means of the parts differ
    with monitor(model) as record:
        for _ in range(2):
            optimizer.zero_grad()
            for part in x.chunk(parts):
                (model(part).square().mean() / parts).backward()
            optimizer.step()
    layers = expected(model, x)
    for update in range(2):
        assert_statistics(record, layers, update)


def test_dead_units_of_a_constructed_network() -> None:
    model = conv_net()
    with torch.no_grad():
        model[0].bias[:2] = -1e3  # two units that ReLU switches off
        model[2].bias[1] = -1e3
        model[5].weight[3] = 0
        model[5].bias[3] = 0  # an output of exactly zero, which the loss has no gradient for
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with monitor(model) as record:
        model(images()).square().mean().backward()
        optimizer.step()
    layers = record.history()["layers"]
    assert {name: columns["dead"] for name, columns in layers.items()} == {
        "0": [2.0],
        "2": [1.0],
        "5": [1.0],
    }
    assert record.units() == {"0": 5, "2": 3, "5": 4}
    assert "2 of 5" in str(record)


def test_unit_is_alive_if_it_is_in_one_microbatch() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with monitor(model) as record:
        for rows in ([[[1.0, -1.0]], [[-1.0, 1.0]]], [[[1.0, -1.0]], [[2.0, -1.0]]]):
            for x in rows:
                model(torch.tensor(x)).sum().backward()
            optimizer.step()
    assert record.history()["layers"]["0"]["dead"] == [0.0, 1.0]


def test_evaluation_and_unrecorded_updates_are_not_mixed_in() -> None:
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with monitor(model, every=2) as record:
        for step in range(4):
            model(images(seed=step)).square().mean().backward()
            with torch.no_grad():
                model(100 * images())
            with torch.inference_mode():
                model(100 * images())
            optimizer.step()
    assert record.history()["update"] == [0, 2]
    for row, step in enumerate((0, 2)):
        model.zero_grad()
        assert_statistics(record, expected(model, images(seed=step)), row)


def test_unrecorded_updates_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls, add = make_model(), [], PooledVariance.add
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monkeypatch.setattr(
        PooledVariance, "add", lambda pool, x: (calls.append(x.shape), add(pool, x))
    )
    with monitor(model, every=3):
        for x, y in batches(6):
            loss(model, x, y).backward()
            optimizer.step()
    assert len(calls) == 2 * 2 * 2  # updates 0 and 3, two layers, outputs and gradients


def test_tiny_gradients_are_alive() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with monitor(layer) as record:
        (layer(torch.ones(1, 2)) * torch.tensor([1e-40, 0.0])).sum().backward()
        optimizer.step()
    assert record.history()["layers"][""]["dead"] == [1.0]


def test_forward_without_backward_has_no_gradient() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with monitor(model) as record:
        model(next(batches(1))[0])
        optimizer.step()
    columns = record.history()["layers"]["0"]
    assert math.isfinite(columns["activation_variance"][0])
    assert math.isnan(columns["gradient_variance"][0])
    assert math.isnan(columns["dead"][0])
    assert math.isnan(record.history()["gradient_magnitude"][0])


def test_frozen_layers_have_activations_only() -> None:
    model = make_model()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), 0.1)
    with monitor(model) as record:
        loss(model, *next(batches(1))).backward()
        optimizer.step()
    layers = record.history()["layers"]
    assert math.isnan(layers["0"]["gradient_variance"][0])
    assert math.isfinite(layers["2"]["gradient_variance"][0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_once(reentrant: bool) -> None:
    records = []
    for again in (False, True):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with monitor(model) as record:
            for x, y in batches(2):
                for index, part in enumerate(x.split([2, 3])):
                    h = part.requires_grad_()
                    # Not both parts, or nobody would notice that all is counted twice.
                    saving = again and (reentrant or index == 0)
                    h = checkpoint(model, h, use_reentrant=reentrant) if saving else model(h)
                    nn.functional.cross_entropy(h, y[: len(h)], reduction="sum").backward()
                optimizer.step()
        records.append(record.history())
    assert records[0]["layers"] == records[1]["layers"]


def test_module_called_twice_pools_its_calls() -> None:
    layer = nn.Linear(3, 3, bias=False).double()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    x = torch.randn(4, 3, dtype=torch.float64)
    with monitor(layer) as record:
        first = layer(x)
        second = layer(first)
        second.sum().backward()
        optimizer.step()
    both = torch.cat([first, second]).detach().numpy()
    found = record.history()["layers"][""]["activation_variance"]
    np.testing.assert_allclose(found, [both.var()], **NEAR)
    assert "(model)" in str(record)


def test_low_precision_is_pooled_in_float32() -> None:
    layer = nn.Linear(1, 1, bias=False).bfloat16()
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    x = torch.full((4096, 1), 256.0).bfloat16()
    x[::2] = 258
    with torch.no_grad():
        layer.weight.fill_(1)
    with monitor(layer) as record:
        layer(x).sum().backward()
        optimizer.step()
    # Exact: sums of 256 and 258 have no rounding error in float32, those in bfloat16 would.
    assert record.history()["layers"][""]["activation_variance"] == [1.0]


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_variance_of_a_view_that_is_not_dense(offset: float) -> None:
    x = torch.randn(64, 32, 58, 58, generator=torch.Generator().manual_seed(0)) + offset
    for view in (x[:, :, 1:-1, 1:-1], x[:, :, ::2, 1::2], x[:, 2:5], x.mT, x):
        pool = PooledVariance()
        pool.add(view)
        variance = pool.value
        assert variance is not None
        # float32 deviations: the worst seen is 2e-7.
        np.testing.assert_allclose(variance, view.double().var(correction=0), rtol=1e-6)


def test_which_modules_are_layers() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(5, 4))

        def forward(self) -> Tensor:
            return self.rows  # a leaf: a hook of it would outlive the block

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = Table()
            self.embedding = nn.Embedding(7, 4)
            self.norm = nn.LayerNorm((5, 4))
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.rnn = nn.LSTM(4, 4, batch_first=True)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.unused = nn.Linear(2, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.norm(self.embedding(tokens) + self.table())
            x = self.attention(x, x, x)[0]
            return self.normed(self.rnn(x)[0])

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with monitor(model) as record:
        model(torch.randint(7, (3, 5))).square().sum().backward()
        optimizer.step()
    assert set(record.history()["layers"]) == {"table", "embedding", "normed"}
    assert record.units() == {"table": 4, "embedding": 4, "normed": 4}
    assert not model.table.rows._backward_hooks


def test_rank_of_the_features_of_the_last_forward() -> None:
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with monitor(model, every=2, activations=False, features="5") as record:
        ranks = []
        for step in range(4):
            for part in images(seed=step).split(4):
                model(part).square().mean().backward()
            ranks.append(effective_rank(model[:5](part)))
            optimizer.step()
    assert record.history()["effective_rank"] == ranks[::2]
    assert record.history()["layers"] == {}


def test_rank_of_features_that_are_not_finite() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with monitor(model, features="2") as record:
        for value in (math.nan, math.inf, 1.0):
            model(torch.full((3, 4), value, dtype=torch.float64)).sum().backward()
            optimizer.zero_grad()
            optimizer.step()
    ranks = record.history()["effective_rank"]
    assert [math.isnan(rank) for rank in ranks] == [True, True, False]
