"""Warnings about the data and the layers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from driver_helpers import CLASSES, mlp
from torch import nn

import sylvinit


def warned(model: nn.Module, data: Any, **options: Any) -> tuple[sylvinit.Report, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = sylvinit.initialize_(model, data, **{"preset": "best", **options})
    ours = [item for item in caught if issubclass(item.category, sylvinit.SylvinitWarning)]
    assert {item.filename for item in ours} <= {__file__}  # points at the caller
    texts = [str(item.message) for item in ours]
    assert texts == report.warnings
    return report, texts


ENOUGH = torch.randn(60, 12, generator=torch.Generator().manual_seed(1)).double()


LABELS = torch.arange(60) % CLASSES


def test_no_warning_without_a_cause() -> None:
    assert warned(mlp().double(), (ENOUGH, LABELS))[1] == []


def test_dead_inputs() -> None:
    x = ENOUGH.clone()
    x[:, 3:5] = 0.7
    report, texts = warned(mlp().double(), (x, LABELS))
    assert any(text.startswith("dead inputs: 0 (2 of 12 never vary); ") for text in texts)
    assert report["0"].status == "solved"


def test_rank_below_outputs() -> None:
    x = ENOUGH[:, :5] @ ENOUGH[:5]
    report, texts = warned(mlp().double(), (x, LABELS))
    assert any(text.startswith("rank < d_out: 0 (rank 5, 8 outputs); ") for text in texts)
    assert report["0"].filled == 3


def test_fewer_patches_than_inputs() -> None:
    _, texts = warned(mlp().double(), (ENOUGH[:9], LABELS[:9]))
    assert any(text.startswith("fewer rows than features: 0 (9 for 12); ") for text in texts)


def test_near_singular_equation() -> None:
    x = ENOUGH[:, :3] @ ENOUGH[:3]  # of rank 3, and with it A (5 x 5) and B (12 x 12)
    report, texts = warned(nn.Linear(12, 5).double(), x, code="kmeans")
    dropped = (5 - 3) * (12 - 3)
    start = f"near-singular equation: (model) ({dropped} pairs dropped); "
    assert any(text.startswith(start) for text in texts)
    assert any(f"{dropped} near-singular pairs" in note for note in report.layers[0].notes)


def test_labels_that_nothing_uses() -> None:
    message = "labels were given but no code used them"
    assert warned(mlp().double(), (ENOUGH, LABELS), head_code="pca")[1] == [message]
    assert message not in warned(mlp().double(), (ENOUGH, LABELS))[1]
    targets = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))  # of a regression
    assert warned(mlp().double(), (ENOUGH, targets), head_code="pca")[1] == [message]


def test_labels_of_a_head_that_is_left_out_are_no_surprise() -> None:
    assert warned(mlp().double(), (ENOUGH, LABELS), include="0")[1] == []
    assert warned(mlp().double(), (ENOUGH, LABELS), exclude="4")[1] == []


def test_without_labels_the_head_is_not_one_hot() -> None:
    report, texts = warned(mlp().double(), ENOUGH)
    assert texts == ["the head 4 is solved with code 'pca' and without labels: data has no labels"]
    assert report["4"].code == "pca"


def test_many_layers_make_one_warning() -> None:
    layers = [nn.Linear(12, 12) for _ in range(6)]
    model = nn.Sequential(*layers, nn.Linear(12, CLASSES)).double()
    _, texts = warned(model, (ENOUGH[:9], LABELS[:9]))
    assert len([text for text in texts if text.startswith("fewer rows")]) == 1
    assert "and 4 more" in next(text for text in texts if text.startswith("fewer rows"))
