from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sylvinit.errors import DataError, LabelError
from sylvinit.io.image_folder import load_image_folder

Image = pytest.importorskip("PIL.Image")


def save(path: Path, value: int, width: int = 6, height: int = 6, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), value if mode == "L" else (value, 0, 0)).save(path)


def red(inputs: torch.Tensor) -> list[int]:
    """The value of the first channel of the first pixel, as it was saved."""
    return (255 * (inputs[:, 0, 0, 0] * 0.229 + 0.485)).round().int().tolist()


def test_half_of_every_class_is_for_each_part(tmp_path: Path) -> None:
    for index in range(7):
        save(tmp_path / "b" / f"{index}.png", 10 + index)
        save(tmp_path / "a" / f"{index}.JPEG", 100)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    found = load_image_folder(tmp_path, 4, train=10, test=10)
    assert found.classes == ("a", "b")
    assert found.train.inputs.shape == (8, 3, 4, 4)
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4
    assert found.test.labels.tolist() == [0] * 3 + [1] * 3
    # Every image is in one part.
    parts = red(found.train.inputs[4:]) + red(found.test.inputs[3:])
    assert sorted(parts) == list(range(10, 17))
    again = load_image_folder(tmp_path, 4, train=10, test=10)
    assert torch.equal(found.train.inputs, again.train.inputs)


def test_parts_of_their_own_and_limits(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        for index in range(5):
            save(tmp_path / "train" / name / f"{index}.png", value)
            save(tmp_path / "val" / name / f"{index}.png", 100 + value)
    found = load_image_folder(tmp_path, 4, train=3, test=2)
    assert red(found.train.inputs) == [1, 1, 1, 2, 2, 2]
    assert red(found.test.inputs) == [101, 101, 102, 102]
    save(tmp_path / "val" / "c" / "0.png", 0)
    with pytest.raises(LabelError, match=r"train and val differ in the classes \['c'\]"):
        load_image_folder(tmp_path, 4, train=3, test=2)


def test_the_middle_square_is_taken(tmp_path: Path) -> None:
    pixels = np.zeros((4, 12), np.uint8)
    pixels[:, 4:8] = 255
    for name in ("a", "b"):
        for index in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    image = load_image_folder(tmp_path, 4, train=1, test=1).train.inputs[0]
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(image, white[:, None, None].expand(3, 4, 4))


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="for each of at least two classes, found 0"):
        load_image_folder(tmp_path / "nowhere", 4, train=1, test=1)
    save(tmp_path / "a" / "0.png", 1)
    with pytest.raises(DataError, match="found 1"):
        load_image_folder(tmp_path, 4, train=1, test=1)
    save(tmp_path / "b" / "0.png", 1)
    with pytest.raises(LabelError, match="a: expected at least two images"):
        load_image_folder(tmp_path, 4, train=1, test=1)
    for name in ("a", "b"):
        (tmp_path / name / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: it cannot be read as an image"):
        load_image_folder(tmp_path, 4, train=1, test=1)
