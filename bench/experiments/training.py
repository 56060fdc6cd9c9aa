"""Stochastic gradient descent as in the papers: step decay, random crops and mirror images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from config import ConfigError
from torch import Tensor, nn

from sylvinit.io.datasets import Samples

_PADDING = 4


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the samples.
        rate: learning rate of the first epoch.
        batch: samples an update.
        decay_at: numbers of epochs after which the rate is multiplied by ``decay``.
        decay: that factor.
        momentum: of SGD.
        nesterov: whether it is Nesterov's.
        weight_decay: of every parameter.
        augment: random crops after 4 pixels of zero padding, and random mirror images.
        precision: "float32", or "bf16" for bfloat16 autocast of the forward pass.
    """

    epochs: int
    rate: float
    batch: int
    decay_at: tuple[int, ...] = ()
    decay: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    augment: bool = False
    precision: str = "float32"

    @classmethod
    def of(cls, content: dict[str, Any]) -> Recipe:
        """The recipe that a configuration describes."""
        unknown = content.keys() - {item.name for item in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"training: unknown fields {sorted(unknown)}")
        if content.get("precision", "float32") not in ("float32", "bf16"):
            raise ConfigError("training: expected precision float32 or bf16")
        values: dict[str, Any] = content | {"decay_at": tuple(content.get("decay_at", ()))}
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"training: {error}") from error

    def rate_of(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 1."""
        return self.rate * self.decay ** sum(epoch > place for place in self.decay_at)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.SGD:
        """SGD with these settings."""
        return torch.optim.SGD(
            parameters,
            lr=self.rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )

    def autocast(self, device: str) -> contextlib.AbstractContextManager[Any]:
        """The context of the forward pass."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)


def train(model: nn.Module, samples: Samples, recipe: Recipe, seed: int) -> Iterator[int]:
    """Train ``model`` in place, one epoch each time the iterator is advanced.

    Order and augmentation depend on ``seed`` alone and come from a generator on the CPU, so
    networks trained with one seed see the same batches on every device.

    Args:
        model: maps images to class scores.
        samples: on the device of ``model``.
        recipe: how.
        seed: of order and augmentation.

    Yields:
        The number of epochs done, from 1, with the model in training mode.
    """
    generator = torch.Generator().manual_seed(seed)
    device = samples.inputs.device.type
    optimizer = recipe.optimizer(list(model.parameters()))
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        set_rate(optimizer, recipe.rate_of(epoch))
        for batch in draw_epoch(len(samples.labels), recipe, generator):
            images = batch.images(samples.inputs)
            optimizer.zero_grad(set_to_none=True)
            with recipe.autocast(device):
                scores = model(images)
            F.cross_entropy(widened(scores), samples.labels[batch.chosen]).backward()
            optimizer.step()
        yield epoch


def widened(scores: Tensor) -> Tensor:
    """Scores in at least float32, for the logarithms of the loss."""
    return scores.float() if scores.dtype == torch.bfloat16 else scores


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@dataclass(frozen=True)
class Draw:
    """The random choices behind a batch of n samples, all on the CPU.

    Attributes:
        chosen: indices of the samples, int64 (n,).
        offsets: row and column of the crops, from 0 to 8, int64 (n, 2); None without augmentation.
        mirrored: which are flipped, bool (n,); None without augmentation.
    """

    chosen: Tensor
    offsets: Tensor | None = None
    mirrored: Tensor | None = None

    def images(self, inputs: Tensor) -> Tensor:
        """The batch from all images (N, C, H, W), in channels_last."""
        images = inputs[self.chosen.to(inputs.device)]
        if self.offsets is None or self.mirrored is None:
            return images.contiguous(memory_format=torch.channels_last)
        return augment(images, self.offsets, self.mirrored)


def draw_epoch(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[Draw]:
    """The batches of one epoch over ``count`` samples."""
    order = torch.randperm(count, generator=generator)
    for chosen in order.split(recipe.batch):
        if len(chosen) == 1:
            continue  # batch norm cannot be trained on a single sample
        if not recipe.augment:
            yield Draw(chosen)
            continue
        offsets = torch.randint(0, 2 * _PADDING + 1, (len(chosen), 2), generator=generator)
        mirrored = torch.randint(0, 2, (len(chosen),), generator=generator).bool()
        yield Draw(chosen, offsets, mirrored)


def augment(images: Tensor, offsets: Tensor, mirrored: Tensor) -> Tensor:
    """Crop every image at its own place after padding with zeros, and mirror some of them.

    Args:
        images: (n, C, H, W).
        offsets: top row and left column in the padded image, from 0 to 8, int64 (n, 2).
        mirrored: which crops are flipped from left to right, bool (n,).

    Returns:
        (n, C, H, W) in channels_last, made by one gather.
    """
    height, width = images.shape[2:]
    device = images.device
    offsets, mirrored = offsets.to(device), mirrored.to(device)
    padded = F.pad(images, (_PADDING,) * 4).permute(0, 2, 3, 1)
    straight = torch.arange(width, device=device)
    columns = torch.where(mirrored[:, None], straight.flip(0), straight) + offsets[:, 1, None]
    rows = torch.arange(height, device=device) + offsets[:, 0, None]
    which = torch.arange(len(images), device=device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
