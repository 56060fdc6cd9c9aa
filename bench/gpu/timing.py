"""Times of work on a GPU by CUDA events; on the CPU, for dry runs, by a clock of the host."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds a call.

    Attributes:
        median: over the samples.
        least: of them.
        spread: between their 10th and 90th percentile, relative to the median.
        samples: how many.
        how: "events", "graph" or "host".
    """

    median: float
    least: float
    spread: float
    samples: int
    how: str

    @classmethod
    def of(cls, seconds: Sequence[float], how: str) -> Timing:
        """The summary of samples."""
        ordered, last = sorted(seconds), len(seconds) - 1
        median = statistics.median(ordered)
        width = ordered[round(0.9 * last)] - ordered[round(0.1 * last)]
        return cls(median, ordered[0], width / median if median else 0.0, len(ordered), how)

    def fields(self, name: str) -> dict[str, float]:
        """For a row of results."""
        return {f"{name}_s": self.median, f"{name}_least_s": self.least}


class Clock:
    """Measures calls; several that do the same on different data take turns."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry

    def time(
        self, calls: Sequence[Call], *, seconds: float = 0.2, least: int = 3, most: int = 100
    ) -> Timing:
        """Each call once as a warm-up, then for about that many seconds.

        Calls are queued without waiting between them, so that launching one overlaps with running
        the one before. Of calls that take longer than ``seconds`` there are ``least`` samples, and
        one where a single call takes five times that.
        """
        for call in calls:
            call()
        how = "host" if self.dry else "events"
        seconds = min(seconds, 0.01) if self.dry else seconds
        once = self._samples(calls[:1], 1)[0]
        if once > 5 * seconds:
            return Timing.of([once], how)
        count = max(least, min(most, math.ceil(seconds / max(once, 1e-7))))
        return Timing.of(self._samples(calls, count), how)

    def replay(self, calls: Sequence[Call], *, seconds: float = 0.1) -> Timing:
        """Without the gaps between launches: a CUDA graph of all calls, per call.

        Calls must not allocate, and launch on the current stream.
        """
        if self.dry:
            return self.time(calls, seconds=seconds)
        for call in calls:
            call()
        torch.cuda.synchronize()
        once = self._samples(calls[:1], 1)[0]
        rounds = max(1, min(20, math.ceil(2e-3 / max(once, 1e-7))) // len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(rounds):
                for call in calls:
                    call()
        timing = self.time([graph.replay], seconds=seconds, most=20)
        per = rounds * len(calls)
        return Timing(
            timing.median / per, timing.least / per, timing.spread, timing.samples, "graph"
        )

    def peak(self, call: Call) -> int:
        """Bytes allocated at the peak beyond what was there before; 0 on the CPU."""
        if self.dry:
            call()
            return 0
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _samples(self, calls: Sequence[Call], count: int) -> list[float]:
        if self.dry:
            return [self._on_host(calls[i % len(calls)]) for i in range(count)]
        marks: list[tuple[Any, Any]] = []
        torch.cuda.synchronize()
        for i in range(count):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            calls[i % len(calls)]()
            end.record()
            marks.append((begin, end))
        torch.cuda.synchronize()
        return [1e-3 * begin.elapsed_time(end) for begin, end in marks]

    @staticmethod
    def _on_host(call: Call) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


def l2_bytes(device: str) -> int:
    """Size of the cache that repeated runs over one input would measure."""
    if device == "cpu":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 * 2**20))


def copies_past_cache(size: int, device: str, most: int = 12) -> int:
    """How many inputs of that many bytes take turns so that none is still in the cache."""
    return max(1, min(most, math.ceil(2 * l2_bytes(device) / max(size, 1))))
