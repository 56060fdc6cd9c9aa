"""Steps of optimizers that compute gradients themselves, wrap each other, or fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diagnostics_helpers import assert_history, batches, grads, loss, make_model
from torch import Tensor
from torch.optim import Optimizer

from sylvinit.diagnostics import monitor


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.LBFGS])
@pytest.mark.parametrize("by_name", [False, True])
def test_step_with_a_closure_counts_once_with_the_gradients_it_computed(
    make: Callable[..., Optimizer], by_name: bool
) -> None:
    model = make_model()
    optimizer = make(model.parameters(), lr=0.1)
    seen = []
    with monitor(model) as record:
        for x, y in batches(3):

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                value = loss(model, x, y)
                value.backward()
                return value

            optimizer.step(closure=closure) if by_name else optimizer.step(closure)  # type: ignore
            seen.append(grads(model))
    assert_history(record, seen)
    assert len(record.history()["layers"]) == 2


class Wrapper(Optimizer):
    """An optimizer around another one, as those that shard or look ahead."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        self.inner.step()
        self.zero_grad()


@pytest.mark.parametrize("with_closure", [False, True])
def test_wrapped_optimizer_counts_once(with_closure: bool) -> None:
    model = make_model()
    optimizer = Wrapper(torch.optim.SGD(model.parameters(), 0.1))
    seen = []
    with monitor(model) as record:
        for x, y in batches(3):

            def closure(x: Tensor = x, y: Tensor = y) -> None:
                loss(model, x, y).backward()
                seen.append(grads(model))

            if not with_closure:
                closure()
            optimizer.step(closure if with_closure else None)
    assert_history(record, seen)


def test_failed_step_does_not_hide_later_ones() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def fail() -> float:
        raise RuntimeError("no loss today")

    with monitor(model) as record:
        with pytest.raises(RuntimeError, match="no loss today"):
            optimizer.step(fail)
        for x, y in batches(2):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
    assert record.updates == 2


def test_scaled_gradients_of_fused_optimizers_are_unscaled() -> None:
    magnitudes = []
    for enabled in (False, True):
        model = make_model().float()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        with monitor(model) as record:
            for x, y in batches(3):
                optimizer.zero_grad()
                scaler.scale(loss(model, x.float(), y)).backward()
                scaler.step(optimizer)
                scaler.update()
        magnitudes.append(record.history()["gradient_magnitude"])
    # A power of two changes no digit.
    assert magnitudes[0] == magnitudes[1]


def test_another_optimizer_after_a_step_that_failed() -> None:
    model = make_model()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))

    def closure() -> None:
        raise ArithmeticError

    with monitor(model) as record:
        with pytest.raises(ArithmeticError):
            first.step(closure)  # type: ignore[arg-type]
        for x, y in batches(3):
            second.zero_grad()
            loss(model, x, y).backward()
            second.step()
    assert record.updates == 3
