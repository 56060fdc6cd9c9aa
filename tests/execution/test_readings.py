"""How labels are read, for every shape of classes and targets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sylvinit.errors import LabelError
from sylvinit.execution.readings import Head, TargetReading, read_classes, read_targets

ROWS, MAP = Head("head", 3, False, True), Head("head", 3, True, True)
ONE = Head("head", 1, False, True)


def reading(
    labels: list[Tensor], head: Head, ignore_index: int | None = None, signs: bool = True
) -> TargetReading:
    found = read_targets(labels, head, ignore_index=ignore_index, signs=signs)
    assert isinstance(found, TargetReading)
    return found


def back(found: TargetReading, labels: Tensor) -> Tensor:
    """Targets in the units of the given ones, from what is solved for."""
    return found.units.center + found.units.scale * found(labels)


@pytest.mark.parametrize(
    ("labels", "head", "shape"),
    [
        (torch.randn(7, 3), ROWS, (7, 3)),
        (torch.randn(7, 3, 4, 5), MAP, (7, 4, 5, 3)),
        (torch.randn(7, 4, 3), ROWS, (7, 4, 3)),
        (torch.randn(7, 3, 4), ROWS, (7, 4, 3)),
        (torch.randn(7), ONE, (7, 1)),
        (torch.randn(7, 1), ONE, (7, 1)),
        (torch.randn(7, 9), ONE, (7, 9, 1)),
        (torch.randn(7, 1, 4, 5), Head("h", 1, True, True), (7, 4, 5, 1)),
        (torch.randn(7, 4, 5), Head("h", 1, True, True), (7, 4, 5, 1)),
    ],
)
def test_targets_are_standardized_and_found_again(
    labels: Tensor, head: Head, shape: tuple[int, ...]
) -> None:
    labels = labels.double() * 100 + 7
    found = reading([labels[:4], labels[4:]], head)
    s = found(labels)
    assert s.shape == shape
    flat = s.flatten(0, -2)
    # Sums of at most 140 numbers of size 3 in float64.
    torch.testing.assert_close(flat.mean(dim=0), torch.zeros_like(flat[0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(flat.square().mean(dim=0), torch.ones_like(flat[0]))
    given = labels.reshape(shape) if labels.numel() == 7 or head.outputs == 1 else None
    if given is not None:
        torch.testing.assert_close(back(found, labels), given)
    assert found.kind.of_rows == (len(shape) > 2)


def test_columns_of_zeros_and_ones_are_signs() -> None:
    labels = torch.tensor([[0.0, 1, 2], [1, 1, 3], [0, 1, 4]])
    found = reading([labels], ROWS)
    assert found(labels)[:, 0].tolist() == [-1, 1, -1]
    assert found(labels)[:, 1].tolist() == [1, 1, 1]
    assert found.units.center[:2].tolist() == [0, 0]
    assert found.units.scale[:2].tolist() == [1, 1]
    torch.testing.assert_close(back(found, labels)[:, 2], labels[:, 2].double())
    assert found.constant == 1
    numbers = reading([labels], ROWS, signs=False)
    torch.testing.assert_close(back(numbers, labels), labels.double())


def test_two_classes_for_one_output() -> None:
    labels = torch.tensor([0, 1, -100, 1])
    found = reading([labels], ONE, ignore_index=-100)
    s = found(labels)[:, 0]
    assert s[[0, 1, 3]].tolist() == [-1, 1, 1]
    assert bool(s[2].isnan())
    assert found.kind.missing


def test_missing_targets_keep_the_moments_of_those_that_are_there() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4000, 3, generator=generator, dtype=torch.float64) * 5 + 2
    gone = torch.rand(4000, 3, generator=generator) < torch.tensor([0.0, 0.5, 0.9])
    labels = y.masked_fill(gone, torch.nan)
    found = reading([labels], ROWS)
    s = found(labels)
    torch.testing.assert_close(s.square().mean(dim=0), torch.ones(3, dtype=torch.float64))
    # What a column's weights are multiplied by is sqrt(n / n_j) of its deviation.
    ratio = found.units.scale / y.std(dim=0)
    expected = (1 / (1 - gone.double().mean(dim=0))).sqrt()
    torch.testing.assert_close(ratio, expected, rtol=0.05, atol=0)  # 400 of the last: 3.5 %
    assert not found.kind.missing
    labels[5] = torch.nan
    found = reading([labels], ROWS)
    assert found.kind.missing
    assert bool(found(labels)[5].isnan().all())
    assert not bool(found(labels)[[4, 6]].isnan().any())


def test_without_a_bias_nothing_is_centered() -> None:
    y = torch.tensor([[3.0], [4.0]])
    found = reading([y], Head("h", 1, False, False))
    assert float(found.units.center) == 0
    torch.testing.assert_close(found(y) * found.units.scale, y.double())


@pytest.mark.parametrize("labels", [torch.randn(5), torch.randn(5, 2), torch.randn(5, 2, 4)])
def test_other_columns_than_outputs(labels: Tensor) -> None:
    found = read_targets([labels], ROWS, ignore_index=None, signs=True)
    assert isinstance(found, str)
    assert "3 outputs" in found


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_targets_without_numbers(value: float) -> None:
    with pytest.raises(LabelError, match=r"NaN or left out|Inf"):
        read_targets([torch.full((4, 3), value)], ROWS, ignore_index=None, signs=True)


@pytest.mark.parametrize(
    ("labels", "of_rows", "count"),
    [
        (torch.tensor([0, 2]), False, 3),
        (torch.tensor([[0], [2]]), False, 3),
        (torch.tensor([[0, 5], [2, 1]]), True, 6),
        (torch.tensor([True, False]), False, 2),
        (torch.tensor([0.0, 2.0]), False, 3),
        (torch.tensor([[[0, 1], [1, 3]]], dtype=torch.uint8), True, 4),
    ],
)
def test_classes(labels: Tensor, of_rows: bool, count: int) -> None:
    found = read_classes([labels], -100)
    assert not isinstance(found, str)
    assert (found.kind.of_rows, found.count) == (of_rows, count)
    assert found(labels).dtype == torch.int64


def test_ignored_classes() -> None:
    labels = torch.tensor([[0, 255], [2, 1]])
    found = read_classes([labels], 255)
    assert not isinstance(found, str)
    assert found.kind.missing
    assert (found.count, found.present) == (3, 3)
    assert found(labels).tolist() == [[0, -1], [2, 1]]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([-1, 2]), "negative"),
        (torch.tensor([-100, -100]), "no row is left"),
        (torch.tensor([0, 2**21]), "number the classes"),
    ],
)
def test_wrong_classes(labels: Tensor, match: str) -> None:
    with pytest.raises(LabelError, match=match):
        read_classes([labels], -100)


def test_batches_of_different_forms() -> None:
    with pytest.raises(LabelError, match="axes"):
        read_classes([torch.tensor([0, 1]), torch.tensor([[0, 1]])], -100)
