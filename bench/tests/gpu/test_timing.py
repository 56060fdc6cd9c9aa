from __future__ import annotations

import pytest
from gpu.timing import Clock, Timing


def test_summary_of_samples() -> None:
    timing = Timing.of([3.0, 1.0, 2.0, 10.0, 2.0], "host")
    assert (timing.median, timing.least, timing.samples) == (2.0, 1.0, 5)
    assert timing.spread == pytest.approx((10 - 1) / 2)


def test_calls_take_turns() -> None:
    seen: list[int] = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]
    timing = Clock(True).time(calls, seconds=1.0, most=5)
    assert timing.samples == 5
    assert seen == [*(0, 1, 2), 0, *(0, 1, 2, 0, 1)]  # warm-up, a first sample, the samples
