from __future__ import annotations

import pytest
import torch

from sylvinit.distributed import Message
from sylvinit.moments.packing import pack_moments, unpack_moments
from sylvinit.moments.streaming import PatchMoments

CPU = torch.device("cpu")


def sent(moments: PatchMoments, *, rows: bool) -> PatchMoments:
    message = pack_moments(moments, rows=rows)
    return unpack_moments(Message.from_bytes(message.to_bytes(CPU)), CPU)


def filled(n: int, start: int, **sizes: int) -> PatchMoments:
    """Moments of rows of which part is added up and part waits."""
    generator = torch.Generator().manual_seed(start)
    moments = PatchMoments(5, groups=2, precision=torch.float64, **sizes)
    for _ in range(2):
        x = torch.randn(2, n, 5, generator=generator, dtype=torch.float64) + 3
        labels = torch.arange(n) % 3
        if sizes.get("targets"):
            labels = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        moments.update(x, labels, torch.arange(start, start + n))
        if n > 5:
            moments.mean()  # which adds up what waits
    return moments


@pytest.mark.parametrize("sizes", [{}, {"classes": 3}, {"targets": 2}, {"reservoir": 4}], ids=str)
@pytest.mark.parametrize("n", [2, 40])
def test_what_comes_back_is_what_was_sent(n: int, sizes: dict[str, int]) -> None:
    moments = filled(n, 0, **sizes)
    few = moments.n < moments.d_in
    back = sent(moments, rows=few)
    assert back.n == moments.n
    assert (back.columns() is None) == (moments.columns() is None) == (not few)
    assert torch.equal(back.covariance().triu(), moments.covariance().triu())
    assert torch.equal(back.mean(), moments.mean())
    assert (back.eps, back.rows_eps) == (moments.eps, moments.rows_eps)
    sums, expected = back.label_sums(), moments.label_sums()
    assert (sums is None) == (expected is None)
    if sums is not None and expected is not None:
        assert torch.equal(sums.cross, expected.cross)
        assert torch.equal(sums.total, expected.total)
    rows = moments.reservoir()
    assert rows is None or torch.equal(rows, back.reservoir())


def test_without_rows_there_are_none() -> None:
    """Rows that wait are added up, which changes no moment."""
    moments = filled(2, 0, classes=3)
    message = pack_moments(filled(2, 0, classes=3), rows=False)
    assert "rows" not in message.meta["names"]
    back = unpack_moments(message, CPU)
    assert back.columns() is None
    assert back.n == moments.n
    torch.testing.assert_close(back.covariance(), moments.covariance(), rtol=1e-14, atol=1e-14)


def test_moments_from_elsewhere_merge() -> None:
    """Those of 2 x 40 and of 2 x 7 rows make those of all."""
    whole = filled(40, 0, classes=3).merge(filled(7, 40, classes=3))
    other = sent(filled(7, 40, classes=3), rows=False)
    merged = filled(40, 0, classes=3).merge(other)
    assert merged.n == whole.n == 94
    torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-13, atol=0)
    torch.testing.assert_close(merged.class_means(), whole.class_means(), rtol=1e-13, atol=0)
