"""A tiny pair, and made-up results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from panel import data
from panel.pairs import Cell, Pair, Run

from sylvinit.io.datasets import Samples


def clusters() -> data.Pools:
    """Three classes of rows with four features."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    inputs = torch.randn(120, 4, generator=generator) + 2 * torch.eye(3, 4)[labels]
    return data.Pools(*data.divided(Samples(inputs, labels), 60, 30))


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A perceptron on them, a training of which takes milliseconds."""
    monkeypatch.setitem(data.SETS, "clusters", clusters)
    data.load.cache_clear()
    return Pair("MLP / clusters", "mlp", "clusters", {5: 3}, 8, settings={"width": 8})


@pytest.fixture
def made_up() -> Callable[..., dict[str, dict[str, Any]]]:
    """Records of arms of cells: a value for every rate of choices, and one for every test seed."""

    def records(
        cell: Cell, arm: str, choices: dict[float, float], tests: dict[float, list[float]]
    ) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for split, seeds, values in (
            ("validation", (100, 101), {rate: [x, x] for rate, x in choices.items()}),
            ("test", range(5), tests),
        ):
            for rate, points in values.items():
                for seed, after in zip(seeds, points, strict=False):
                    run = Run(cell, arm, seed, rate, split)
                    line = {"after": after, "before": after / 2, "init_seconds": 1.0}
                    found[run.key] = run.fields | line
        return found

    return records
