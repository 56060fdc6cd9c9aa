"""What all runs on a network of their own begin with: images, network, initialisation."""

from __future__ import annotations

import functools
from typing import Any

import data
from architectures import make_network
from arms import initialise, warm_up
from config import Run
from torch import nn
from training import Recipe

from sylvinit.demo.training import accuracy
from sylvinit.io.datasets import Samples


class Prepared:
    """A network that was initialised, and measured before training.

    Attributes:
        model: the network.
        samples: what to train on.
        test: what to measure on.
        outcome: the fields of the record so far.
    """

    def __init__(self, run: Run, device: str) -> None:
        config = run.config
        dataset = data.load(config.dataset)
        drawn = data.draw(dataset, run.cell.get("shots"), run.seed, config.split)
        self.model = make_network(
            run.network, run.network_settings, dataset.classes, dataset.channels
        ).to(device)
        self.samples = data.to_device(drawn.train, device)
        if config.split == "test":
            self.test = _whole_test_set(config.dataset, device)
        else:
            self.test = data.to_device(drawn.test, device)
        self.test = data.limit(self.test, config.measured, 0)
        warm_up(self.model, run.arm, self.samples)
        seconds = initialise(self.model, run.arm, self.samples, run.seed)
        self.outcome: dict[str, Any] = {
            "accuracy_before": percent(self.model, self.test, run.training),
            "accuracy_after": None,
            "init_seconds": seconds,
            "train_seconds": None,
        }
        if run.cell.get("shots") is None:
            # How many these are depends on the files that a person has.
            self.outcome["images"] = len(self.samples.labels)


def percent(model: nn.Module, samples: Samples, training: dict[str, Any]) -> float:
    """Accuracy from 0 to 100, in the precision of the training; float32 where there is none."""
    recipe = Recipe.of({"epochs": 0, "rate": 0.0, "batch": 1} | training)
    with recipe.autocast(samples.inputs.device.type):
        return 100 * accuracy(model, samples)


@functools.lru_cache(maxsize=2)
def _whole_test_set(name: str, device: str) -> Samples:
    return data.to_device(data.load(name).test, device)
