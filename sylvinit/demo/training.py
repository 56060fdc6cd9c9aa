"""Plain training and evaluation: the same for every network that the demo compares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sylvinit.io.datasets import Samples

_EVALUATION_BATCH = 250  # fast on a CPU: the activations stay near its caches


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with Nesterov's momentum, or AdamW, at a constant rate.

    ``weight_decay`` applies to every parameter; AdamW has no part for ``momentum``.
    """

    learning_rate: float
    batch_size: int
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"


def train(
    model: nn.Module, samples: Samples, recipe: Recipe, epochs: int, seed: int
) -> Iterator[int]:
    """Train ``model`` in place, one epoch each time the iterator is advanced.

    The order of the samples depends on ``seed`` alone, so networks trained with one seed see the
    same batches; the global random state serves dropout alone.

    Yields:
        The number of epochs done, from 1, with the model in training mode.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters, rate, decay = model.parameters(), recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(
            parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay, nesterov=True
        )
    for epoch in range(1, epochs + 1):
        model.train()
        order = torch.randperm(len(samples.inputs), generator=generator)
        for batch in order.split(recipe.batch_size):
            if len(batch) == 1:
                continue  # batch norm cannot be trained on a single sample
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(samples.inputs[batch]), samples.labels[batch]).backward()
            optimizer.step()
        yield epoch


def calibrate_norm(model: nn.Module, inputs: Tensor) -> None:
    """Give the batch norm layers of ``model`` the statistics of all ``inputs``.

    Inputs (N, ...) need at least two samples; the statistics of equal batches are averaged.
    """
    batches = math.ceil(len(inputs) / _EVALUATION_BATCH)
    with torch.no_grad():
        update_bn(inputs.tensor_split(batches), model)


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples, batch_size: int = _EVALUATION_BATCH) -> float:
    """Share of samples whose highest score is that of their label, in evaluation mode.

    The network maps inputs to class scores; its mode is restored. ``batch_size`` changes time and
    memory only. ``samples`` must not be empty.
    """
    batches = zip(samples.inputs.split(batch_size), samples.labels.split(batch_size), strict=True)
    training = model.training
    model.eval()
    try:
        correct = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in batches)
    finally:
        model.train(training)
    return correct / len(samples.labels)
