"""A layer's formula, y = W x + b, evaluated in float64 beside the output of its module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sylvinit.model import Layer
from sylvinit.moments.patch_source import PatchSource
from sylvinit.moments.rows import Rows

# About so many entries of the output are compared, in at least so many rows or pixels.
_NUMBERS, _LEAST_PLACES = 2**17, 64
# Entry by entry, in units of the precision. Two factors and a sum are rounded, half a unit each at
# most; sums of n terms are taken in float32 or better and err as random walks do.
_ROUNDINGS = 8
# Arithmetic of eight bits is that of the layer, too. Of random numbers, int8 with a scale for each
# output errs by 1.2 % (weights and inputs rounded to steps of max / 127), fp8 with three bits of
# mantissa by 3.7 %, and int4 by 10 %. Single entries deviate by up to six times as much.
_COARSE = 0.05
_COARSE_ENTRY = 6 * _COARSE


@dataclass(frozen=True)
class Comparison:
    """How far outputs are from the formula, in units of the size of a sum with random signs."""

    error: float  # root mean square
    worst: float  # of one entry
    rounding: float  # of one entry, of the arithmetic that the types of the tensors stand for

    @classmethod
    def none(cls) -> Comparison:
        """Of what cannot be compared."""
        return cls(math.inf, math.inf, 0.0)

    @property
    def equal(self) -> bool:
        """Whether the two are the same but for the rounding of their precision."""
        return self.worst <= self.rounding

    @property
    def close(self) -> bool:
        """Whether they are the same in arithmetic of eight bits."""
        return self.equal or (self.error <= _COARSE and self.worst <= _COARSE_ENTRY)


@dataclass(frozen=True)
class Products:
    """W x and what belongs to it at chosen places of the output; (groups, places, outputs) each."""

    output: Tensor  # of the module
    products: Tensor  # W x
    scale: Tensor  # (sum of (w_i x_i)^2)^(1/2)
    bias: Tensor  # (groups, 1, outputs)
    rounding: float


def evaluate(
    layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> Products | None:
    """W x of a layer for the arguments of its module; None where the output has another shape."""
    x, geometry = layer.input(args, kwargs).detach(), layer.geometry
    held, bias = layer.get_weight(), layer.get_bias()
    weight = held.double()
    groups, outputs, features = weight.shape
    if not isinstance(output, Tensor):
        return None
    if geometry is None:
        if x.shape[-1] != features or output.shape != (*x.shape[:-1], outputs):
            return None
        place = _places(x[..., 0].numel(), outputs, x.device)
        patches = x.reshape(-1, features)[place][None]
        seen = output.reshape(-1, outputs)[place][None]
    else:
        in_size = tuple(x.shape[2:])
        if len(in_size) != len(geometry.kernel):
            return None
        out_size = layer.output_size(args, kwargs, in_size)
        if output.shape != (len(x), groups * outputs, *out_size):
            return None
        pixels = math.prod(out_size)
        place = _places(len(x) * pixels, groups * outputs, x.device)
        entry, position = place // pixels, place % pixels
        rows = Rows.one_each(len(x), pixels)
        patches = PatchSource(x, geometry, groups, out_size, rows, None).gather(entry, position)
        weight = weight.unflatten(2, (-1, geometry.taps)).mT.flatten(2)  # taps first, as patches
        seen = output.flatten(2)[entry, :, position].unflatten(1, (groups, outputs)).movedim(1, 0)
    patches, zero = patches.double(), weight.new_zeros(groups, outputs)
    return Products(
        seen.double(),
        patches @ weight.mT,
        (patches.square() @ weight.square().mT).sqrt(),
        (zero if bias is None else bias.double())[:, None],
        rounding(features, x, output, held),
    )


def compare(products: Products) -> Comparison:
    """The module's output and W x + b."""
    scale = (products.scale.square() + products.bias.square()).sqrt()
    return compare_outputs(
        products.output, products.products + products.bias, scale, products.rounding
    )


def compare_outputs(one: Tensor, other: Tensor, scale: Tensor, rounding: float) -> Comparison:
    """Outputs of some size; all of it NaN or Inf where one of them is."""
    error = (one - other).abs() / scale.clamp(min=torch.finfo(torch.float64).tiny)
    error = error.nan_to_num(nan=math.inf)
    return Comparison(float(error.square().mean().sqrt()), float(error.max()), rounding)


def _places(count: int, outputs: int, device: torch.device) -> Tensor:
    """Which of so many places are compared, int64: all where they are few, else random ones."""
    most = max(_NUMBERS // outputs, _LEAST_PLACES)
    if count <= most:
        return torch.arange(count, device=device)
    place = torch.randint(count, (most,), generator=torch.Generator().manual_seed(0))
    place[:2] = torch.tensor([0, count - 1])  # corners of an image
    return place.to(device)


def rounding(features: int, *tensors: Tensor) -> float:
    """What an entry of the output may deviate by, in units of its scale."""
    device = tensors[0].device.type
    dtypes = [x.dtype for x in tensors]
    if torch.is_autocast_enabled(device):
        dtypes.append(torch.get_autocast_dtype(device))
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    sums = min(eps, torch.finfo(torch.float32).eps)
    if device == "cuda":  # TensorFloat-32, which convolutions take unless it is forbidden
        eps = max(eps, 2.0**-10)
    return _ROUNDINGS * (eps + sums * math.sqrt(features))
