"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from config import ConfigError
from networks import NETWORKS as SECOND_PAPER
from torch import nn

from sylvinit.demo.networks import digits_net, resnet20

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "digits_net": digits_net,
    **SECOND_PAPER,
}


def make_network(name: str, settings: dict[str, Any], classes: int, channels: int) -> nn.Module:
    """Build a network, with PyTorch's own random weights.

    Args:
        name: a key of ``NETWORKS``.
        settings: arguments of that network.
        classes: outputs of its last layer.
        channels: of the images; only ResNet-20 takes other than its own number.

    Returns:
        The network in channels_last; the global random state is as before.
    """
    if name not in NETWORKS:
        raise ConfigError(f"network {name!r}: expected one of {sorted(NETWORKS)}")
    if name == "resnet20":
        settings = {"in_channels": channels} | settings
    with torch.random.fork_rng(devices=[]):
        model = NETWORKS[name](num_classes=classes, **settings)
    return to_channels_last(model)


def to_channels_last(model: nn.Module) -> nn.Module:
    """Give the filters of ``model`` the memory layout of its images."""
    return to_layout(model, torch.channels_last)


def to_layout(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Give the filters of ``model`` a memory layout, with the same values."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return model
