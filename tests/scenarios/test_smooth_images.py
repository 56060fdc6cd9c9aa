"""Images of which a layer sees directions of next to no variance: no weights in the thousands."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sylvinit
from sylvinit.solve import scaling


class Scaled(nn.Module):
    """x + gamma f(x) or, without the sum, what a branch with a layer scale gives."""

    def __init__(self, body: nn.Module, gamma: float, shortcut: bool) -> None:
        super().__init__()
        self.body, self.gamma, self.shortcut = body, gamma, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.body(x) + (x if self.shortcut else 0)


def smooth(count: int) -> Tensor:
    """Noise of 4 x 4 pixels enlarged to 64 x 64."""
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=64, mode="bicubic")


def stages() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3), nn.GELU()]
    for _ in range(2):
        body = nn.Sequential(nn.Conv2d(32, 96, 1), nn.GELU(), nn.Conv2d(96, 32, 1))
        layers.append(Scaled(body, 1e-5, shortcut=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))


def largest_weight(model: nn.Module, x: Tensor) -> float:
    """After initialization; every output must be finite."""
    labels = torch.arange(len(x)) % 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        sylvinit.initialize_(model, (x, labels), preset="best")
    with torch.no_grad():
        assert bool(model.eval()(x).isfinite().all())
    hidden = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return max(float(layer.weight.detach().abs().max()) for layer in hidden)


@pytest.mark.parametrize("count", [12, 100])
def test_smooth_images(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pixels and features have deviations of 0.3 to 1: rows are no longer than 10 / 0.3. It is 18.
    assert largest_weight(stages(), smooth(count)) < 34
    monkeypatch.setattr(scaling, "DAMPING", 0.0)
    monkeypatch.setattr(scaling, "GROWTH", 1e9)
    assert largest_weight(stages(), smooth(count)) > 1000  # 1190 and 1252


@pytest.mark.parametrize("count", [12, 100])
def test_branches_of_a_tiny_layer_scale(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shortcut around it everything behind a layer scale varies by 1e-5."""

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        branch = Scaled(nn.Conv2d(3, 8, 3), 1e-5, shortcut=False)
        return nn.Sequential(branch, nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(7200, 4))

    x = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    # Rows of the second layer begin at lengths of about 0.6.
    assert largest_weight(model(), x) < 30
    monkeypatch.setattr(scaling, "GROWTH", 1e9)
    assert largest_weight(model(), x) > 1000
