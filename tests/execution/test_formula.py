"""Outputs beside y = W x + b: what counts as rounding, as coarse arithmetic, as something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sylvinit.execution.formula import Comparison, Products, compare, evaluate
from sylvinit.model import ConvLayer, ConvTransposeLayer, Layer, LinearLayer


@pytest.fixture(autouse=True)
def _same_weights() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


def _products(layer: Layer, x: Tensor, output: Any) -> Products:
    products = evaluate(layer, (x,), {}, output)
    assert products is not None
    return products


def _comparison(layer: Layer, x: Tensor, output: Any) -> Comparison:
    return compare(_products(layer, x, output))


LAYERS: dict[str, tuple[nn.Module, type[Layer], tuple[int, ...]]] = {
    "rows": (nn.Linear(7, 5), LinearLayer, (2, 3, 7)),
    "one dimension": (nn.Conv1d(4, 6, 3, padding=1, groups=2), ConvLayer, (2, 4, 9)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), ConvLayer, (2, 4, 8, 7)),
    "three": (nn.Conv3d(2, 3, 2, stride=2, bias=False), ConvLayer, (2, 2, 5, 4, 6)),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
        ConvTransposeLayer,
        (2, 4, 5, 4),
    ),
    "large": (nn.Conv2d(3, 512, 3), ConvLayer, (2, 3, 64, 64)),  # only some pixels are compared
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_modules_of_torch(name: str, dtype: torch.dtype) -> None:
    module, kind, shape = LAYERS[name]
    module = module.to(dtype)
    x = _random(*shape, dtype=torch.float64).to(dtype)
    comparison = _comparison(kind(module, name), x, module(x).detach())
    assert comparison.equal
    # Not by a wide margin: an eps or so is what the rounding of an output alone makes.
    assert comparison.rounding <= 100 * torch.finfo(dtype).eps


def test_other_shapes() -> None:
    linear, conv = nn.Linear(7, 5), nn.Conv2d(4, 6, 3)
    rows, image = _random(2, 3, 7).float(), _random(2, 4, 8, 8).float()
    assert evaluate(LinearLayer(linear, ""), (rows,), {}, linear(rows)[:, :1]) is None
    assert evaluate(LinearLayer(linear, ""), (rows,), {}, (linear(rows),)) is None
    assert evaluate(LinearLayer(linear, ""), (rows[..., :6],), {}, linear(rows)) is None
    assert evaluate(ConvLayer(conv, ""), (image,), {}, conv(F.pad(image, (1, 1, 1, 1)))) is None
    assert evaluate(ConvLayer(conv, ""), (image[0],), {}, conv(image)) is None


@pytest.mark.parametrize("features", [3, 64, 4096])
def test_rounding_is_below_what_a_wrong_term_makes(features: int) -> None:
    """float32 has to see one of 4,096 terms left out, which is 1/64 of the size of the sum."""
    linear = nn.Linear(features, 50)
    nn.init.normal_(linear.weight)
    x = _random(2, features).float()
    layer = LinearLayer(linear, "")
    assert _comparison(layer, x, linear(x).detach()).equal
    without = F.linear(x[:, 1:], linear.weight[:, 1:], linear.bias).detach()
    assert not _comparison(layer, x, without).equal


def _stepped(x: Tensor, dim: int | None, steps: int) -> Tensor:
    largest = x.abs().max() if dim is None else x.abs().amax(dim=dim, keepdim=True)
    return (x * steps / largest).round() * largest / steps


def _float8(x: Tensor) -> Tensor:
    scale = 448 / x.abs().max()
    return (x * scale).to(torch.float8_e4m3fn).float() / scale


COARSE = {  # relative errors of random numbers
    "int8": (lambda w: _stepped(w, 1, 127), lambda x: _stepped(x, None, 127), 0.013),
    "float8": (_float8, _float8, 0.037),
    "int4": (lambda w: _stepped(w, 1, 7), lambda x: x, 0.12),
}


@pytest.mark.parametrize("name", COARSE)
def test_coarse_arithmetic(name: str) -> None:
    """Eight bits are close, four are not."""
    round_weight, round_input, error = COARSE[name]
    linear, x = nn.Linear(400, 300), _random(2, 400).float()
    nn.init.normal_(linear.weight)
    output = F.linear(round_input(x), round_weight(linear.weight.detach()), linear.bias)
    comparison = _comparison(LinearLayer(linear, ""), x, output.detach())
    assert comparison.error == pytest.approx(error, rel=0.25)
    assert not comparison.equal
    assert comparison.close == (name != "int4")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite(value: float) -> None:
    linear, x = nn.Linear(7, 5), _random(2, 7).float()
    output = linear(x).detach()
    output[1, 2] = value
    assert not _comparison(LinearLayer(linear, ""), x, output).close


def test_one_entry_of_a_thousand() -> None:
    """The mean error is small then; the largest is not."""
    linear, x = nn.Linear(20, 1000), _random(2, 20).float()
    output = linear(x).detach()
    output[:, 500] *= -1
    comparison = _comparison(LinearLayer(linear, ""), x, output)
    assert comparison.error < 0.1
    assert not comparison.close
