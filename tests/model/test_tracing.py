"""Which layers are followed by a rectifier, on networks of many forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.networks import resnet20
from sylvinit.model.tracing import _CLAMPS, _RECTIFIERS


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
    model = model.to(x.dtype)
    report = sylvinit.initialize_(model, x, code=None, preset="frozen", dry_run=True)
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
# Rectifiers that are put together from other functions are not seen.
MISSED = [
    lambda x: torch.maximum(x, torch.zeros_like(x)),
    lambda x: torch.where(x > 0, x, 0),
    lambda x: x * torch.sigmoid(x),
    lambda x: x * (x > 0),
]
# With the parameters that they usually have; random slopes as they are without training.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "rrelu": F.rrelu,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "clamp": lambda x: torch.clamp(x, min=0),
    "clip": lambda x: torch.clip(x, min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
}


def slopes(f: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Mean slopes of f over [-6, -3] and over [3, 6]."""
    at = f(torch.tensor([-6.0, -3.0, 3.0, 6.0], dtype=torch.float64))
    return float(at[1] - at[0]) / 3, float(at[3] - at[2]) / 3


def is_rectifier(f: Callable[[Tensor], Tensor]) -> bool:
    """Slope about 1 on the right, at most a third as large on the left, f(s) - f(-s) increasing."""
    left, right = slopes(f)
    s = torch.linspace(0, 6, 1201, dtype=torch.float64)
    rising = bool(((f(s) - f(-s)).diff() > 0).all())
    return abs(right - 1) < 0.1 and abs(left) <= right / 3 and rising


@pytest.mark.parametrize("name", sorted(_RECTIFIERS | _CLAMPS))
def test_every_listed_function_is_a_rectifier(name: str) -> None:
    assert is_rectifier(FUNCTIONS[name])
    assert pairs(Two(FUNCTIONS[name]), torch.randn(20, 6, dtype=torch.float64)) == ["a"]


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "hardtanh", "hardsigmoid"])
def test_functions_that_end_the_search_are_none(name: str) -> None:
    assert not is_rectifier(getattr(F, name))
    assert not is_rectifier(lambda s: s)


def test_what_the_documentation_says_of_f_of_s_minus_f_of_minus_s() -> None:
    s = torch.linspace(0.1, 5.9, 59, dtype=torch.float64)
    ratio = {name: (f(s) - f(-s)) / s for name, f in FUNCTIONS.items()}
    for name in ("relu", "relu6", "gelu", "silu", "hardswish", "softplus", "threshold"):
        torch.testing.assert_close(ratio[name], torch.ones_like(s), rtol=0, atol=1e-14)
    for name in ("leaky_relu", "rrelu", "prelu"):
        torch.testing.assert_close(ratio[name], ratio[name][:1].expand(59), rtol=0, atol=1e-14)
        assert float(ratio[name][0]) > 1
    for name in ("elu", "celu", "selu", "mish"):
        assert float(ratio[name].max() - ratio[name].min()) > 0.1


@pytest.mark.parametrize("between", MISSED)
def test_missed(between: Callable[[Tensor], Tensor]) -> None:
    assert is_rectifier(between)
    assert pairs(Two(between), torch.randn(20, 6)) == []


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
