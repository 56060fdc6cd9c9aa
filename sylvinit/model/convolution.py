"""Convolutions in one to three dimensions, and their transposes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from sylvinit.model.geometry import PatchGeometry
from sylvinit.model.layer import Layer, assign, register_layer


class _Convolution(Layer):
    module: nn.modules.conv._ConvNd

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__(module, name)
        self.groups = self.module.groups

    def _geometry(self, before: Iterable[Any], after: Iterable[Any], **rest: Any) -> PatchGeometry:
        conv = self.module
        sizes = tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation)
        return PatchGeometry(*sizes, tuple(map(int, before)), tuple(map(int, after)), **rest)

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
        # torch keeps the padding per side, last axis first, with "same" already resolved.
        sides = self.module._reversed_padding_repeated_twice
        mode = self.module.padding_mode
        self.geometry = self._geometry(sides[::2][::-1], sides[1::2][::-1], padding_mode=mode)

    def get_weight(self) -> Tensor:
        weight = self.module.weight.detach()
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def set_weight(self, weight: Tensor) -> None:
        assign(self.module, "weight", weight.reshape(self.module.weight.shape))


class SamePaddedConvLayer(ConvLayer):
    """A convolution that pads its input with zeros for ceil(size / stride) outputs on every axis.

    That is TensorFlow's "same" padding, which depends on the size of the input: the missing pixels
    are split between both ends, the odd one behind. The layer's input is the padded one.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__(module, name)
        none = (0,) * len(self.module.kernel_size)
        self.geometry = self._geometry(none, none)

    def input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        x, conv = super().input(args, kwargs), self.module
        sides: list[int] = []
        axes = zip(x.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
        for size, kernel, stride, dilation in axes:
            reach = (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1
            missing = max(reach - size, 0)
            sides = [missing // 2, missing - missing // 2, *sides]  # the last axis comes first
        return pad(x, sides)


@register_layer(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class ConvTransposeLayer(_Convolution):
    """``nn.ConvTranspose1d/2d/3d``: weight (channels, outputs / groups, *kernel).

    Solved as the stride-1 convolution of the zero-stuffed input with the flipped kernel. The
    features of a patch are ordered by the taps of the stored kernel, which makes the flip a matter
    of indices.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__(module, name)
        padding, extra = self.module.padding, tuple(self.module.output_padding)
        self.geometry = self._geometry(padding, padding, transposed=True, output_padding=extra)

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
