"""New heads on stored features, and scikit-learn beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import head
import pytest
import torch
from config import parse
from data import Dataset
from sklearn.linear_model import LogisticRegression
from work import planned

from sylvinit.datasets import Samples


def three_classes(count: int, seed: int) -> Samples:
    """Features of three classes that a linear classifier tells apart, as images of one pixel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = 3 * torch.eye(3, 8)
    features = centres[labels] + torch.randn(count, 8, generator=generator)
    return Samples(features[:, :, None, None], labels)


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    stored = Dataset(three_classes(60, 0), three_classes(300, 1))
    monkeypatch.setattr(head, "find_checkpoint", lambda name: Path(str(name)))
    monkeypatch.setattr(head, "_features", lambda checkpoint, dataset: stored)
    return stored


def record_of(initialiser: str, settings: dict[str, Any], split: str = "test") -> dict[str, Any]:
    content = {
        "title": "Heads",
        "paper": "none",
        "runner": "head",
        "dataset": "cifar10",
        "split": split,
        "network": "resnet20",
        "checkpoint": "none.pt",
        "cells": [{"shots": 10}],
        "arms": {"arm": {"initialiser": initialiser, "settings": settings}},
        "seeds": [4],
    }
    (run,) = planned([parse("heads", content)])
    return head.run_head(run)


@pytest.mark.parametrize(
    ("initialiser", "settings"),
    [
        ("sylvinit-head", {}),
        ("sylvinit-head", {"head_code": "logistic"}),
        ("sylvinit-head", {"head_code": {"code": "logistic", "strength": 3.0, "steps": 5}}),
        ("sklearn-logistic", {"standardise": True}),
    ],
)
def test_fitted_heads_classify(
    initialiser: str, settings: dict[str, Any], features: Dataset
) -> None:
    for split in ("test", "validation"):
        record = record_of(initialiser, settings, split)
        # Bayes' classifier of these centres, at distance 3 sqrt(2), is right in 96 %.
        assert record["accuracy_before"] > 85
        assert record["init_seconds"] > 0


def test_random_heads_do_not(features: Dataset) -> None:
    found = [record_of(name, {})["accuracy_before"] for name in ("he-normal", "xavier-uniform")]
    assert max(found) < 85


def test_scikit_learn_gets_the_features_as_they_are(features: Dataset) -> None:
    drawn = head.data.draw(features, 10, 4).train
    expected = LogisticRegression(max_iter=1000).fit(drawn.inputs.flatten(1), drawn.labels)
    score = expected.score(features.test.inputs.flatten(1), features.test.labels)
    assert record_of("sklearn-logistic", {})["accuracy_before"] == pytest.approx(100 * score)
