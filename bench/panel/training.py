"""How the panel trains and measures: one usual recipe for each optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from experiments.training import Recipe as Batches
from experiments.training import augment, draw_epoch
from torch import Tensor, nn

from sylvinit.io.datasets import Samples

OPTIMIZERS = ("SGD", "AdamW")
MOMENTUM = 0.9
WEIGHT_DECAY = {"SGD": 5e-4, "AdamW": 0.05}
# Part of the updates over which AdamW's rate rises; then both rates fall as half a cosine.
WARM_UP = 0.1
# Of R2, in points: trainings that diverge would outweigh all others in a mean.
LOWEST = -100.0
_EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        optimizer: one of ``OPTIMIZERS``.
        rate: the highest learning rate.
        updates: of the weights.
        batch: samples an update.
        augment: random crops after 4 pixels of padding, and random mirror images.
    """

    optimizer: str
    rate: float
    updates: int
    batch: int
    augment: bool = False

    def rate_of(self, update: int) -> float:
        """Learning rate of an update, counted from 0."""
        rise = round(WARM_UP * self.updates) if self.optimizer == "AdamW" else 0
        if update < rise:
            return self.rate * (update + 1) / rise
        return self.rate * (1 + math.cos(math.pi * (update - rise) / (self.updates - rise))) / 2

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a network's parameters."""
        decay = WEIGHT_DECAY[self.optimizer]
        if self.optimizer == "AdamW":
            return torch.optim.AdamW(model.parameters(), self.rate, weight_decay=decay, fused=True)
        return torch.optim.SGD(
            model.parameters(), self.rate, MOMENTUM, weight_decay=decay, fused=True
        )


def train(model: nn.Module, samples: Samples, recipe: Recipe, seed: int) -> None:
    """Train in place; batches, augmentation and dropout depend on the seed alone."""
    optimizer = recipe.make(model)
    batches = _batches(samples, recipe, torch.Generator().manual_seed(seed))
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for update in range(recipe.updates):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_of(update)
            x, y = next(batches)
            optimizer.zero_grad(set_to_none=True)
            loss(model(x), y).backward()
            optimizer.step()


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error for numbers, else cross-entropy without what has no label (-100)."""
    if labels.is_floating_point():
        return F.mse_loss(outputs, labels)
    return F.cross_entropy(outputs, labels)


@torch.no_grad()
def measure(model: nn.Module, samples: Samples) -> float:
    """In points, in evaluation mode: accuracy, R2, or of label maps mean intersection over union.

    The mean is over the classes that occur. R2 is at least -100, and -100 where it is not finite.
    """
    model.eval()
    outputs = torch.cat([model(x) for x in samples.inputs.split(_EVALUATION_BATCH)])
    labels = samples.labels
    if labels.is_floating_point():
        y = labels.double()
        share = (outputs - y).square().sum() / (y - y.mean(dim=0)).square().sum()
        points = 100 * (1 - float(share))
        return max(points, LOWEST) if math.isfinite(points) else LOWEST
    found = outputs.argmax(dim=1)
    if labels.ndim == 1:
        return 100 * float((found == labels).double().mean())
    return 100 * float(_intersection_over_union(found[labels >= 0], labels[labels >= 0]))


def _intersection_over_union(found: Tensor, labels: Tensor) -> Tensor:
    classes = int(max(found.max(), labels.max())) + 1
    counts = torch.bincount(labels * classes + found, minlength=classes**2).view(classes, classes)
    hits, truth = counts.diagonal(), counts.sum(dim=1)
    there = truth > 0
    union = truth + counts.sum(dim=0) - hits
    return (hits[there] / union[there]).mean()


def _batches(
    samples: Samples, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch after the other, without end."""
    batches = Batches(epochs=0, rate=0.0, batch=recipe.batch, augment=recipe.augment)
    while True:
        for draw in draw_epoch(len(samples.labels), batches, generator):
            x = samples.inputs[draw.chosen]
            if draw.offsets is not None and draw.mirrored is not None:
                x = augment(x, draw.offsets, draw.mirrored)
            yield x, samples.labels[draw.chosen]
