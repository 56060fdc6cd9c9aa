"""The panel's networks, as they come: with the weights that a person would start from.

These are the constructor's own, but for the convolutional networks of He et al. and the VGGs, whose
reference implementations draw He's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import networks as convolutional  # bench/networks.py
import torch
from experiments.architectures import to_channels_last
from torch import Tensor, nn

from sylvinit.demo.networks import digits_net, resnet20
from sylvinit.demo.tasks import he_init_


def build(
    name: str, settings: dict[str, Any], outputs: int, shape: torch.Size, seed: int
) -> nn.Module:
    """A network from inputs (N, *shape) to (N, outputs), with random weights of this seed.

    The global random state is as before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name](outputs, shape, **settings)
    return to_channels_last(model)


def _he(model: nn.Module) -> nn.Module:
    return he_init_(model, torch.initial_seed())


def _resnet20(outputs: int, shape: torch.Size, **settings: Any) -> nn.Module:
    return _he(resnet20(outputs, in_channels=shape[0], **settings))


def _vgg8(outputs: int, shape: torch.Size, **settings: Any) -> nn.Module:
    return _he(convolutional.NETWORKS["vgg8"](outputs, **settings))


def _digits_net(outputs: int, shape: torch.Size) -> nn.Module:
    return _he(digits_net(outputs))


def _timm(model: str, outputs: int, shape: torch.Size, **settings: Any) -> nn.Module:
    timm: Any = importlib.import_module("timm")
    return timm.create_model(model, num_classes=outputs, in_chans=shape[0], **settings)


def _timm_class(name: str, outputs: int, shape: torch.Size, **settings: Any) -> nn.Module:
    models: Any = importlib.import_module("timm.models")
    make = getattr(models, name)
    return make(img_size=shape[-1], in_chans=shape[0], num_classes=outputs, **settings)


def _mlp(outputs: int, shape: torch.Size, width: int = 128) -> nn.Module:
    return nn.Sequential(
        nn.Linear(shape[0], width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def _series_fcn(
    outputs: int, shape: torch.Size, width: int = 64, normalized: bool = True
) -> nn.Module:
    """That of Wang, Yan and Oates (2017) at half its width, with a kernel of 7 in place of 8."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for out_channels, kernel in ((width, 7), (2 * width, 5), (width, 3)):
        layers += [
            nn.Conv1d(channels, out_channels, kernel, padding=kernel // 2),
            *([nn.BatchNorm1d(out_channels)] if normalized else []),
            nn.ReLU(),
        ]
        channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, outputs))


class SequenceTransformer(nn.Module):
    """Tokens (N, features, length): an embedding with positions, pre-norm blocks, their mean."""

    def __init__(
        self, outputs: int, shape: torch.Size, width: int = 64, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        features, length = shape
        self.embedding = nn.Linear(features, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, length, width))
        # One by one: nn.TransformerEncoder would start all its blocks from the same weights.
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x.transpose(1, 2)) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def _segmentation(outputs: int, shape: torch.Size) -> nn.Module:
    from targets_segmentation import network

    return network(torch.initial_seed())


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": _resnet20,
    "vgg8": _vgg8,
    "digits_net": _digits_net,
    "resnet18": partial(_timm, "resnet18"),
    "mobilenetv3_small_050": partial(_timm, "mobilenetv3_small_050"),
    "convnext_atto": partial(_timm, "convnext_atto"),
    "vit": partial(_timm_class, "VisionTransformer"),
    "mixer": partial(_timm_class, "MlpMixer"),
    "swin": partial(_timm_class, "SwinTransformer"),
    "mlp": _mlp,
    "series_fcn": _series_fcn,
    "transformer": SequenceTransformer,
    "segmentation_fcn": _segmentation,
}
