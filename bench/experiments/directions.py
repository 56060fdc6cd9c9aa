"""How far training turns the filters of a network: how much of an initialisation is left."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def filters(model: nn.Module) -> list[Tensor]:
    """A copy of the filters of every convolution, a row each, float64 on the CPU."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return [
        layer.weight.detach().flatten(1).to("cpu", torch.float64, copy=True) for layer in layers
    ]


def cosine(before: list[Tensor], after: list[Tensor]) -> float:
    """Mean cosine of the angle between a filter and what became of it.

    Args:
        before, after: from :func:`filters`, of the same network.

    Returns:
        The mean over the layers of the mean over their filters, from -1 to 1; that of independent
        random filters is 0 in expectation.

    Raises:
        ValueError: the network has no convolutions.
    """
    if not before:
        raise ValueError("expected a network with convolutions")
    parts = [
        torch.nn.functional.cosine_similarity(first, last, dim=1).mean()
        for first, last in zip(before, after, strict=True)
    ]
    return float(torch.stack(parts).mean())
