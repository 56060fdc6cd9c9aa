"""Which label each row has: positions of maps, nearest neighbors, rows that are left out."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from sylvinit.errors import LabelError
from sylvinit.moments.row_labels import LabelKind, fit_positions
from sylvinit.moments.rows import RowRule, assign_rows

MAPS = LabelKind(classes=50, of_rows=True)


@pytest.mark.parametrize("size", [(3, 4), (6, 8), (12, 16), (5, 3), (7, 20)])
def test_maps_are_read_at_the_nearest_neighbors(size: tuple[int, int]) -> None:
    labels = torch.arange(2 * 48).view(2, 6, 8) % 50
    found, note = fit_positions(labels, MAPS, "head", size[0] * size[1], size, resample=True)
    expected = interpolate(labels[:, None].double(), size=size, mode="nearest-exact")
    assert torch.equal(found, expected[:, 0].long().flatten(1))
    assert bool(note) == (size != (6, 8))


def test_targets_are_read_with_their_columns() -> None:
    kind = LabelKind(targets=3, of_rows=True)
    labels = torch.randn(2, 4, 4, 3, dtype=torch.float64)
    found, note = fit_positions(labels, kind, "head", 4, (2, 2), resample=True)
    assert torch.equal(found, labels[:, [1, 3]][:, :, [1, 3]].flatten(1, 2))
    assert "nearest" in note


@pytest.mark.parametrize(
    ("shape", "rows", "size", "resample"),
    [((2, 5), 6, (6,), False), ((2, 4, 4), 6, (6,), True), ((2, 4, 4), 6, (2, 3), False)],
)
def test_labels_that_do_not_fit(
    shape: tuple[int, ...], rows: int, size: tuple[int, ...], resample: bool
) -> None:
    with pytest.raises(LabelError, match="every row of layer head"):
        fit_positions(torch.zeros(shape, dtype=torch.int64), MAPS, "head", rows, size, resample)


@pytest.mark.parametrize("rule", [RowRule(1, 1), RowRule(5, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_numbers_of_rows_count_those_that_padding_drops(rule: RowRule, masked: bool) -> None:
    """Every row tells the sample and the token that it holds; numbers must find them again."""
    samples, tokens = 3, 5
    sample, token = torch.meshgrid(torch.arange(samples), torch.arange(tokens), indexing="ij")
    x = torch.stack((sample, token), dim=-1).float()
    if rule.outer > 1:
        x = x.transpose(0, 1).contiguous()
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]) == 1
    rows = assign_rows("x", x, samples, features=1, rule=rule, mask=mask if masked else None)
    assert rows is not None
    of, entry, position = rows.all_positions()
    flat = x.view(-1, 2)[entry]
    assert torch.equal(flat[:, 0].long(), of)
    assert torch.equal(flat[:, 1].long(), rows.numbers(of, entry, position))
    assert rows.lengths().tolist() == [tokens] * samples
    assert len(of) == (mask.sum() if masked else samples * tokens)


def test_numbers_of_given_rows_count_those_that_are_kept() -> None:
    owner = torch.tensor([1, -1, 0, 1, 0, -1])
    x = torch.zeros(6, 4)
    rows = assign_rows("x", x, 2, features=1, row_to_sample=lambda *_: owner)
    assert rows is not None
    of, entry, position = rows.all_positions()
    assert entry.tolist() == [2, 4, 0, 3]
    assert rows.numbers(of, entry, position).tolist() == [0, 1, 0, 1]
    assert rows.lengths().tolist() == [2, 2]
