"""Predicted times of patch_gram on an H100, from instruction counts, occupancy and its floor.

    python bench/cuda_model.py [--measured DIR/results.json] > table.md

Nothing here is measured on a GPU. A block's time for a chunk of 16 patches is the largest of three:
instructions at one a cycle and scheduler, tensor-core instructions, and bytes from the L2 cache; a
call is as many chunks as the longest block has, in waves of as many blocks as run at a time. See
docs/cuda_model.md. With --measured the times of a run of bench/gpu_check.py stand beside.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.floor import UNITS, gram_work

ROOT = Path(__file__).resolve().parent.parent
PTXAS = ROOT / "bench" / "results" / "ptxas.json"

# H100 SXM, NVIDIA's data sheet; the rate of the L2 cache is an assumption.
MULTIPROCESSORS, CLOCK, SCHEDULERS = 132, 1.755e9, 4
RATES = {"tf32_flops": 494.7e12, "float32_flops": 66.9e12, "copy_bytes_per_s": 3.35e12}
L2_BYTES_PER_S = 5.5e12
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 228 * 1024, 2048, 32
# Part of the tensor cores' rate that mma.sync reaches on Hopper: Luo et al., arXiv:2402.13499.
MMA_SYNC = 0.63
# And that cuBLAS is taken to reach, for gather + products of two TF32 halves.
CUBLAS = 0.8
# Chunks of time that beginning a block and writing its tile take; launches of a call, in seconds.
BEGIN, LAUNCHES = 8.0, 6e-6


@dataclass(frozen=True)
class Counts:
    """SASS instructions of a warp, sm_90a, float32, features of a convolution with zero padding.

    Attributes:
        multiply: for a chunk, 3xTF32.
        move: for a chunk of one slice, from the activation to shared memory.
        choose: for a chunk, drawing patches and looking up 6 offsets for each.
        by_one: whether one warp of a block does that, and not all.
    """

    multiply: int
    move: int
    choose: int
    by_one: bool = False


# By tile, for channels_last. Before: one warp chose 16 patches for every chunk, factors were
# rounded by the conversion instruction.
BEFORE = {
    32: Counts(317, 209, 434, by_one=True),
    64: Counts(317, 125, 292, by_one=True),
    128: Counts(493, 125, 292, by_one=True),
}
NOW = {32: Counts(188, 217, 254), 64: Counts(188, 129, 63), 128: Counts(300, 130, 32)}
WARPS = {32: 1, 64: 4, 128: 8}
TENSOR = {32: 48, 64: 48, 128: 96}  # mma instructions of a warp for a chunk, 16 x 8 x 8 each


def resident(registers: int, shared: int, threads: int) -> int:
    """Blocks of a kernel on a multiprocessor at a time."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    return min(by_registers, SHARED // (shared + 1024), THREADS // threads, BLOCKS)


def kernel_row(report: dict[str, Any], tile: int, arch: str = "sm_90a") -> dict[str, Any]:
    """What ptxas said about 3xTF32 with packs."""
    for row in report["kernels"]:
        named = f"tile_kernel<{tile}, (sylvinit::Arithmetic)0, 4>" in row["kernel"]
        if named and row["arch"] == arch:
            return row
    raise LookupError(f"no kernel of tile {tile} for {arch} in the report")


def chunk_cycles(counts: Counts, tile: int, blocks: int) -> dict[str, float]:
    """Cycles that a multiprocessor with so many blocks needs for a chunk of each.

    Off the diagonal, and of the scheduler that has most to do.
    """
    warps = max(1.0, blocks * WARPS[tile] / SCHEDULERS)
    choosing = max(1.0, blocks / SCHEDULERS) if counts.by_one else warps
    flops = RATES["tf32_flops"] * MMA_SYNC / MULTIPROCESSORS / CLOCK / SCHEDULERS
    bytes_ = blocks * 2 * tile * 16 * 4
    return {
        "issue": warps * (counts.multiply + 2 * counts.move) + choosing * counts.choose,
        "tensor": warps * TENSOR[tile] * 2048 / flops,
        "L2": bytes_ / (L2_BYTES_PER_S / MULTIPROCESSORS / CLOCK),
    }


def tile_of(products: int) -> int:
    return 32 if products <= 32 else 64 if products <= 192 else 128


def fused_seconds(n: int, d: int, report: dict[str, Any], *, now: bool) -> tuple[float, str]:
    """A call without labels, and what limits it."""
    # Before, the constant was a column of the product, and four blocks for each multiprocessor were
    # planned.
    products = d if now else d + 1
    tile = tile_of(products)
    row = kernel_row(report, tile)
    blocks = resident(row["registers"], row["shared"], 32 * WARPS[tile])
    tiles = -(-products // tile)
    pairs, chunks = tiles * (tiles + 1) // 2, -(-n // 16)
    slots = MULTIPROCESSORS * blocks
    if now:
        most = min(max(2, 4 * slots // pairs), chunks)
        splits = min(range(1, most + 1), key=lambda s: _longest(pairs, chunks, slots, s))
    else:
        splits = max(1, min(4 * MULTIPROCESSORS // pairs, -(-n // 256)))
    at_a_time = min(blocks, -(-pairs * splits // MULTIPROCESSORS))
    cycles = chunk_cycles((NOW if now else BEFORE)[tile], tile, at_a_time)
    limit = max(cycles, key=lambda name: cycles[name])
    waves = -(-pairs * splits // (MULTIPROCESSORS * at_a_time))
    compute = waves * (-(-chunks // splits) + BEGIN) * cycles[limit] / CLOCK
    traffic = 16 * pairs * splits * tile * tile / RATES["copy_bytes_per_s"]
    reading = gram_work(n, d, n * d, 4).bytes / RATES["copy_bytes_per_s"]
    if reading > compute:
        compute, limit = reading, "bytes"
    return compute + traffic + LAUNCHES, limit


def _longest(pairs: int, chunks: int, slots: int, splits: int) -> float:
    """What csrc/cuda/patch_gram.cu plans by."""
    waves = -(-pairs * splits // slots)
    return waves * (-(-chunks // splits) + 8.0) + 14.0 * pairs * splits / slots


def halves_seconds(n: int, d: int) -> float:
    """Gather, split in two halves, two products of cuBLAS in TF32."""
    flops = 2 * 2 * n * d * d / (RATES["tf32_flops"] * CUBLAS)
    numbers = n * d * (2 + 3 + 4)  # gather reads and writes, the split, two products of two factors
    return flops + 4 * numbers / RATES["copy_bytes_per_s"] + 3 * LAUNCHES


def floor(n: int, d: int) -> float:
    work = gram_work(n, d, n * d, 4)
    _, products = UNITS["3xtf32"]
    compute = 2 * work.multiply_adds * products / RATES["tf32_flops"]
    return max(compute, work.bytes / RATES["copy_bytes_per_s"])


def measured_seconds(path: Path | None) -> dict[tuple[int, int], float]:
    """Times by n and d of a run of bench/gpu_check.py, channels_last and float32."""
    if path is None:
        return {}
    rows = json.loads(path.read_text())["steps"]["gram"]["results"]["beside"]
    chosen = [x for x in rows if x["form"] == "channels_last" and x["dtype"] == "float32"]
    return {(row["n"], row["d"]): row["ours_s"] for row in chosen}


def table(report: dict[str, Any], measured: dict[tuple[int, int], float]) -> str:
    cases = [
        (n, d) for d in (27, 64, 147, 256, 576, 1152, 2304, 4608) for n in (10**4, 10**5, 10**6)
    ]
    cases += [case for case in measured if case not in cases]
    lines = ["| d | n | floor | before | now | halves | measured | now limited by |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|---|")
    for n, d in cases:
        before, _ = fused_seconds(n, d, report, now=False)
        after, limit = fused_seconds(n, d, report, now=True)
        seconds = [floor(n, d), before, after, halves_seconds(n, d)]
        cells = [f"{1e3 * x:.3g}" for x in seconds]
        cells.append(f"{1e3 * measured[n, d]:.3g}" if (n, d) in measured else "")
        lines.append(f"| {d} | {n:,} | {' | '.join(cells)} | {limit} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measured", type=Path)
    parser.add_argument("--ptxas", type=Path, default=PTXAS)
    options = parser.parse_args(argv)
    report = json.loads(options.ptxas.read_text())
    print("Predicted milliseconds, H100 SXM, float32, channels_last, 3xTF32, no labels.\n")
    print(table(report, measured_seconds(options.measured)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
