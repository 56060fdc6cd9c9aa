"""Convolutions that override forward, and those of timm that pad by the size of their input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from driver_helpers import CLASSES, assert_close, images, weights_of
from torch import Tensor, nn

import sylvinit

# Products and sums in another order, float64, amplified by two layers.
SUMS = 1e-9


X, Y = images(30, dtype=torch.float64)  # (30, 3, 6, 6)


def _unfolded(self: nn.Conv2d, x: Tensor) -> Tensor:
    side = x.shape[-1] + 2 * self.padding[0] - 2
    patches = F.unfold(x, 3, padding=self.padding)
    y = self.weight.flatten(1) @ patches + self.bias[:, None]
    return y.unflatten(2, (side, side))


CONVOLUTIONS: dict[str, tuple[type, Callable[..., Any], dict[str, Any]]] = {
    "unfolded": (nn.Conv2d, _unfolded, {"padding": 1}),
    "groups": (nn.Conv2d, lambda self, x: nn.Conv2d.forward(self, x), {"groups": 2, "stride": 2}),
    "inner": (nn.Conv2d, lambda self, x: self._conv_forward(x, self.weight, self.bias), {}),
    "transposed": (
        nn.ConvTranspose2d,
        lambda self, x: nn.ConvTranspose2d.forward(self, x),
        {"stride": 2, "groups": 2},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    base, forward, settings = CONVOLUTIONS[name]

    def build(kind: type) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), kind(4, 6, 3, **settings), nn.ReLU()]
            pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)]
            return nn.Sequential(*layers, *pool).double()

    models = [build(base), build(type("Own", (base,), {"forward": forward}))]
    for model in models:
        assert len(sylvinit.initialize_(model, (X, Y), preset="best").solved) == 3
    assert_close(*map(weights_of, models), SUMS)


@pytest.mark.parametrize(
    ("size", "settings"),
    [(6, {"stride": 2}), (5, {"stride": 2}), (6, {"dilation": 2}), (7, {"stride": 3, "groups": 2})],
)
def test_padding_by_the_size_of_the_input(size: int, settings: dict[str, Any]) -> None:
    """Beside a model that pads by itself, as TensorFlow does, and a convolution without padding."""
    stride, dilation = settings.get("stride", 1), settings.get("dilation", 1)
    outputs = math.ceil(size / stride)
    missing = max((outputs - 1) * stride + 2 * dilation + 1 - size, 0)
    sides = (missing // 2, missing - missing // 2) * 2

    class Same(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, sides))

    def build(*layers: nn.Module) -> nn.Sequential:
        front = [nn.Conv2d(3, 4, 1), nn.ReLU(), *layers]
        model = nn.Sequential(*front, nn.Flatten(), nn.Linear(6 * outputs**2, CLASSES)).double()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            for parameter in model.parameters():
                nn.init.normal_(parameter)
        return model

    x, y = images(30, dtype=torch.float64, size=size)
    own = build(Same(4, 6, 3, **settings), nn.Identity())
    explicit = build(nn.ZeroPad2d(sides), nn.Conv2d(4, 6, 3, **settings))
    # Random patches are drawn by the layers' names, which differ: all of them are taken.
    for model in (own, explicit):
        assert len(sylvinit.initialize_(model, (x, y), preset="best", patches="all").solved) == 3
    for mine, others in zip(own.parameters(), explicit.parameters(), strict=True):
        torch.testing.assert_close(mine, others, rtol=SUMS, atol=SUMS)


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "lcnet_050", "tf_mobilenetv3_small_minimal_100"]
)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES)
    report = sylvinit.initialize_(model, images(12, size=32), preset="best")
    assert report.head == "classifier"
    assert report["classifier"].status == "solved"
    assert "skipped" not in {layer.status for layer in report.layers}
