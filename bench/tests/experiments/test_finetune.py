"""New heads for a pretrained network, and the training of all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data
import pytest
import torch
from config import Arm, ConfigError, Run, parse
from data import Dataset, MissingDataError
from finetune import set_head
from pretrained import features, pretrained_network, without_head
from runners import check, execute

from sylvinit.demo.networks import resnet20
from sylvinit.demo.training import calibrate_norm
from sylvinit.io.datasets import Samples

CLASSES = 4


def samples(seed: int) -> Samples:
    """Noise around a picture for each class: easy to tell apart."""
    pictures = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(40) % CLASSES
    noise = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Samples(data.channels_last(pictures[labels] + 0.5 * noise), labels)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "net.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet20(num_classes=100)
    calibrate_norm(model, samples(2).inputs)  # as statistics of a trained network are
    torch.save(model.state_dict(), path)
    monkeypatch.setenv("SYLVINIT_CHECKPOINTS", str(tmp_path))

    def load(name: str, normalisation: str | None = None) -> Dataset:
        assert (name, normalisation) == ("cifar10", "cifar100")
        return Dataset(samples(0), samples(1))

    monkeypatch.setattr(data, "load", load)
    return path


def run(initialiser: str = "he-uniform", settings: dict[str, Any] | None = None) -> Run:
    content = {
        "title": "Fine-tuning",
        "paper": "none",
        "runner": "finetune",
        "dataset": "cifar10",
        "network": "resnet20",
        "cells": [{"shots": 6}],
        "arms": {"head": {"initialiser": initialiser, "settings": settings or {}}},
        "seeds": [0],
        "training": {"epochs": 4, "rate": 0.003, "batch": 8, "precision": "bf16"},
        "checkpoint": "net.pt",
    }
    return next(parse("tiny", content).runs(0))


@pytest.mark.parametrize(
    ("initialiser", "settings", "least"),
    [("xavier-normal", {}, 0), ("sylvinit-head", {"head_code": "logistic"}, 60)],
)
def test_accuracy_before_and_after(
    initialiser: str, settings: dict[str, Any], least: int, checkpoint: Path
) -> None:
    this = run(initialiser, settings)
    check(this)
    (record,) = execute([this], "cpu")
    assert record.items() >= this.fields.items()
    assert record["accuracy_before"] >= least
    assert record["accuracy_after"] > max(80, record["accuracy_before"])
    assert record["init_seconds"] > 0
    assert record["train_seconds"] > 0
    (again,) = execute([this], "cpu")
    assert again["accuracy_after"] == record["accuracy_after"]


@pytest.mark.parametrize("initialiser", ["he-normal", "sylvinit-head"])
def test_only_the_head_is_replaced(initialiser: str, checkpoint: Path) -> None:
    model, arm = pretrained_network(checkpoint), Arm("head", initialiser)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_head(model, arm, samples(0), CLASSES, 3)
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, before[name])
    first = model.fc.weight.detach()
    assert first.shape == (CLASSES, 64)
    set_head(model, arm, samples(2), CLASSES, 3)
    # Solved from the images, or of the seed alone.
    assert torch.equal(model.fc.weight, first) == (initialiser == "he-normal")
    with torch.no_grad():
        scores = model(samples(0).inputs)
        found = features(without_head(pretrained_network(checkpoint)), samples(0))
        torch.testing.assert_close(model.fc(found.inputs), scores)


def test_what_is_missing_is_said(checkpoint: Path) -> None:
    checkpoint.unlink()
    with pytest.raises(MissingDataError, match=r"net\.pt"):
        check(run())


def test_heads_that_do_not_exist(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="lsvu"):
        execute([run("lsvu")], "cpu")


def test_the_recipe_decides_on_the_result() -> None:
    one = run()
    other = Run(one.config, one.cell | {"training": {"epochs": 3}}, one.arm, 0)
    assert one.digest != other.digest
