"""Preset "auto" by numbers, several labels, label maps and classes that are not there."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from driver_helpers import assert_identical
from gate_helpers import Fixed, auto, chosen, noisy_classes
from torch import Tensor, nn

import sylvinit


def test_numbers_and_several_labels_at_once() -> None:
    data, model = noisy_classes(loud="noise"), Fixed(reads_signal=True)
    several = torch.eye(4)[data[1]]
    report = auto(model, (data[0], several))
    assert chosen(report) == "own"
    assert math.isnan(report.candidates[0].accuracy)
    data, model = noisy_classes(loud="signal"), Fixed(reads_signal=False)
    numbers = torch.randn(4, 4)[data[1]] * 100
    assert chosen(auto(model, (data[0], numbers))) == "best"


@pytest.mark.parametrize(("size", "least"), [(1e-3, True), (3.0, False), (100.0, False)])
def test_a_head_of_numbers_is_left_part_of_its_way(size: float, least: bool) -> None:
    """Behind its own body; not by initialize_head_, with a code of one's own, or for 0 and 1."""
    data, model = noisy_classes(loud="noise"), Fixed(reads_signal=True)
    with torch.no_grad():
        model.head.weight.mul_(size)
    x, y = data[0], torch.randn(4, 4)[data[1]] * 5 + 70
    y[:, 3] = (data[1] == 2).float()
    own = model(x)[:, :3].detach().double()
    whole, asked, found = (copy.deepcopy(model) for _ in range(3))
    sylvinit.initialize_head_(whole, (x, y), progress=False)
    assert chosen(auto(asked, (x, y), head_code="targets")) == "own"
    assert_identical(dict(asked.state_dict()), dict(whole.state_dict()))
    report = auto(found, (x, y))
    assert chosen(report) == "own"
    solved, mean, unit = (
        z[:, :3].detach().double() for z in (whole(x), y.mean(0)[None], y.std(0)[None])
    )
    ratio = ((own / unit).var(0).sum() / (solved / unit).var(0).sum()) ** 0.25
    factor = min(1.0, max(1 / 3, float(ratio)))
    assert (factor == 1 / 3) == least
    # Rounding of float32 outputs near 70.
    torch.testing.assert_close(
        found(x)[:, :3].double(), mean + factor * (solved - mean), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(found(x)[:, 3], whole(x)[:, 3])
    part = [note for note in report["head"].notes if "of the solution" in note]
    assert part == ([] if factor == 1 else [part[0]])
    assert factor == 1 or f"{factor:.2f} of the solution" in part[0]


@pytest.mark.parametrize("bias", ["none", "frozen"])
def test_without_a_bias_all_of_the_head_is_written(bias: str) -> None:
    """Its weight carries the mean of the targets, too."""
    data, model = noisy_classes(loud="noise"), Fixed(reads_signal=True)
    model.head = nn.Linear(4, 1, bias=bias == "frozen").requires_grad_(True)
    if bias == "frozen":
        model.head.bias.requires_grad_(False)
    y = data[1][:, None].float() + 70
    whole, found = copy.deepcopy(model), copy.deepcopy(model)
    sylvinit.initialize_head_(whole, (data[0], y), progress=False)
    assert chosen(auto(found, (data[0], y))) == "own"
    assert_identical(dict(found.state_dict()), dict(whole.state_dict()))


def test_targets_that_never_vary_do_not_count() -> None:
    data, model = noisy_classes(loud="noise"), Fixed(reads_signal=True)
    alone, model.head = copy.deepcopy(model), nn.Linear(4, 5)
    with torch.no_grad():
        model.head.weight[:4] = alone.head.weight
        model.head.weight[4].fill_(1000.0)
    y = 300 * torch.randn(4, 4)[data[1]]
    for net, targets in ((alone, y), (model, torch.cat((y, torch.full((200, 1), 7.0)), dim=1))):
        assert chosen(auto(net, (data[0], targets))) == "own"
    own = alone.head.weight
    torch.testing.assert_close(model.head.weight[:4], own, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(data[0])[:, 4], torch.full((200,), 7.0))


class Maps(nn.Module):
    """A class for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


def test_label_maps_are_scored_by_samples() -> None:
    """Noise of its own in every image names the image, and with it the labels of its pixels."""
    torch.manual_seed(0)
    names = torch.randn(40, 3, 1, 1).expand(40, 3, 6, 6)
    labels = torch.randint(0, 2, (40, 1, 1)).expand(40, 6, 6).clone()
    labels[:, 0] = -100
    report = auto(Maps(), (names + 0.01 * torch.randn(40, 3, 6, 6), labels))
    # Folds of pixels would see the other pixels of the image: errors of about 0.1.
    assert all(candidate.error > 0.8 for candidate in report.candidates)


def test_only_classes_that_there_are_count() -> None:
    """A vocabulary of labels costs no columns of its own."""
    data, model = noisy_classes(loud="signal"), Fixed(reads_signal=False)
    model.head = nn.Linear(4, 5000)
    few = auto(copy.deepcopy(model), data).candidates
    many = auto(model, (data[0], data[1] * 1200)).candidates
    assert [x.error for x in few] == pytest.approx([x.error for x in many])
    assert all(x.spread > 1 for x in few)
