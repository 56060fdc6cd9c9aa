"""Networks of the second paper's experiments, for 32 x 32 images: VGGs and ResNets.

The paper gives their names, batch norm, and a width factor of 0.5 (1.5 for wide networks). What is
not given is chosen as in the networks they are named after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionBlock(nn.Module):
    """A basic block of two 3x3 convolutions, with a 1x1 projection where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 convolution, four stages of basic blocks, global average pooling, a linear layer.

    Args:
        stages: basic blocks of each stage; every stage but the first halves the map.
        num_classes: outputs of ``fc``.
        width: factor on the 64, 128, 256 and 512 channels of the stages.
    """

    def __init__(self, stages: Sequence[int], num_classes: int = 10, width: float = 0.5) -> None:
        super().__init__()
        widths = [int(channels * width) for channels in (64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, (out_channels, count) in enumerate(zip(widths, stages, strict=True)):
            for place in range(count):
                stride = 2 if stage > 0 and place == 0 else 1
                blocks.append(ProjectionBlock(channels, out_channels, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def vgg(
    stages: Sequence[Sequence[int]],
    num_classes: int = 10,
    width: float = 0.5,
    normalised: bool = True,
) -> nn.Module:
    """Stages of 3x3 convolutions with batch norm and ReLU, a 2x2 pooling each, a linear layer.

    Args:
        stages: channels of the convolutions of each of the five stages.
        num_classes: outputs of the single linear layer, where VGGs for larger images have three.
        width: factor on the channels.
        normalised: False leaves batch norm out and gives the convolutions biases.
    """
    layers: list[nn.Module] = []
    channels = 3
    for stage in stages:
        for item in stage:
            out_channels = int(item * width)
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=not normalised))
            if normalised:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
            channels = out_channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, num_classes))


# VGG-16 and VGG-19 are D and E of Simonyan and Zisserman (2015); VGG-8 is VGG-11 (A) without its
# last convolution.
_VGG8 = ((64,), (128,), (256, 256), (512, 512), (512,))
_VGG16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
_VGG19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vgg8": partial(vgg, _VGG8),
    "vgg16": partial(vgg, _VGG16),
    "vgg19": partial(vgg, _VGG19),
    "resnet10": partial(ResNet, (1, 1, 1, 1)),
    "resnet18": partial(ResNet, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, (3, 4, 6, 3)),
}
