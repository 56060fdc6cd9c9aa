"""Random weights of the usual distributions, those of torch.nn.init.

He: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015. Xavier: Glorot and Bengio,
"Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
Orthogonal: Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in
deep linear neural networks", ICLR 2014.

All of them write the weights of convolutions and linear layers, set biases to zero, and give batch
norm its defaults. He's and the orthogonal weights have the gain of a ReLU, sqrt(2), but those of
the last linear layer, which no ReLU follows, the gain of a linear layer, 1; Xavier's have gain 1
everywhere. The numbers are drawn on the CPU, so that a seed means the same weights on every device.
The data are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from initialisers.shared import Data, head_of, reset_norms_, weighted_layers

Draw = Callable[[Tensor, bool, torch.Generator], object]


def he_uniform_(model: nn.Module, data: Data, seed: int) -> None:
    """Uniform weights of variance gain^2 / fan_in, see the module."""

    def draw(weight: Tensor, head: bool, generator: torch.Generator) -> None:
        kind = "linear" if head else "relu"
        nn.init.kaiming_uniform_(weight, nonlinearity=kind, generator=generator)

    _fill_(model, seed, draw)


def he_normal_(model: nn.Module, data: Data, seed: int) -> None:
    """Normal weights of variance gain^2 / fan_in, see the module."""

    def draw(weight: Tensor, head: bool, generator: torch.Generator) -> None:
        kind = "linear" if head else "relu"
        nn.init.kaiming_normal_(weight, nonlinearity=kind, generator=generator)

    _fill_(model, seed, draw)


def xavier_uniform_(model: nn.Module, data: Data, seed: int) -> None:
    """Uniform weights of variance 2 / (fan_in + fan_out), see the module."""

    def draw(weight: Tensor, head: bool, generator: torch.Generator) -> None:
        nn.init.xavier_uniform_(weight, generator=generator)

    _fill_(model, seed, draw)


def xavier_normal_(model: nn.Module, data: Data, seed: int) -> None:
    """Normal weights of variance 2 / (fan_in + fan_out), see the module."""

    def draw(weight: Tensor, head: bool, generator: torch.Generator) -> None:
        nn.init.xavier_normal_(weight, generator=generator)

    _fill_(model, seed, draw)


def orthogonal_(model: nn.Module, data: Data, seed: int) -> None:
    """Weights (outputs, features) with orthogonal rows or columns of length gain."""

    def draw(weight: Tensor, head: bool, generator: torch.Generator) -> None:
        nn.init.orthogonal_(weight, gain=1.0 if head else math.sqrt(2), generator=generator)

    _fill_(model, seed, draw)


def orthonormal_(model: nn.Module, seed: int) -> None:
    """Orthogonal weights of gain 1 everywhere: where LSUV starts."""

    def draw(weight: Tensor, head: bool, generator: torch.Generator) -> None:
        nn.init.orthogonal_(weight, generator=generator)

    _fill_(model, seed, draw)


@torch.no_grad()
def _fill_(model: nn.Module, seed: int, draw: Draw) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = head_of(model)
    for layer in weighted_layers(model):
        weight = torch.empty(layer.weight.shape, dtype=layer.weight.dtype)
        draw(weight, layer is head, generator)
        layer.weight.copy_(weight)  # keeps the memory format
        if layer.bias is not None:
            layer.bias.zero_()
    reset_norms_(model)
