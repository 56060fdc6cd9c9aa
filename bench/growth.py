"""How the time and memory of one layer grow with its features, rows, outputs and groups.

    python bench/growth.py [--quick] [--out bench/results/growth.json] [--plot docs/growth.png]

Each layer is solved by initialize_ (preset="best") in a process of its own, as the first layer of a
network, with the seconds that its report gives: moments and solution, without the forward pass.
Beside it stand the forward pass of the layer, and the floor of what any method does that needs the
leading eigenvectors of the moments: half of the products of the smaller Gram matrix (ssyrk) and its
reduction to tridiagonal form (dsytrd), by the BLAS and LAPACK of SciPy. Memory is the growth of the
resident set beyond model and data (Linux). The exponent p of time ~ d^p is between a row and the
one before it.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from scipy.linalg import blas, lapack
from torch import nn

import sylvinit

FEATURES = (27, 144, 288, 576, 1152, 2304, 4608)
# Sweeps: what is varied, and the layers (features, rows, outputs, groups).
SWEEPS: dict[str, list[tuple[int, int, int, int]]] = {
    "features, twice as many rows, an eighth of outputs": [(d, 2 * d, d // 8, 1) for d in FEATURES],
    "features, half as many rows, an eighth of outputs": [(d, d // 2, d // 8, 1) for d in FEATURES],
    "rows, 576 features, 64 outputs": [
        (576, n, 64, 1) for n in (144, 288, 575, 576, 577, 1152, 4608, 18432)
    ],
    "outputs, 1152 features, 2304 rows": [
        (1152, 2304, k, 1) for k in (18, 36, 72, 144, 288, 576, 1152)
    ],
    "groups of 9 features, 1000 rows, one output each": [
        (9, 1000, 1, g) for g in (1, 16, 64, 256, 1024)
    ],
}


def _seconds(call: Callable[[], Any], repeats: int = 2) -> float:
    times: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _peak(reset: bool) -> float:
    """MiB of the high-water mark, or of the present with a fresh mark."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _layer(d: int, k: int, groups: int) -> nn.Module:
    if groups == 1:
        return nn.Linear(d, k)
    return nn.Conv2d(groups, groups * k, 3, groups=groups)


def _initialize(model: nn.Module, x: torch.Tensor) -> float:
    report = sylvinit.initialize_(model, x, preset="best", patches="all", progress=False)
    return report.layers[0].seconds


def measure(d: int, n: int, k: int, groups: int) -> dict[str, float]:
    """Seconds and MiB of one layer."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    layer = _layer(d, max(k, 1), groups)
    x = torch.randn(n, d) if groups == 1 else torch.randn(n, groups, 3, 3)
    if groups == 1:  # spectra of activations decay
        x *= torch.arange(1, d + 1) ** -0.5
        x = x @ torch.linalg.qr(torch.randn(d, d))[0]
    model = nn.Sequential(layer)
    small = nn.Sequential(nn.Linear(8, 4))
    _initialize(small, torch.randn(40, 8))  # loads the libraries' kernels and thread pools
    before = _peak(reset=True)
    ours = _initialize(model, x)
    memory = _peak(reset=False) - before
    ours = min(ours, _initialize(model, x)) if ours < 2 else ours
    with torch.inference_mode():
        forward = _seconds(lambda: layer(x))
    small_side, long_side = sorted((d, n))
    rows = np.asfortranarray(np.random.default_rng(0).standard_normal((small_side, long_side)))
    rows = np.asfortranarray(rows, dtype=np.float32)
    square = np.random.default_rng(0).standard_normal((small_side, small_side))
    square = np.asfortranarray(square + square.T)
    work = int(lapack.dsytrd_lwork(small_side)[0])
    floor = _seconds(lambda: blas.ssyrk(1.0, rows))
    floor += _seconds(lambda: lapack.dsytrd(square, lwork=work), 1 if small_side > 2000 else 2)
    return {
        "seconds": ours,
        "forward": forward,
        "floor": groups * floor,
        "mib": memory,
    }


def _in_a_process(case: tuple[int, int, int, int]) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", *map(str, case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _exponent(before: dict[str, Any], after: dict[str, Any]) -> float:
    grown = [i for i in range(4) if before["case"][i] != after["case"][i]]
    ratio = after["case"][grown[0]] / before["case"][grown[0]]
    if ratio < 1.2:
        return math.nan  # too little to tell from noise
    return math.log(after["seconds"] / before["seconds"]) / math.log(ratio)


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Seconds against what is varied, beside floor and forward pass."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in results if results[name]]
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = results[name]
        varied = next(i for i in range(4) if len({row["case"][i] for row in rows}) > 1)
        x = [row["case"][varied] for row in rows]
        for key, style in (("seconds", "o-"), ("floor", "s--"), ("forward", "^:")):
            label = {"seconds": "sylvinit", "floor": "floor", "forward": "forward pass"}[key]
            axis.loglog(x, [row[key] for row in rows], style, label=label, markersize=4)
        axis.set_title(name.replace(", ", ",\n", 1), fontsize=8)
        axis.set_xlabel(name.split()[0].rstrip(","))
        axis.grid(True, which="major", alpha=0.3)
    axes[0][0].set_ylabel("seconds")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="up to 1152 features")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--case", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*arguments.case)))
        return
    results: dict[str, list[dict[str, Any]]] = {}
    for name, cases in SWEEPS.items():
        print(f"\n{name}\n   d      n     k  groups  seconds    floor  forward    MiB  exponent")
        rows = results[name] = []
        for case in cases:
            if arguments.quick and case[0] > 1152:
                continue
            row: dict[str, Any] = {"case": case, **_in_a_process(case)}
            if rows:
                row["exponent"] = _exponent(rows[-1], row)
            rows.append(row)
            print(
                "{:5d} {:6d} {:5d} {:6d} ".format(*case)
                + f"{row['seconds']:9.4f} {row['floor']:8.4f} {row['forward']:8.4f} "
                f"{row['mib']:7.1f} {row.get('exponent', math.nan):7.2f}",
                flush=True,
            )
        if arguments.out:
            stored = {"environment": environment(), "sweeps": results}
            arguments.out.write_text(json.dumps(stored, indent=2) + "\n")
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
