"""The bounded sample of rows, with whose they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments.patch_source import PatchSource
from sylvinit.moments.row_labels import LabelKind
from sylvinit.moments.row_sample import RowSample
from sylvinit.moments.rows import Rows, assign_rows


def add(sample: RowSample, x: Tensor, labels: Tensor, start: int, kind: LabelKind) -> None:
    rows = assign_rows("head", x, len(labels), features=1)
    assert isinstance(rows, Rows)
    flat = x.reshape(-1, x.shape[-1])
    sample.add(PatchSource(flat, None, 1, (), rows, labels, (1, 2), start, None, kind))


@pytest.mark.parametrize("parts", [(20,), (7, 7, 6), (1,) * 20])
def test_chunks_do_not_matter(parts: tuple[int, ...]) -> None:
    x = torch.arange(20.0)[:, None] * torch.tensor([1.0, 10.0])
    labels = torch.arange(20) % 3
    whole, pieces = RowSample(12, 10), RowSample(12, 10)
    kind = LabelKind(classes=3)
    add(whole, x, labels, 0, kind)
    begin = 0
    for part in parts:
        end = begin + part
        add(pieces, x[begin:end], labels[begin:end], begin, kind)
        begin = end
    expected, found = whole.rows(), pieces.rows()
    assert expected is not None
    assert found is not None
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert len(found.x) == 12
    assert bool((found.samples.diff() > 0).all())
    torch.testing.assert_close(found.x[:, 0].long(), found.samples)
    torch.testing.assert_close(found.labels, found.samples % 3)


def test_rows_of_maps_keep_their_sample_and_their_own_label() -> None:
    x = torch.randn(5, 8, 3)
    labels = torch.arange(40).view(5, 8) % 4
    labels[2] = -1  # a sample without any label
    sample = RowSample(1000, 6)
    add(sample, x, labels, 100, LabelKind(classes=4, of_rows=True, missing=True))
    found = sample.rows()
    assert found is not None
    # Six draws of each, with replacement, of the four samples that have labels.
    assert found.samples.tolist() == [i for i in (100, 101, 103, 104) for _ in range(6)]
    for row, owner, label in zip(*found, strict=True):
        place = (x[owner - 100] == row).all(dim=1).nonzero()[0]
        assert labels[owner - 100, place] == label


def test_targets_and_groups_of_a_convolution() -> None:
    x, targets = torch.randn(6, 4, 3, 3), torch.randn(6, 2, dtype=torch.float64)
    geometry = PatchGeometry((1, 1), (1, 1), (1, 1), (0, 0), (0, 0))
    sample = RowSample(1000, 9)
    rows = Rows.one_each(6, 9)
    kind = LabelKind(targets=2)
    sample.add(PatchSource(x, geometry, 2, (3, 3), rows, targets, (1, 2), 0, None, kind))
    found = sample.rows()
    assert found is not None
    assert found.x.shape == (54, 4)
    pixels = x.flatten(2).mT  # of a sample, which come in the order of their priorities
    for i in range(6):
        mine, own = found.x[found.samples == i], pixels[i]
        order, other = mine[:, 0].argsort(), own[:, 0].argsort()
        torch.testing.assert_close(mine[order], own[other], rtol=0, atol=0)
    torch.testing.assert_close(found.labels, targets.repeat_interleave(9, dim=0), rtol=0, atol=0)


def test_nothing_without_labels() -> None:
    sample = RowSample(10, 10)
    rows = Rows.one_each(3, 1)
    sample.add(PatchSource(torch.randn(3, 2), None, 1, (), rows, None))
    assert sample.rows() is None
