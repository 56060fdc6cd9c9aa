"""Data-dependent initialisation: filters from each layer's inputs, and equal rates of learning.

Krähenbühl, Doersch, Donahue, Darrell, "Data-dependent initializations of convolutional neural
networks", ICLR 2016 (arXiv:1511.06856), and the authors' code (github.com/philkr/magic_init) where
the paper leaves room.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from initialisers.filters import Basis, input_patches, make_filters
from initialisers.random import he_normal_
from initialisers.rates import equalise_rates_
from initialisers.shared import (
    Data,
    Layer,
    as_found,
    random_batch,
    use_batch_statistics_,
    weighted_layers,
)
from sylvinit.demo.training import calibrate_norm


def krahenbuhl_(
    model: nn.Module,
    data: Data,
    seed: int,
    *,
    basis: Basis = "pca",
    images: int = 500,
    patches: int = 16,
    bias: float = 0.0,
    rounds: int = 10,
    damping: float = 0.25,
) -> None:
    """Filters from data, unit variance within layers, equal rates between layers.

    Batch norm, which the paper's networks do not have, uses the statistics of the images
    throughout. There the scale of the weights changes no output, but both steps are taken all the
    same: the second still changes how fast a layer's weights turn.

    Args:
        model: its convolutions (Conv2d) and linear layers, the last one included, are overwritten;
            batch norm has weight 1 and bias 0 and is calibrated on all the data afterwards.
        data: labels are not used.
        seed: of everything random.
        basis: "pca" or "kmeans", see :mod:`initialisers.filters`.
        images: random ones of the data, used in one batch.
        patches: of an image and layer, for the filters; the authors take all, up to a limit of
            memory.
        bias: mean of a channel's output, the paper's beta; 0 is the default of the authors'
            function, 0.1 that of their command line.
        rounds: of the between-layer step, the authors' 10; 0 leaves it out.
        damping: of each round, the paper's alpha.

    Raises:
        ModelError: a convolution of another kind than Conv2d.
    """
    he_normal_(model, data, seed)
    generator = torch.Generator().manual_seed(seed)
    with as_found(model, seed) as device:
        use_batch_statistics_(model)
        inputs, _ = random_batch(data, images, generator, device)
        _initialise_layers_(model, inputs, basis, patches, bias, seed, generator)
        equalise_rates_(model, inputs, rounds, damping, generator)
        calibrate_norm(model, data[0].to(device))


@torch.no_grad()
def _initialise_layers_(
    model: nn.Module,
    inputs: Tensor,
    basis: Basis,
    per_sample: int,
    bias: float,
    seed: int,
    generator: torch.Generator,
) -> None:
    """Algorithm 1 in one pass: a layer gets its weights when its input arrives."""
    done: set[nn.Module] = set()

    def arrive(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(layer, Layer) and layer not in done:
            done.add(layer)
            found = input_patches(layer, args[0], per_sample, generator)
            count = layer.weight.shape[0] // len(found)
            filters = [make_filters(group, count, basis, seed, generator) for group in found]
            layer.weight.copy_(torch.cat(filters).view_as(layer.weight))
            _normalise_(layer, args[0], bias)

    handles = [layer.register_forward_pre_hook(arrive) for layer in weighted_layers(model)]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()


def _normalise_(layer: Layer, x: Tensor, mean: float) -> None:
    """Scale and shift each output channel to unit variance and the given mean on ``x``.

    A layer without bias keeps its mean, and a channel that never varies its scale.
    """
    if layer.bias is not None:
        layer.bias.zero_()
    outputs = layer.forward(x)  # not called: the hook is there still
    rows = outputs.transpose(0, 1).flatten(1) if outputs.ndim > 2 else outputs.mT
    variances, means = torch.var_mean(rows, dim=1, correction=0)
    stds = variances.sqrt()
    stds = torch.where(stds > 0, stds, 1)
    layer.weight.div_(stds.view(-1, *[1] * (layer.weight.ndim - 1)))
    if layer.bias is not None:
        layer.bias.copy_(mean - means / stds)
