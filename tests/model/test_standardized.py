"""Weight-standardized layers: solved among the weights that they can have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from driver_helpers import CLASSES, images, unchanged
from torch import Tensor, nn

import sylvinit
from sylvinit.model import ConvLayer, StandardizedLayer, gains_of

X, Y = images(30, dtype=torch.float64)
X = X + 3  # a constant part, which standardized weights do not see


class Standardized(nn.Conv2d):
    """Scaled weight standardization (Brock, De and Smith 2021), with or without a gain."""

    def __init__(self, *sizes: int, scaled: bool = True, unbiased: bool = False, **settings: Any):
        super().__init__(*sizes, **settings)
        self.unbiased = unbiased
        shape = (self.out_channels, 1, 1, 1)
        self.strength = nn.Parameter(torch.ones(shape)) if scaled else None

    def effective(self) -> Tensor:
        axes = (1, 2, 3)
        deviation = self.weight.std(dim=axes, unbiased=self.unbiased, keepdim=True) + 1e-5
        weight = 0.6 * (self.weight - self.weight.mean(dim=axes, keepdim=True)) / deviation
        return weight if self.strength is None else weight * self.strength

    def forward(self, x: Tensor) -> Tensor:
        rest = self.stride, self.padding, self.dilation, self.groups
        return F.conv2d(x, self.effective(), self.bias, *rest)


def network(**settings: Any) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        conv = Standardized(3, 6, 3, **settings)
        side = (6 + 2 * conv.padding[0] - 3) // conv.stride[0] + 1
        head = nn.Linear(6 * side**2, CLASSES)
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head).double()


SETTINGS = [
    {},
    {"bias": False},
    {"unbiased": True, "groups": 3},
    {"stride": 2, "padding": 1},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("samples", [30, 2])  # with fewer patches than features, too
def test_scaled_layers_have_outputs_of_unit_variance(
    settings: dict[str, Any], samples: int
) -> None:
    """Against the outputs themselves; 1e-3 for what the layer adds to a deviation of about 0.1."""
    model, x = network(**settings), X[:samples]
    written = [f"0.{name}" for name, _ in model[0].named_parameters()]
    with unchanged(model, written=(*written, "3.weight", "3.bias")):
        report = sylvinit.initialize_(model, (x, Y[:samples]), preset="best", patches="all")
    assert report["0"].status == "solved"
    assert any("standardizes its weight" in note for note in report["0"].notes)
    rows = model[0].effective().detach().flatten(1)
    assert float(rows.sum(dim=1).abs().max()) <= 1e-12 * float(rows.abs().sum(dim=1).max())
    y = model[0](x).detach().movedim(1, 0).flatten(1)
    torch.testing.assert_close(
        y.var(dim=1, correction=0), torch.ones(6).double(), rtol=1e-3, atol=0
    )
    if settings.get("bias") is not False:
        assert float(y.mean(dim=1).abs().max()) <= 1e-3


def test_the_weight_is_that_of_centered_patches() -> None:
    """Of an ordinary layer on patches from which their means were taken: the same weight."""
    model = network(bias=False)
    sylvinit.initialize_(model, (X, Y), patches="all", include="0", rescale="none")
    patches = F.unfold(X, 3).mT.flatten(0, 1)
    patches = patches - patches.mean(dim=1, keepdim=True)
    plain = nn.Sequential(nn.Linear(27, 6, bias=False), nn.Linear(6, CLASSES)).double()
    sylvinit.initialize_(plain, patches, patches="all", include="0", rescale="none")
    # The deviation of the weight, about 0.1, has 1e-5 added to it.
    weight = model[0].effective().flatten(1)
    torch.testing.assert_close(weight, plain[0].weight, rtol=1e-3, atol=1e-4)


def test_without_a_gain_rows_keep_the_norm_of_the_layer() -> None:
    model = network(scaled=False)
    size = float(model[0].weight.detach().std())
    report = sylvinit.initialize_(model, (X, Y), preset="best", patches="all")
    assert report["0"].status == "solved"
    rms = model[0].effective().square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.full((6,), 0.6).double(), rtol=1e-3, atol=0)
    # Outputs are centered by the bias, and the raw weight is as large as it was.
    assert float(model[0](X).detach().mean(dim=(0, 2, 3)).abs().max()) <= 1e-3
    assert float(model[0].weight.detach().std()) == pytest.approx(size, rel=0.05)
    scaled = network()
    sylvinit.initialize_(scaled, (X, Y), preset="best", patches="all")
    directions = (F.normalize(m[0].effective().flatten(1)) for m in (model, scaled))
    torch.testing.assert_close(*directions, rtol=0, atol=1e-9)


def test_a_frozen_gain_is_a_frozen_layer() -> None:
    model = network()
    model[0].strength.requires_grad_(False)
    with unchanged(model, written=("3.weight", "3.bias")):
        report = sylvinit.initialize_(model, (X, Y), preset="best")
    assert "frozen" in report["0"].reason


def test_what_is_written_is_what_is_read() -> None:
    conv = Standardized(4, 6, 3, groups=2).double()
    plain = ConvLayer(conv, "conv")
    assert gains_of(plain) == ["strength"]
    layer = StandardizedLayer(plain, "strength", norm=0.6)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, 18, generator=generator, dtype=torch.float64)
    weight = weight - weight.mean(dim=2, keepdim=True)
    weight[1, 2] = 0  # an absent class
    with torch.no_grad():
        layer.set_weight(weight)
    torch.testing.assert_close(layer.get_weight(), weight, rtol=1e-12, atol=1e-12)
    effective = conv.effective().reshape(weight.shape)
    torch.testing.assert_close(effective, weight, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("name", ["StdConv2d", "ScaledStdConv2d"])
@pytest.mark.parametrize("same", [False, True])
def test_layers_of_timm(name: str, same: bool) -> None:
    layers = pytest.importorskip("timm.layers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        conv = getattr(layers, f"{name}Same" if same else name)(3, 8, 3, stride=2, bias=True)
        model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(72, CLASSES)).double()
    report = sylvinit.initialize_(model, (X, Y), preset="best", patches="all")
    assert [layer.name for layer in report.solved] == ["0", "3"]
    y = conv(X).detach().movedim(1, 0).flatten(1)
    assert float(y.mean(dim=1).abs().max()) <= 1e-2 * float(y.std())
    if name == "ScaledStdConv2d":
        one = torch.ones(8).double()
        torch.testing.assert_close(y.var(dim=1, correction=0), one, rtol=1e-3, atol=0)
