"""The two networks of the demo: ResNet-20 for CIFAR and a small one for 8x8 digits."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity shortcut without parameters.

    Where the shape changes, the shortcut is option A of He et al. (2016): every ``stride``-th
    pixel, and zero channels added on both sides.

    ``out_channels`` is at least ``in_channels``; the first convolution has the same ``stride``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.extra_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """``x`` in the shape of the block's output, without parameters."""
        if self.stride > 1:
            # x[:, :, ::stride, ::stride], whose gradient keeps the memory format of x: that of a
            # slice would not, and what meets it behind a channels_last layer takes 8 times as long.
            x = F.avg_pool2d(x, 1, self.stride)
        if self.extra_channels:
            before = self.extra_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.extra_channels - before))
        return x


class CifarResNet(nn.Module):
    """A 3x3 convolution, stages of basic blocks, global average pooling, one linear layer."""

    def __init__(
        self, num_classes: int, widths: Sequence[int], blocks: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        layers: list[BasicBlock] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                # Every stage but the first halves the map in its first block.
                layers.append(BasicBlock(channels, width, 2 if stage and not block else 1))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to class scores (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.blocks(x)
        # The mean of the map, whose gradient keeps the memory format here, too.
        return self.fc(F.avg_pool2d(x, x.shape[2:]).flatten(1))


def resnet20(
    num_classes: int = 10,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 3,
    in_channels: int = 3,
) -> CifarResNet:
    """ResNet-20 for 32x32 images, with identity (option A) shortcuts.

    He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2.

    Args:
        num_classes: outputs of ``fc``.
        widths: channels of each stage, never decreasing.
        blocks: basic blocks a stage; the depth is ``2 * blocks * len(widths) + 2``.

    Returns:
        The network, with PyTorch's own default weights; modules ``conv1, bn1, blocks.N.conv1, ...,
        fc``.
    """
    return CifarResNet(num_classes, widths, blocks, in_channels)


def digits_net(num_classes: int = 10) -> nn.Sequential:
    """Eight 3x3 convolutions with batch norm and a linear layer, for 8x8 images.

    Deep on purpose: random filters lose more of the input with every layer.

    Returns:
        A network from (N, 1, 8, 8) to (N, num_classes), modules ``conv1, bn1, relu1, ..., fc``.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 1
    widths_and_strides = [(16, 1)] * 3 + [(32, 2)] + [(32, 1)] * 2 + [(64, 2), (64, 1)]
    for index, (width, stride) in enumerate(widths_and_strides, start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm2d(width)
        layers[f"relu{index}"] = nn.ReLU()
        channels = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)
