"""What the initialisers share: which layers there are, and leaving everything else as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sylvinit.model.modules import device_of

Data = tuple[Tensor, Tensor]  # inputs (N, ...) and their labels, int64 (N,)
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def weighted_layers(model: nn.Module) -> list[Layer]:
    """Convolutions and linear layers, in the order of the modules."""
    return [module for module in model.modules() if isinstance(module, Layer)]


def head_of(model: nn.Module) -> nn.Linear | None:
    """The last linear layer, in the order of the modules."""
    return next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)


def reset_norms_(model: nn.Module) -> None:
    """Give batch norm PyTorch's defaults: weight 1, bias 0, running mean 0 and variance 1."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_parameters()


def use_batch_statistics_(model: nn.Module) -> None:
    """Batch norm as in training, everything else (dropout) as in evaluation."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.training = True


def random_batch(data: Data, size: int, generator: torch.Generator, device: torch.device) -> Data:
    """``size`` different samples, or all if there are fewer."""
    inputs, labels = data
    chosen = torch.randperm(len(labels), generator=generator)[:size]
    return (
        inputs[chosen.to(inputs.device)].to(device),
        labels[chosen.to(labels.device)].to(device),
    )


@contextmanager
def as_found(model: nn.Module, seed: int) -> Iterator[torch.device]:
    """Put back, on leaving, the modes of modules, ``requires_grad`` and the global random states.

    Within, the global random numbers (those of dropout, say) are those of ``seed``.

    Yields:
        The device of the model.
    """
    device = device_of(model)
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed, which seeds all GPUs, also those that are not forked.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield device
        finally:
            for module, training in modes:
                module.training = training
            for parameter, flag in trained:
                parameter.requires_grad_(flag)
