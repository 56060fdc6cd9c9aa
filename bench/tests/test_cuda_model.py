"""The performance model of the CUDA kernels: its parts, by hand."""

from __future__ import annotations

import json

import cuda_model
import pytest


def test_blocks_at_a_time() -> None:
    assert cuda_model.resident(254, 48000, 256) == 1  # registers: 256 x 256 of 65536
    assert cuda_model.resident(168, 28168, 128) == 3
    assert cuda_model.resident(32, 60000, 128) == 3  # shared memory: 228 KB
    assert cuda_model.resident(16, 0, 1024) == 2  # threads


def test_cycles_of_a_chunk() -> None:
    """One block of 8 warps: two for each scheduler."""
    counts = cuda_model.Counts(300, 130, 32)
    cycles = cuda_model.chunk_cycles(counts, 128, 1)
    assert cycles["issue"] == 2 * (300 + 260 + 32)
    alone = cuda_model.Counts(300, 130, 32, by_one=True)
    assert cuda_model.chunk_cycles(alone, 128, 1)["issue"] == 2 * (300 + 260) + 32
    # 96 products of 16 x 8 x 8 a warp, 8 warps, at 63 % of 494.7 TFLOP/s on 132 multiprocessors.
    rate = 0.63 * 494.7e12 / 132 / 1.755e9
    assert cycles["tensor"] == pytest.approx(8 * 96 * 2 * 16 * 8 * 8 / rate)


def test_nothing_is_predicted_below_its_floor() -> None:
    report = json.loads(cuda_model.PTXAS.read_text())
    for d in (27, 147, 576, 4608):
        for n in (10**4, 10**6):
            for now in (False, True):
                assert cuda_model.fused_seconds(n, d, report, now=now)[0] >= cuda_model.floor(n, d)


def test_a_measured_time_stands_beside(tmp_path) -> None:
    row = {"n": 10240, "d": 576, "form": "channels_last", "dtype": "float32", "ours_s": 1.25e-4}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"steps": {"gram": {"results": {"beside": [row]}}}}))
    measured = cuda_model.measured_seconds(path)
    assert measured == {(10240, 576): 1.25e-4}
    report = json.loads(cuda_model.PTXAS.read_text())
    assert " 0.125 |" in cuda_model.table(report, measured).splitlines()[-1]
