"""Convolutions in one to three dimensions, and their transposes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from sylvinit.model.geometry import PatchGeometry
from sylvinit.model.layer import Layer, assign, register_layer


class _Convolution(Layer):
    module: nn.modules.conv._ConvNd

    def get_bias(self) -> Tensor | None:
        bias = self.module.bias
        return None if bias is None else bias.detach().reshape(self.groups, -1)

    def set_bias(self, bias: Tensor) -> None:
        assign(self.module, "bias", bias.reshape(-1))


@register_layer(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvLayer(_Convolution):
    """``nn.Conv1d/2d/3d``: weight (outputs, channels / groups, *kernel)."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__(module, name)
        conv = self.module
        self.groups = conv.groups
        # torch keeps the padding per side, last axis first, with "same" already resolved.
        sides = conv._reversed_padding_repeated_twice
        axes = range(len(conv.kernel_size))
        self.geometry = PatchGeometry(
            kernel=tuple(conv.kernel_size),
            stride=tuple(conv.stride),
            dilation=tuple(conv.dilation),
            pad_before=tuple(int(sides[2 * axis]) for axis in reversed(axes)),
            pad_after=tuple(int(sides[2 * axis + 1]) for axis in reversed(axes)),
            padding_mode=conv.padding_mode,
        )

    def get_weight(self) -> Tensor:
        weight = self.module.weight.detach()
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def set_weight(self, weight: Tensor) -> None:
        assign(self.module, "weight", weight.reshape(self.module.weight.shape))


@register_layer(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class ConvTransposeLayer(_Convolution):
    """``nn.ConvTranspose1d/2d/3d``: weight (channels, outputs / groups, *kernel).

    Solved as the stride-1 convolution of the zero-stuffed input with the flipped kernel. The
    features of a patch are ordered by the taps of the stored kernel, which makes the flip a matter
    of indices.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__(module, name)
        conv = self.module
        self.groups = conv.groups
        padding = tuple(int(p) for p in conv.padding)
        self.geometry = PatchGeometry(
            kernel=tuple(conv.kernel_size),
            stride=tuple(conv.stride),
            dilation=tuple(conv.dilation),
            pad_before=padding,
            pad_after=padding,
            transposed=True,
            output_padding=tuple(conv.output_padding),
        )

    def output_size(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], in_size: tuple[int, ...]
    ) -> tuple[int, ...]:
        wanted = args[1] if len(args) > 1 else kwargs.get("output_size")
        if wanted is None:
            return super().output_size(args, kwargs, in_size)
        return tuple(int(size) for size in wanted)[-len(in_size) :]

    def get_weight(self) -> Tensor:
        weight = self.module.weight.detach()
        channels, outputs = weight.shape[0] // self.groups, weight.shape[1]
        split = weight.reshape(self.groups, channels, outputs, -1)
        return split.transpose(1, 2).reshape(self.groups, outputs, -1)

    def set_weight(self, weight: Tensor) -> None:
        shape = self.module.weight.shape
        channels = shape[0] // self.groups
        split = weight.reshape(self.groups, shape[1], channels, prod(shape[2:]))
        assign(self.module, "weight", split.transpose(1, 2).reshape(shape))
