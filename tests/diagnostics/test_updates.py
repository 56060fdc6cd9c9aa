"""Which updates are seen, and sign changes and magnitude of their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diagnostics_helpers import Grads, assert_history, batches, grads, loss, make_model, zig_zag
from torch import nn
from torch.optim import Optimizer

from sylvinit.diagnostics import monitor
from sylvinit.errors import ModelError


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.5, momentum=0.8),
        lambda p: torch.optim.Adam(p, 0.05, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.05, fused=True),
    ],
)
def test_every_update_of_any_optimizer(make: Callable[..., Optimizer], every: int) -> None:
    model = make_model()
    optimizer = make(model.parameters())
    seen = []
    with monitor(model, every=every) as record:
        for x, y in batches(8):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            seen.append(grads(model))
            optimizer.step()
    assert math.isnan(record.history()["sign_changes"][0])
    assert_history(record, seen, every)


def test_accumulated_and_clipped_gradients_are_what_the_optimizer_uses() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    seen = []
    with monitor(model) as record:
        for step, (x, y) in enumerate(batches(8)):
            (loss(model, x, y) / 2).backward()
            if step % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                seen.append(grads(model))
                optimizer.step()
                optimizer.zero_grad()
    assert_history(record, seen)


def test_parameters_without_gradient_are_left_out_and_forgotten() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    with monitor(model) as record:
        for step, (x, y) in enumerate(batches(6)):
            model[0].requires_grad_(step not in (2, 3))
            optimizer.zero_grad(set_to_none=True)
            loss(model, x, y).backward()
            seen.append(grads(model))
            optimizer.step()
    assert seen[2]["0.weight"] is None
    assert seen[4]["0.weight"] is not None
    assert_history(record, seen)


def test_zero_gradients_have_the_sign_zero() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with monitor(model, activations=False) as record:
        for values in ([1.0, 0.0], [0.0, -1.0], [math.nan, 1.0]):
            model.weight.grad = torch.tensor([values])
            optimizer.step()
    assert record.history()["sign_changes"][1:] == [0.5, 0.5]
    assert math.isnan(record.history()["gradient_magnitude"][2])


def test_each_of_several_optimizers_is_compared_with_its_own_last_step() -> None:
    model = make_model()
    body = torch.optim.SGD(model[0].parameters(), 0.1)
    head = torch.optim.Adam(model[2].parameters(), 0.1)
    seen: dict[str, list[Grads]] = {"0": [], "2": []}
    with monitor(model, every=2) as record:
        for x, y in batches(5):
            model.zero_grad()
            loss(model, x, y).backward()
            for name in seen:
                seen[name].append({k: g for k, g in grads(model).items() if k.startswith(name)})
            body.step()
            head.step()
    history = record.history()
    assert record.updates == 10
    assert history["update"] == [0, 1, 4, 5, 8, 9]  # the updates 0, 2 and 4 of both
    for offset, steps in enumerate(seen.values()):
        expected = [zig_zag(steps[j - 1] if j else {}, steps[j]) for j in (0, 2, 4)]
        np.testing.assert_allclose(history["sign_changes"][offset::2], expected, rtol=1e-15)
    variances = history["layers"]["0"]["gradient_variance"]
    assert variances[::2] == variances[1::2]  # no forward in between


def test_optimizers_of_other_models_are_ignored() -> None:
    model, other = make_model(), make_model(1)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    with monitor(model, activations=False) as record:
        for x, y in batches(2):
            loss(other, x, y).backward()
            optimizer.step()
    assert record.updates == 0


def test_only_the_parameters_of_the_model_count() -> None:
    model, other = make_model(), make_model(1)
    optimizer = torch.optim.SGD([*other.parameters(), *model.parameters()], 0.1)
    seen = []
    with monitor(model) as record:
        for x, y in batches(3):
            optimizer.zero_grad()
            (loss(model, x, y) + 100 * loss(other, x, y)).backward()
            seen.append(grads(model))
            optimizer.step()
    assert_history(record, seen)


def test_sparse_gradients_count_with_their_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    with monitor(model) as record:
        for tokens in ([[0, 1], [1, 2]], [[1, 2], [4, 4]]):
            optimizer.zero_grad()
            model(torch.tensor(tokens)).square().sum().backward()
            seen.append(grads(model))
            optimizer.step()
    assert_history(record, seen)
    assert set(record.history()["layers"]) == {"0", "2"}


def test_update_by_hand() -> None:
    model = make_model()
    seen = []
    with monitor(model, every=2) as record:
        for x, y in batches(5):
            model.zero_grad()
            loss(model, x, y).backward()
            seen.append(grads(model))
            record.update()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.5 * p.grad
    assert_history(record, seen, every=2)
    with pytest.raises(ModelError, match="outside its `with monitor"):
        record.update()


def test_update_by_hand_beside_an_optimizer() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = next(batches(1))
    with monitor(model) as record:
        loss(model, x, y).backward()
        optimizer.step()
        with pytest.raises(ModelError, match="steps of SGD have been counted already"):
            record.update()
    with monitor(model) as record:
        loss(model, x, y).backward()
        record.update()
        optimizer.step()  # the same update again
    assert record.updates == 1
