from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import data
import numpy as np
import pytest
import torch
from data import Dataset, MissingDataError, draw, load, load_cifar100

from sylvinit.errors import DataError
from sylvinit.io.datasets import Samples

IMAGES = 200  # two of each class


def content(**changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "data": random.integers(0, 256, (IMAGES, 3072), dtype=np.uint8),
        "fine_labels": [index % 100 for index in range(IMAGES)],
        "coarse_labels": [index % 20 for index in range(IMAGES)],
        "filenames": ["a"] * IMAGES,
    } | changes


def write(folder: Path, name: str, pickled: object) -> None:
    (folder / "cifar-100-python").mkdir(exist_ok=True)
    (folder / "cifar-100-python" / name).write_bytes(pickle.dumps(pickled, protocol=2))


def test_cifar100_is_read_and_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "train", content())
    write(tmp_path, "test", content())
    monkeypatch.setenv("SYLVINIT_DATA", str(tmp_path))
    load.cache_clear()
    dataset = load("cifar100")
    load.cache_clear()
    assert (dataset.classes, dataset.channels) == (100, 3)
    assert dataset.train.labels.tolist() == content()["fine_labels"]
    pixel = content()["data"][7].reshape(3, 32, 32)[1, 4, 5] / 255
    # float32, of numbers up to 2.
    assert float(dataset.train.inputs[7, 1, 4, 5]) == pytest.approx(
        (pixel - 0.4865) / 0.2564, abs=1e-6
    )
    assert dataset.train.inputs.is_contiguous(memory_format=torch.channels_last)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


@pytest.mark.parametrize(
    "wrong",
    [
        Hostile(),
        content(fine_labels=[0]),
        content(fine_labels=[100] * IMAGES),
        content(data=np.zeros((IMAGES, 5), np.uint8)),
        {"labels": [1]},
    ],
)
def test_cifar100_refuses_other_files(
    wrong: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "train", wrong)
    with pytest.raises(DataError):
        load_cifar100(tmp_path, train=True)
    assert "ran" not in capsys.readouterr().out


def test_missing_data_say_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYLVINIT_DATA", str(tmp_path))
    load.cache_clear()
    for name in ("cifar10", "cifar100"):
        with pytest.raises(MissingDataError, match="SYLVINIT_DATA"):
            load(name)


def small() -> Dataset:
    inputs = torch.arange(40.0).view(40, 1, 1, 1)
    labels = torch.arange(40) % 4
    return Dataset(Samples(inputs, labels), Samples(-inputs, labels))


def test_validation_images_are_the_training_images_left_over() -> None:
    drawn = draw(small(), 3, seed=1, split="validation")
    seen, left = drawn.train.inputs.flatten().tolist(), drawn.test.inputs.flatten().tolist()
    assert (len(seen), len(left)) == (12, 28)
    assert sorted(seen + left) == list(map(float, range(40)))
    assert torch.equal(draw(small(), 3, seed=1).test.inputs, small().test.inputs)
    with pytest.raises(MissingDataError, match="validate"):
        draw(small(), 10, seed=1, split="validation")
    with pytest.raises(MissingDataError, match="11 images a class"):
        draw(small(), 11, seed=1)


def test_limit_takes_fewer_of_each_class() -> None:
    assert data.limit(small().train, 2, 0).labels.bincount().tolist() == [2] * 4
    whole = small().train
    assert data.limit(whole, None, 0) is whole
    assert len(data.limit(small().train, 99, 0).labels) == 40
