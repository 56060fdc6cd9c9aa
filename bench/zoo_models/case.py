"""A model with its data, and random data that look like images and sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLES = 12
CLASSES = 4
TOKENS = 24


@dataclass
class Case:
    """What ``initialize_`` is called with, and how the model is called without it."""

    model: nn.Module
    data: Any
    forward: Callable[[], Any]
    labels: Tensor | None = None
    """Of the samples, where the model's first output holds a score for each class."""
    forward_fn: Callable[[nn.Module, Any], Any] | None = None


class NotBuiltError(Exception):
    """The library cannot build the model here."""


class TooLargeError(NotBuiltError):
    """The model has more parameters than asked for."""


def smooth_images(channels: int, height: int, width: int) -> Tensor:
    """Noise enlarged eight times: neighboring pixels are alike, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(SAMPLES, channels, height // 8, width // 8, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)


def class_labels() -> Tensor:
    """As many samples of every class."""
    return torch.arange(SAMPLES) % CLASSES


def image_case(model: nn.Module, size: tuple[int, int, int]) -> Case:
    """A classifier of images that is called with a tensor."""
    images, labels = smooth_images(*size), class_labels()
    return Case(model, (images, labels), lambda: model(images), labels)


def parameter_count(model: nn.Module) -> int:
    """Each shared parameter counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_on_meta(create: Callable[[], nn.Module]) -> int:
    """The parameters of a model that is not allocated; 0 where it cannot be made without values."""
    try:
        with torch.device("meta"):
            return parameter_count(create())
    except Exception:  # whatever a model's constructor raises
        return 0


def checked_size(model: nn.Module, most_parameters: int) -> nn.Module:
    """For models that could not be counted before they were made."""
    count = parameter_count(model)
    if count > most_parameters:
        raise TooLargeError(f"{count:,} parameters")
    return model
