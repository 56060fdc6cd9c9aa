"""Which layers are followed by a rectifier, on networks of many forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.networks import resnet20


class Two(nn.Module):
    """A layer, a function, and another layer."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def pairs(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the layers that would have pairs."""
    report = sylvinit.initialize_(model, x, code=None, preset="best", dry_run=True)
    return [layer.name for layer in report.layers if layer.code.endswith("-pairs")]


norm = nn.BatchNorm1d(4)
RECTIFIED = [
    F.relu,
    nn.ReLU(inplace=True),
    nn.GELU(),
    F.silu,
    F.softplus,
    nn.PReLU(),
    torch.relu,
    lambda x: x.relu(),
    lambda x: torch.clamp(x, min=0),
    lambda x: x.clamp_min(0),
    lambda x: F.relu(norm(x)),
    lambda x: F.dropout(x, 0.5, training=False).unsqueeze(0).relu()[0],
    lambda x: torch.cat((x[:, :2], x[:, 2:]), dim=1).add(1).relu_(),
    lambda x: torch.stack(torch.split(x, 2, dim=1), dim=1).relu().flatten(1),
    lambda x: x * (x.relu() + x),
]
OTHERS = [
    torch.tanh,
    nn.Sigmoid(),
    nn.Identity(),
    lambda x: x.clamp(min=-1),
    lambda x: F.relu(torch.tanh(x)),
    lambda x: F.relu(F.linear(x, torch.eye(4))),
    lambda x: F.relu(x @ torch.eye(4)),
    lambda x: torch.softmax(x, dim=1),
    lambda x: x * torch.ones_like(x).relu(),
]


@pytest.mark.parametrize("between", RECTIFIED)
def test_rectified(between: Callable[[Tensor], Tensor]) -> None:
    assert pairs(Two(between), torch.randn(20, 6)) == ["a"]


@pytest.mark.parametrize("between", OTHERS)
def test_not_rectified(between: Callable[[Tensor], Tensor]) -> None:
    assert pairs(Two(between), torch.randn(20, 6)) == []


def test_residual_network() -> None:
    """Both layers of a branch: the sum with the shortcut is rectified."""
    model = resnet20(widths=(4, 4, 4))
    names = pairs(model, torch.randn(8, 3, 8, 8))
    assert len(names) == 19
    assert "fc" not in names


def test_transformer() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(24, 2))
    assert pairs(model, torch.randn(8, 3, 8)) == ["0.linear1"]


def test_branches_and_a_module_called_twice() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.c = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            return self.c(self.a(a.relu()) + b)

    assert pairs(Net(), torch.randn(20, 6)) == ["a"]
