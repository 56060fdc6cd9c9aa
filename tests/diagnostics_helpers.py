"""A small network, its data, and the gradient statistics of its updates in NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Grads = dict[str, np.ndarray | None]


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def batches(count: int, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        yield x, torch.randint(3, (5,), generator=generator)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def grads(model: nn.Module) -> Grads:
    return {
        name: None if p.grad is None else p.grad.to_dense().numpy().copy()
        for name, p in model.named_parameters()
    }


def zig_zag(before: Grads, after: Grads) -> float:
    """The formula, over the parameters that have a gradient at both updates."""
    total = count = 0
    for name, g in after.items():
        then = before.get(name)
        if g is not None and then is not None:
            total += np.abs(np.sign(g) - np.sign(then)).sum()
            count += g.size
    return total / (2 * count) if count else math.nan


def magnitude(after: Grads) -> float:
    return float(
        np.abs(np.concatenate([g.ravel() for g in after.values() if g is not None])).mean()
    )


def assert_history(record: Any, seen: list[Grads], every: int = 1) -> None:
    history = record.history()
    numbers = list(range(0, len(seen), every))
    assert record.updates == len(seen)
    assert history["update"] == numbers
    expected = [zig_zag(seen[j - 1] if j else {}, seen[j]) for j in numbers]
    # Counts of signs are exact; the magnitude sums few numbers in float64.
    np.testing.assert_allclose(history["sign_changes"], expected, rtol=1e-15)
    np.testing.assert_allclose(
        history["gradient_magnitude"], [magnitude(seen[j]) for j in numbers], rtol=1e-13
    )
