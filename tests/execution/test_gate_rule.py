"""Preset "auto" where no head is solved from labels: a rule decides."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from driver_helpers import assert_identical, initialized, mlp, weights_of
from gate_helpers import Normalized, auto, chosen, noisy_classes
from torch import Tensor, nn

import sylvinit


class OwnNorm(nn.Module):
    """As a library defines its own, with a scale."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x / x.square().mean(dim=1, keepdim=True).sqrt()


class ConvNormActivation(nn.Sequential):
    """A block, named after what is inside."""


def blocks(norm: type[nn.Module] | None, *, window: int = 3) -> nn.Module:
    middle = [] if norm is None else [norm(6) if norm is nn.BatchNorm2d else norm(2, 6)]
    first = nn.Conv2d(3, 6, window, padding=window // 2)
    return nn.Sequential(
        first, *middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None])
def test_without_labels_networks_of_convolutions_are_initialized(norm: Any) -> None:
    torch.manual_seed(0)
    model, x = blocks(norm), torch.randn(20, 3, 8, 8)
    expected = initialized(copy.deepcopy(model), x, preset="best")
    report = auto(model, x)
    assert report.candidates == []
    assert_identical(weights_of(model), expected)


@pytest.mark.parametrize(
    "model",
    [blocks(nn.GroupNorm), blocks(nn.BatchNorm2d, window=1), blocks(OwnNorm), mlp()],
    ids=["group norm", "no windows", "a norm of its own", "dense"],
)
def test_without_labels_others_keep_their_own_start(model: nn.Module) -> None:
    x = torch.randn(20, 3, 8, 8) if isinstance(model[0], nn.Conv2d) else None
    x = torch.randn(20, model[0].in_features) if x is None else x
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.warns(sylvinit.SylvinitWarning, match="preset='best'") as caught:
        report = sylvinit.initialize_(model, x)
    assert len(caught) == 1
    assert not report.solved
    assert report.head is None
    assert_identical(dict(model.state_dict()), before)


def test_blocks_named_after_a_norm_and_parametrizations_are_none() -> None:
    torch.manual_seed(0)
    model = ConvNormActivation(*blocks(nn.BatchNorm2d))
    model[0] = nn.utils.parametrizations.weight_norm(model[0])
    assert auto(model, torch.randn(20, 3, 8, 8)).solved


@pytest.mark.parametrize("case", ["code", "frozen", "one class"])
def test_a_head_that_no_labels_are_scored_with(case: str) -> None:
    """The own body is kept; the head is solved where it can be."""
    torch.manual_seed(0)
    data, model = noisy_classes(loud="signal"), Normalized()
    options: dict[str, Any] = {"head_code": "pca"} if case == "code" else {}
    if case == "frozen":
        model.head.weight.requires_grad_(False)
    labels = torch.zeros_like(data[1]) if case == "one class" else data[1]
    body = model.body.weight.clone()
    report = auto(model, (data[0], labels), **options)
    assert torch.equal(model.body.weight, body)
    assert (report["head"].status == "solved") == (case != "frozen")
    assert any("no start can be compared" in text for text in report.warnings)
    if case == "one class":
        assert chosen(report) == "own"
        assert "start: own, by a rule" in str(report)


def test_a_network_that_is_a_head_alone_has_nothing_to_choose() -> None:
    model, data = nn.Sequential(nn.Linear(12, 4)), noisy_classes(loud="signal")
    report = auto(model, data)
    assert report.candidates == []
    assert report["0"].status == "solved"
