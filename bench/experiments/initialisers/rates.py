"""Layers scaled against one another until their weights change at the same rate.

Krähenbühl et al., "Data-dependent initializations of convolutional neural networks", ICLR 2016,
section 3.2 and algorithm 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from initialisers.shared import Layer, weighted_layers


def equalise_rates_(
    model: nn.Module, inputs: Tensor, rounds: int, damping: float, generator: torch.Generator
) -> None:
    """Make |gradient| / |weight| the same for all layers, about their geometric mean.

    The gradient is that of the outputs times random normal numbers, the paper's loss without
    labels. A layer whose ratio is C times the geometric mean is scaled by C^(damping / 2), which
    makes it C^(1 - damping) times the mean, exactly so in homogeneous networks and under batch
    norm. Biases are scaled with the weights and with the layer's input, as in the authors' code, so
    that a change of scale further up does not shift activations.

    Args:
        model: in the mode in which it shall be measured. Layers without a gradient are left alone;
            afterwards the weights of all require one.
        inputs: one batch.
        rounds: how often.
        damping: see above; 1 is a full step.
        generator: of the random numbers, which are new in every round.
    """
    layers = weighted_layers(model)
    weights = [layer.weight.requires_grad_() for layer in layers]
    scaler = _InputScale(layers)
    try:
        for _ in range(rounds):
            outputs = model(inputs)
            noise = torch.randn(outputs.shape, generator=generator).to(outputs)
            ratios = _rates(weights, (outputs * noise).sum())
            centre = sum(map(math.log, ratios.values())) / max(len(ratios), 1)
            with torch.no_grad():
                for index, ratio in ratios.items():
                    factor = math.exp(damping / 2 * (math.log(ratio) - centre))
                    layers[index].weight.mul_(factor)
                    bias = layers[index].bias
                    if bias is not None:
                        bias.mul_(factor)
        if rounds:
            with torch.no_grad():
                model(inputs)  # biases to the last scales
    finally:
        scaler.remove()


def _rates(weights: list[Tensor], loss: Tensor) -> dict[int, float]:
    """|gradient| / |weight| where it is not zero, by the weight's place in the list."""
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    found = {
        index: float(gradient.norm() / weight.detach().norm())
        for index, (gradient, weight) in enumerate(zip(gradients, weights, strict=True))
    }
    return {index: ratio for index, ratio in found.items() if ratio > 0}


class _InputScale:
    """Hooks that scale a layer's bias as the magnitude of its input changes between passes."""

    def __init__(self, layers: list[Layer]) -> None:
        self._before: dict[nn.Module, float] = {}
        self._handles = [layer.register_forward_pre_hook(self._adjust) for layer in layers]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _adjust(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        now = float(args[0].abs().mean())
        before = self._before.get(layer, now)
        self._before[layer] = now
        bias = layer.bias
        if isinstance(bias, Tensor) and before > 0 and now > 0:
            bias.mul_(now / before)
