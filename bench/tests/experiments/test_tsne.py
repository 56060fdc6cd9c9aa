"""The runner that maps features, from the network to the picture."""

from __future__ import annotations

import json
from pathlib import Path

import data
import pytest
import torch
from cli import main
from store import Results
from tsne import embed, last_inputs

from sylvinit.demo.networks import resnet20
from sylvinit.io.datasets import Samples

POINTS = 40


def test_features_are_what_the_last_layer_gets() -> None:
    torch.manual_seed(0)
    model = resnet20(widths=(4, 8), blocks=1)
    samples = Samples(torch.randn(300, 3, 8, 8), torch.arange(300) % 10)  # two batches
    features = last_inputs(model, samples)
    assert model.training
    assert features.shape == (300, 8)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.fc(features), model(samples.inputs))
    model(samples.inputs[:2])  # no hook is left behind


def test_the_map_keeps_clusters_together_and_is_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = 20 * torch.eye(5)[labels] + torch.randn(60, 5, generator=generator)
    points = torch.from_numpy(embed(features))
    assert torch.equal(points, torch.from_numpy(embed(features)))
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert torch.equal(labels[distances.argmin(dim=1)], labels)


def test_from_run_to_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_PROBE", POINTS)
    path, out = tmp_path / "tiny.json", tmp_path / "docs" / "results.md"
    content = {
        "title": "Maps",
        "paper": "none",
        "runner": "tsne",
        "dataset": "digits",
        "network": "digits_net",
        "cells": [{"shots": 3}],
        "arms": {
            "He": {"initialiser": "he-uniform"},
            "sylvinit": {"initialiser": "sylvinit"},
        },
        "seeds": [0],
    }
    path.write_text(json.dumps(content))
    threads = torch.get_num_threads()
    try:
        assert main(["run", str(path), "--results", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    labels = data.probe(data.load("digits").test).labels.tolist()
    for record in Results("tiny", tmp_path).records().values():
        assert record["labels"] == labels
        assert len(record["points"]) == POINTS
        assert all(value == float(f"{value:.3g}") for x, y in record["points"] for value in (x, y))
    assert main(["report", str(path), "--results", str(tmp_path), "--out", str(out)]) == 0
    assert "![Maps](results_tiny_tsne.png)" in out.read_text()
    assert (out.parent / "results_tiny_tsne.png").read_bytes().startswith(b"\x89PNG")
