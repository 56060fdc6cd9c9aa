"""New heads on stored features, and scikit-learn beside them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import head
import pytest
import torch
from config import parse
from data import Dataset
from pretrained import without_head
from sklearn.linear_model import LogisticRegression
from work import planned

from sylvinit.demo.networks import resnet20
from sylvinit.io.datasets import Samples


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
    # "Mirror images" whose features are three times as long.
    longer = Dataset(*(Samples(3 * part.inputs, part.labels) for part in stored))
    both = {False: stored, True: longer}
    monkeypatch.setattr(
        head, "_features", lambda checkpoint, dataset, mirrored, grid: both[mirrored]
    )
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
        ("sylvinit-head", {"head_code": "logistic", "views": "rows"}),
        ("sylvinit-head", {"views": "mean"}),
        ("sklearn-logistic", {"standardise": True}),
        ("sklearn-logistic", {"views": "rows"}),
        ("sklearn-logistic", {"C": 0.1}),
        ("sklearn-logistic", {"C": "cv"}),
        ("sklearn-lda", {}),
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
    inputs, labels = drawn.inputs.flatten(1).numpy(), drawn.labels.numpy()
    found: list[float] = []
    for settings in ({}, {"C": 0.01}):
        fitted = LogisticRegression(max_iter=1000, **settings)
        fitted.fit(inputs, labels)
        test = features.test.inputs.flatten(1).numpy()
        found.append(float(fitted.score(test, features.test.labels.numpy())))
        record = record_of("sklearn-logistic", settings)
        assert record["accuracy_before"] == pytest.approx(100 * found[-1])
    assert found[0] != found[1]


def test_features_of_a_grid_are_means_of_parts_of_the_map() -> None:
    torch.manual_seed(0)
    model = resnet20(num_classes=5, widths=(4, 6, 8), blocks=1).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        last = model.blocks(torch.relu(model.bn1(model.conv1(images))))
        quarters = without_head(copy.deepcopy(model), 2)(images)
        whole = without_head(copy.deepcopy(model))(images)
    rows, columns = (slice(0, 2), slice(2, 4)), (slice(0, 2), slice(2, 4))
    parts = [last[:, :, row, column].mean(dim=(2, 3)) for row in rows for column in columns]
    torch.testing.assert_close(quarters, torch.stack(parts, dim=2).flatten(1))
    torch.testing.assert_close(whole, last.mean(dim=(2, 3)))


def test_views_are_two_samples_of_an_image_or_one(
    features: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Samples] = []
    fit = head._fit
    monkeypatch.setattr(head, "_fit", lambda arm, x, *rest: seen.append(x) or fit(arm, x, *rest))
    for settings in ({}, {"views": "rows"}, {"views": "mean"}):
        record_of("sylvinit-head", settings)
    plain, rows, mean = seen
    assert torch.equal(rows.inputs, torch.cat((plain.inputs, 3 * plain.inputs)))
    assert torch.equal(rows.labels, torch.cat((plain.labels, plain.labels)))
    assert torch.equal(mean.inputs, 2 * plain.inputs)
    assert torch.equal(mean.labels, plain.labels)


def test_shrinkage_is_that_of_ledoit_and_wolf(features: Dataset) -> None:
    drawn = head.data.draw(features, 10, 4).train
    x, y = drawn.inputs.flatten(1).double(), drawn.labels
    means = torch.stack([x[y == label].mean(dim=0) for label in range(3)])
    # Each class by itself, averaged, in units of the standard deviations: as scikit-learn does it.
    covariance = sum(_shrunk(x[y == label]) * len(x[y == label]) / len(x) for label in range(3))
    weight = torch.linalg.solve(covariance, means.mT).mT
    bias = -(means * weight).sum(dim=1) / 2 + (y.bincount() / len(y)).log()
    scores = features.test.inputs.flatten(1).double() @ weight.mT + bias
    accuracy = 100 * float((scores.argmax(dim=1) == features.test.labels).double().mean())
    assert record_of("sklearn-lda", {})["accuracy_before"] == pytest.approx(accuracy, abs=0.4)


def _shrunk(x: torch.Tensor) -> torch.Tensor:
    """Ledoit and Wolf (2004), lemmas 3.2 to 3.4, of rows in units of their standard deviations."""
    scale = x.std(dim=0, correction=0)
    z = (x - x.mean(dim=0)) / scale
    n, d = z.shape
    s = z.mT @ z / n
    m = s.trace() / d
    target = m * torch.eye(d, dtype=s.dtype)
    distance = ((s - target) ** 2).sum()
    noise = sum(((row[:, None] * row - s) ** 2).sum() for row in z) / n**2
    share = min(noise / distance, 1.0)
    return scale[:, None] * (share * target + (1 - share) * s) * scale
