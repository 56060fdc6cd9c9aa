"""Residual branches: which batch normalisations end one, and the scale that they are given."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.networks import resnet20
from sylvinit.errors import OptionError, OptionTypeError


class Block(nn.Module):
    """Two layers with a normalisation each, and what becomes of them and their input."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], short: nn.Module | None = None):
        super().__init__()
        self.a, self.bn1 = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.b, self.bn2 = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.short, self.join = short or nn.Identity(), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.bn2(self.b(F.relu(self.bn1(self.a(x))))), self.short(x))


def projection() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))


def in_place(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return y


JOINED = {
    "sum": lambda y, x: y + x,
    "sum, shortcut first": lambda y, x: x + y,
    "torch.add": torch.add,
    "method": lambda y, x: y.add(x),
    "in place": in_place,
    "rectified": lambda y, x: F.relu_(y.add_(x)),
    "dropout": lambda y, x: F.dropout(y, 0.5, training=False) + x,
    "another layout": lambda y, x: y.view(-1, 6, 1).reshape(-1, 6).contiguous() + x,
    "a shortcut without layers": lambda y, x: y + F.pad(x[:, ::2], (0, 3)),
    "sum of three": lambda y, x: y + x + 1,
}
OTHERS = {
    "rectified before": lambda y, x: F.relu(y) + x,
    "scaled before": lambda y, x: 0.5 * y + x,
    "no sum": lambda y, x: y,
    "a constant": lambda y, x: y + 1,
    "a row": lambda y, x: y + x[:1],
    "a product": lambda y, x: y * x,
    "a difference": lambda y, x: y - x,
    "concatenated": lambda y, x: torch.cat((y, x), dim=1)[:, :6],
    "twice the same": lambda y, x: y + y,
}


def scales(model: nn.Module) -> dict[str, float]:
    """The scales of the normalisations, which have one value each."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert len(module.weight.unique()) == 1
            found[name] = module.weight[0].item()
    return found


def changed(model: nn.Module, x: Tensor, **options: object) -> dict[str, float]:
    """The scales that an initialisation changes, with a gain of 1/4 unless told."""
    before = scales(model)
    sylvinit.initialize_(model, x, code="pca", **{"branch_gain": 0.25, **options})
    return {name: scale for name, scale in scales(model).items() if scale != before[name]}


pytestmark = pytest.mark.filterwarnings("ignore::sylvinit.SylvinitWarning")


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("join", JOINED)
def test_the_normalisation_before_the_sum_ends_the_branch(join: str, projected: bool) -> None:
    block = Block(JOINED[join], projection() if projected else None)
    model = nn.Sequential(block, nn.Linear(6, 3))
    assert changed(model, torch.randn(50, 6)) == {"0.bn2": 0.25}


@pytest.mark.parametrize("join", OTHERS)
def test_what_is_no_branch_that_ends_in_a_normalisation(join: str) -> None:
    model = nn.Sequential(Block(OTHERS[join]), nn.Linear(6, 3))
    assert changed(model, torch.randn(50, 6)) == {}


def test_of_two_ways_of_equal_depth_neither_is_a_branch() -> None:
    model = nn.Sequential(Block(JOINED["sum"], nn.Sequential(projection(), projection())))
    assert changed(model, torch.randn(50, 6)) == {}


def test_the_shortcut_may_be_older_than_the_block() -> None:
    """A stream that blocks add to: the sum is as deep as its deepest branch."""
    model = nn.Sequential(*(Block(JOINED["sum"]) for _ in range(3)), nn.Linear(6, 3))
    assert changed(model, torch.randn(50, 6)) == {f"{i}.bn2": 0.25 for i in range(3)}


def test_depth_is_one_over_the_root_of_the_number_of_branches() -> None:
    model, x = resnet20(), torch.randn(8, 3, 32, 32)
    names = {f"blocks.{i}.bn2" for i in range(9)}
    expected = dict.fromkeys(names, pytest.approx(1 / 3))
    report = sylvinit.initialize_(model, x, branch_gain="depth", max_samples=8)
    assert {k: v for k, v in scales(model).items() if v != 1} == expected
    noted = {layer.name for layer in report.layers if "ends a residual branch" in str(layer.notes)}
    assert noted == names
    assert report["blocks.0.bn2"].notes == ["ends a residual branch: scale 0.333"]
    assert report.settings["branch_gain"] == "depth"
    # As often as one likes.
    sylvinit.initialize_(model, x, branch_gain="depth")
    assert {k: v for k, v in scales(model).items() if v != 1} == expected
    assert changed(model, x, branch_gain="none") == {}


def test_weights_are_those_for_scales_that_were_there_before() -> None:
    """Layers behind a branch see the inputs that its gain causes."""
    x = torch.randn(60, 6)
    torch.manual_seed(0)
    first = nn.Sequential(*(Block(JOINED["sum"]) for _ in range(2)), nn.Linear(6, 3))
    second = copy.deepcopy(first)
    for block in (second[0], second[1]):
        nn.init.constant_(block.bn2.weight, 0.25)
    sylvinit.initialize_(first, x, branch_gain=0.25)
    sylvinit.initialize_(second, x, branch_gain="none")
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ways_of_running(storage: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(Block(JOINED["sum"]), nn.Linear(6, 3)).to(dtype)
    x = torch.randn(40, 6).to(dtype)
    assert changed(model, x, storage=storage, microbatch=16) == {"0.bn2": 0.25}


LEFT_ALONE = {
    "not selected": {"exclude": "*bn2"},
    "not calibrated": {"calibrate_norm": False},
    "dry run": {"dry_run": True},
    "the paper's": {"branch_gain": None, "preset": "paper"},
}


@pytest.mark.parametrize("case", [*LEFT_ALONE, "frozen", "no scale"])
def test_scales_that_are_left_alone(case: str) -> None:
    model = nn.Sequential(Block(JOINED["sum"]), nn.Linear(6, 3))
    if case == "frozen":
        model[0].bn2.weight.requires_grad_(False)
    if case == "no scale":
        model[0].bn2 = nn.BatchNorm1d(6, affine=False)
        sylvinit.initialize_(model, torch.randn(50, 6), branch_gain=0.25)
        return
    assert changed(model, torch.randn(50, 6), **LEFT_ALONE.get(case, {})) == {}


def test_a_failed_call_puts_scales_back() -> None:
    model = nn.Sequential(Block(JOINED["sum"]), nn.Linear(6, 3))
    nn.init.constant_(model[0].bn2.weight, 0.7)
    before = copy.deepcopy(model.state_dict())

    class Broken(sylvinit.codes.PCA):
        def fit(self, stats: object, k: int, seed: int) -> sylvinit.codes.Latent:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        sylvinit.initialize_(model, torch.randn(50, 6), code={"1": Broken()}, branch_gain=0.25)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("gain", ["half", float("nan"), float("inf")])
def test_gains_out_of_their_domain(gain: object) -> None:
    with pytest.raises(OptionError, match="branch_gain must be a finite number, 'depth'"):
        sylvinit.initialize_(nn.Linear(2, 2), torch.randn(4, 2), branch_gain=gain)


def test_gains_of_the_wrong_type() -> None:
    with pytest.raises(OptionTypeError, match="branch_gain must be a finite number"):
        sylvinit.initialize_(nn.Linear(2, 2), torch.randn(4, 2), branch_gain=[1.0])
