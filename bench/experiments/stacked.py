"""Training of many networks of one architecture at once, for a GPU that one would leave idle.

Parameters and buffers of all networks are stacked, and one vectorised forward pass computes all of
them, every network on images of its own. The result is that of training one by one, up to
rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from training import Draw, Recipe, augment, draw_epoch, set_rate, widened

from sylvinit.io.datasets import Samples


def train_stacked(
    models: Sequence[nn.Module],
    samples: Sequence[Samples],
    recipe: Recipe,
    seeds: Sequence[int],
    stops: Collection[int],
) -> Iterator[int]:
    """Train every model on its own samples, as :func:`training.train` does with its seed.

    Args:
        models: of one architecture, on one device; trained in place.
        samples: of each model, all of the same number and shape.
        recipe: of all of them.
        seeds: of each model's order and augmentation.
        stops: numbers of epochs after which to stop and look at the models, whose weights are up
            to date only then.

    Yields:
        Those numbers, ascending.
    """
    parameters, buffers = stack_module_state(list(models))
    parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    skeleton = copy.deepcopy(models[0]).to("meta").train()
    images = torch.stack([item.inputs for item in samples])
    labels = torch.stack([item.labels for item in samples])
    device = images.device.type

    def scores(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(skeleton, (parameters, buffers), (x,))

    forward = torch.vmap(scores)
    # SGD acts on every number by itself, so on stacked tensors it is that of every network.
    optimizer = recipe.optimizer(list(parameters.values()))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for epoch in range(1, recipe.epochs + 1):
        set_rate(optimizer, recipe.rate_of(epoch))
        epochs = [draw_epoch(images.shape[1], recipe, generator) for generator in generators]
        for draws in zip(*epochs, strict=True):
            chosen = torch.stack([draw.chosen for draw in draws]).to(images.device)
            x, y = _batch(images, chosen, draws), labels.gather(1, chosen)
            optimizer.zero_grad(set_to_none=True)
            with recipe.autocast(device):
                outputs = forward(parameters, buffers, x)
            losses = F.cross_entropy(
                widened(outputs).flatten(0, 1), y.flatten(), reduction="none"
            ).view(y.shape)
            losses.mean(dim=1).sum().backward()
            optimizer.step()
        if epoch in stops:
            _write_back(models, parameters, buffers)
            yield epoch


def _batch(images: Tensor, chosen: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Images (networks, batch, C, H, W) of the chosen samples, augmented where the draws say so."""
    networks, count = chosen.shape
    x = images[torch.arange(networks, device=images.device)[:, None], chosen]
    offsets = [draw.offsets for draw in draws if draw.offsets is not None]
    mirrored = [draw.mirrored for draw in draws if draw.mirrored is not None]
    if not offsets:
        return x
    x = augment(x.flatten(0, 1), torch.cat(offsets), torch.cat(mirrored))
    return x.unflatten(0, (networks, count))


@torch.no_grad()
def _write_back(
    models: Sequence[nn.Module], parameters: dict[str, Tensor], buffers: dict[str, Tensor]
) -> None:
    for index, model in enumerate(models):
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[name][index])
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name][index])
