from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sylvinit.demo.experiment import METHODS, run_experiment
from sylvinit.demo.run import run_demo
from sylvinit.demo.tasks import he_init_, image_task
from sylvinit.errors import DataError, OptionError, OptionTypeError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of stripes: across and down."""
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for name, axis in (("across", 0), ("down", 1)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(12):
            stripes = np.sin(np.arange(48) + generator.uniform(0, 6))
            pixels = np.expand_dims(stripes, 1 - axis) + generator.normal(0, 0.2, (48, 48))
            pixels = (127 + 60 * pixels).clip(0, 255).astype(np.uint8)
            image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def test_he_init_has_the_variance_of_a_relu_network() -> None:
    model = he_init_(nn.Sequential(nn.Conv2d(16, 64, 3), nn.Linear(500, 300)), seed=5)
    assert model.get_parameter("0.weight").var().item() == pytest.approx(2 / 144, rel=0.05)
    assert model.get_parameter("1.weight").var().item() == pytest.approx(2 / 500, rel=0.05)
    assert model.get_parameter("0.bias").abs().max() == 0


def test_a_model_of_timm_and_a_folder(photos: Path) -> None:
    pytest.importorskip("timm")
    task = image_task("timm:resnet18", photos, size=32)
    assert (task.per_class, len(task.test.labels)) == (6, 12)
    first, again, other = task.make(1), task.make(1), task.make(2)
    weights = [model.get_parameter("conv1.weight") for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.get_parameter("fc.weight").shape[0] == 2
    result = run_experiment(task, seeds=1, epochs=1)
    assert [run.method for run in result.runs] == list(METHODS)
    assert result.task["start"] == "that of timm, not pretrained"


def test_a_model_of_a_fixed_size_is_told_it(photos: Path) -> None:
    pytest.importorskip("timm")
    task = image_task("timm:vit_tiny_patch16_224", photos, size=32)
    model = task.make(0)
    assert model(task.test.inputs[:1]).shape == (1, 2)
    assert model.get_parameter("pos_embed").shape[1] == 1 + 4


@pytest.mark.parametrize(
    ("model", "size", "error", "message"),
    [
        ("resnet18", 32, OptionError, "model: expected timm:NAME, as timm:resnet18, got"),
        ("timm:nonsense", 32, OptionError, "model: timm cannot make 'nonsense' for 32 pixels"),
        ("timm:vit_tiny_patch16_224", 8, OptionError, "8 pixels|takes no images of 8 x 8"),
        ("timm:resnet18", 0, OptionError, "size must be at least 1, got 0"),
        ("timm:resnet18", 3.5, OptionTypeError, "size must be a positive integer"),
    ],
)
def test_what_cannot_be(
    photos: Path, model: str, size: int, error: type[Exception], message: str
) -> None:
    pytest.importorskip("timm")
    with pytest.raises(error, match=message):
        image_task(model, photos, size)


def test_a_model_needs_images(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="model: expected a folder of images"):
        run_demo(tmp_path, model="timm:resnet18")
    with pytest.raises(DataError, match="expected a folder with a folder of images"):
        run_demo(tmp_path / "out", tmp_path, model="timm:resnet18")
