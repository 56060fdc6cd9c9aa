"""The physical floor of a Gram matrix: counted operations and bytes over measured ceilings.

Of n patches x in R^d, with z = (x - shift, 1) and D = d + 1, the upper triangle of sum z z^T takes

    multiply-adds   n D (D + 1) / 2
    bytes           what is read of the activation, once: n d numbers, or all of it if that is less
                    the float64 triangle, read and written: 8 D (D + 1)

and no time is less than flops / rate or bytes / bandwidth. 3xTF32 takes three products of TF32 for
each, so its rate is a third of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """What a Gram matrix takes at least."""

    multiply_adds: int
    bytes: int


def gram_work(n: int, d: int, activation_numbers: int, itemsize: int) -> Work:
    """Of n patches of length d from an activation of that many numbers."""
    columns = d + 1
    triangle = columns * (columns + 1) // 2
    read = min(n * d, activation_numbers) * itemsize
    return Work(n * triangle, read + 16 * triangle)


# Products of the tensor cores, or of the float32 units, for each multiply-add.
UNITS = {"3xtf32": ("tf32", 3), "tf32": ("tf32", 1), "ffma": ("float32", 1)}


def floor_seconds(work: Work, arithmetic: str, ceilings: dict[str, Any]) -> dict[str, Any]:
    """The least time, what limits it, and both terms; None where a ceiling was not measured."""
    unit, products = UNITS[arithmetic]
    rate, bandwidth = ceilings.get(f"{unit}_flops"), ceilings.get("copy_bytes_per_s")
    if not rate or not bandwidth:
        return {"floor_s": None, "floor_is": "unknown: no ceilings were measured"}
    compute = 2 * work.multiply_adds * products / rate
    memory = work.bytes / bandwidth
    return {
        "floor_s": max(compute, memory),
        "floor_is": "arithmetic" if compute >= memory else "bytes",
        "arithmetic_s": compute,
        "bytes_s": memory,
    }
