"""Networks of the second paper's experiments, for 32 x 32 images: VGG-8 and ResNet-10.

The paper gives their names, batch norm, and a width factor of 0.5. What is not given is chosen as
in the networks they are named after.
"""

from __future__ import annotations

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


class ResNet10(nn.Module):
    """A 3x3 convolution, four stages of one basic block, global average pooling, a linear layer."""

    def __init__(self, num_classes: int = 10, width: float = 0.5) -> None:
        super().__init__()
        widths = [int(channels * width) for channels in (64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, out_channels in enumerate(widths):
            blocks.append(ProjectionBlock(channels, out_channels, 1 if stage == 0 else 2))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def vgg8(num_classes: int = 10, width: float = 0.5) -> nn.Sequential:
    """Seven 3x3 convolutions with batch norm and ReLU, five 2x2 poolings, a linear layer.

    The configuration is VGG-11's (Simonyan and Zisserman 2015, A) without its last convolution and
    with a single linear layer.
    """
    plan: list[int | str] = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, "M"]
    layers: list[nn.Module] = []
    channels = 3
    for item in plan:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            continue
        out_channels = int(item * width)
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
        channels = out_channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, num_classes))


NETWORKS = {"vgg8": vgg8, "resnet10": ResNet10}
