from __future__ import annotations

import pytest
from gpu.floor import floor_seconds, gram_work


def test_work_by_hand() -> None:
    """n = 10 patches of d = 2, D = 3: six sums of ten products, 20 numbers of 4 bytes, 6 float64
    sums read and written."""
    work = gram_work(10, 2, 10**6, 4)
    assert work.multiply_adds == 60
    assert work.bytes == 80 + 2 * 6 * 8
    # All of a small activation, of two bytes a number, is read once.
    assert gram_work(10, 2, 12, 2).bytes == 24 + 96


def test_floor_by_hand() -> None:
    ceilings = {"copy_bytes_per_s": 1e3, "float32_flops": 120.0, "tf32_flops": 3600.0}
    work = gram_work(10, 2, 10**6, 4)  # 120 flops, 176 bytes
    slow = floor_seconds(work, "ffma", ceilings)
    assert slow["arithmetic_s"] == pytest.approx(1.0)
    assert slow["bytes_s"] == pytest.approx(0.176)
    assert slow["floor_s"] == pytest.approx(1.0)
    assert slow["floor_is"] == "arithmetic"
    assert floor_seconds(work, "3xtf32", ceilings)["arithmetic_s"] == pytest.approx(0.1)
    assert floor_seconds(work, "tf32", ceilings)["arithmetic_s"] == pytest.approx(1 / 30)
    assert floor_seconds(work, "3xtf32", ceilings)["floor_is"] == "bytes"
    assert floor_seconds(work, "3xtf32", {})["floor_s"] is None
