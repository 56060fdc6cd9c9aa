from __future__ import annotations

import builtins
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sylvinit.demo import experiment, run
from sylvinit.demo.experiment import HEAD, METHODS, OWN, SYLVINIT, Result, run_experiment
from sylvinit.demo.picture import _mosaic, draw
from sylvinit.demo.tasks import Task, digits_task, he_init_
from sylvinit.demo.training import Recipe, accuracy, calibrate_norm, train
from sylvinit.errors import OptionError
from sylvinit.io.datasets import Samples
from sylvinit.report.drawing import MissingMatplotlibError


@pytest.fixture(scope="module")
def task() -> Task:
    return dataclasses.replace(digits_task(), per_class=5, probe=100)


@pytest.fixture(scope="module")
def result(task: Task) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_VIEWED_SAMPLES", 60)  # t-SNE takes seconds for all of them
        return run_experiment(task, seeds=2, epochs=2)


def test_experiment_compares_the_methods_on_equal_terms(result: Result) -> None:
    assert [(run.method, run.seed) for run in result.runs] == [
        (method, seed) for seed in (0, 1) for method in METHODS
    ]
    assert all(len(run.accuracy) == 3 for run in result.runs)
    # Only sylvinit changes the filters; only the head differs between the other two.
    filters = {method: view.filters for method, view in result.views.items()}
    features = {method: view.features for method, view in result.views.items()}
    torch.testing.assert_close(filters[OWN], filters[HEAD], rtol=0, atol=0)
    torch.testing.assert_close(features[OWN], features[HEAD], rtol=0, atol=0)
    assert not torch.allclose(filters[OWN], filters[SYLVINIT])


def test_solved_networks_know_something_before_training(result: Result) -> None:
    before = {row.method: row.before[0] for row in result.summary()}
    # 797 test images in ten classes: chance is 10 % with a standard error of 1.1 %.
    assert before[HEAD] > 25
    assert before[SYLVINIT] > 25


def test_experiment_is_repeatable_and_leaves_the_global_seed(task: Task, result: Result) -> None:
    state = torch.get_rng_state()
    again = run_experiment(task, seeds=1, epochs=1)
    torch.testing.assert_close(state, torch.get_rng_state())
    for run_, former in zip(again.runs, result.runs, strict=False):
        assert run_.accuracy[0] == former.accuracy[0]


def test_result_is_plain_json(result: Result) -> None:
    content = json.loads(json.dumps(result.to_dict()))
    assert [row["method"] for row in content["summary"]] == list(METHODS)
    assert content["task"]["seeds"] == [0, 1]
    assert content["task"]["recipe"]["momentum"] == 0.9
    assert content["runs"][0]["accuracy"] == result.runs[0].accuracy
    row = content["summary"][2]
    curves = 100 * np.array(result.curves(SYLVINIT))
    np.testing.assert_allclose(row["after"], [curves[:, -1].mean(), curves[:, -1].std(ddof=1)])


def test_options_out_of_range_are_named(task: Task) -> None:
    with pytest.raises(OptionError, match="seeds must be at least 1, got 0"):
        run_experiment(task, seeds=0)
    with pytest.raises(OptionError, match="epochs: expected at least 0, got -1"):
        run_experiment(task, epochs=-1)


# --------------------------------------------------------------------------------------- training


def toy(count: int = 21) -> Samples:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    return Samples(torch.randn(count, 4, generator=generator) + 3 * labels[:, None], labels)


def net() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return he_init_(model, seed=0)


def test_training_learns_and_depends_on_its_seed_alone() -> None:
    recipe = Recipe(learning_rate=0.1, batch_size=5)  # the last batch is a single sample
    weights: list[torch.Tensor] = []
    for noise, seed in [(0, 1), (1, 1), (2, 2)]:
        torch.manual_seed(noise)
        model = net()
        epochs = list(train(model, toy(), recipe, epochs=10, seed=seed))
        assert epochs == list(range(1, 11))
        assert accuracy(model, toy()) > 0.9
        weights.append(model.get_parameter("0.weight").detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[2])


def test_adamw_learns_too() -> None:
    recipe = Recipe(learning_rate=0.01, batch_size=5, weight_decay=0.05, optimizer="adamw")
    model = net()
    before = model.get_parameter("0.weight").detach().clone()
    list(train(model, toy(), recipe, epochs=20, seed=0))
    assert accuracy(model, toy()) > 0.9
    # Steps of Adam are bounded by about the rate: 20 epochs of 4 steps.
    assert 0 < (model.get_parameter("0.weight") - before).abs().max() < 1.0


def test_accuracy_counts_in_batches_and_restores_the_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    samples = Samples(torch.eye(3).repeat(5, 1), torch.tensor([0, 1, 0] * 5))
    assert accuracy(model, samples, batch_size=4) == pytest.approx(2 / 3)
    assert model.training


def test_calibrated_statistics_are_those_of_all_samples() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    inputs = toy(600).inputs
    calibrate_norm(model, inputs)
    torch.testing.assert_close(model.get_buffer("0.running_mean"), inputs.mean(dim=0))
    # Averaged over three batches of 200, of which each has a mean of its own.
    torch.testing.assert_close(
        model.get_buffer("0.running_var"), inputs.var(dim=0), rtol=0.02, atol=0
    )
    assert not model.training


# ---------------------------------------------------------------------------------------- picture


def test_picture_is_a_png_of_the_promised_size(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    draw(result, path)
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(raw[16:20], "big") == 1620
    assert len(raw) > 20_000


def test_mosaic_places_every_filter() -> None:
    filters = np.zeros((10, 3, 2, 2))
    filters[9, 0, 1, 0] = -2.0  # the darkest red of the tenth filter: second row, second column
    image = _mosaic(filters)
    pixel = image[3 + 15 + 6 + 1, 3 + 15 + 1]
    np.testing.assert_allclose(pixel, [0.0, 0.5, 0.5])
    assert image.shape == (2 * 15 + 3, 8 * 15 + 3, 3)
    assert _mosaic(filters[:, :1]).shape == image.shape


def test_missing_matplotlib_is_noticed_before_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_matplotlib(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    monkeypatch.setattr(run, "run_experiment", lambda *_: pytest.fail("it ran"))
    with pytest.raises(MissingMatplotlibError, match=r"pip install 'sylvinit\[plot\]'"):
        run.run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_is_noticed_before_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(run, "run_experiment", lambda *_: pytest.fail("it ran"))
    with pytest.raises(OptionError, match="out: expected a folder"):
        run.run_demo(tmp_path / "file")
