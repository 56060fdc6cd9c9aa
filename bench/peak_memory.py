"""Peak memory of initialize_ beside that of one forward pass of the whole set.

    python bench/peak_memory.py [--samples 1000] [--out bench/results/peak_memory.json]

Each measurement runs in a process of its own; its figure is the growth of the resident set over
what it was when model and data were ready (Linux).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from environment import environment

import sylvinit
from sylvinit.demo.networks import resnet20

MODES = ("forward, one batch", "forward, microbatches", "initialize_", "initialize_, recompute")


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(mode: str, samples: int) -> float:
    """MiB that the mode needs at its peak beyond model and data."""
    warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
    torch.manual_seed(0)
    model = resnet20().eval()
    images = torch.randn(samples, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(samples) % 10
    # Loads the libraries' kernels and thread pools, which would otherwise count.
    sylvinit.initialize_(model, (images[:20].clone(), labels[:20]), preset="best")
    # A fresh high-water mark; ru_maxrss cannot be reset, VmHWM can.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_mib()
    if mode.startswith("forward"):
        size = samples if mode.endswith("one batch") else 128
        with torch.inference_mode():
            for part in images.split(size):
                model(part)
    else:
        storage = "recompute" if mode.endswith("recompute") else "memory"
        sylvinit.initialize_(model, (images, labels), preset="best", storage=storage)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return peak - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        print(measure(arguments.mode, arguments.samples))
        return
    peaks: dict[str, float] = {}
    for mode in MODES:
        command = [sys.executable, __file__, "--mode", mode, "--samples", str(arguments.samples)]
        runs = [
            float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(3)
        ]
        peaks[mode] = sorted(runs)[1]
        ratio = peaks[mode] / peaks[MODES[0]]
        print(f"{mode:24s} {peaks[mode]:8.1f} MiB   {ratio:5.2f} x")
    if arguments.out:
        result = {"environment": environment(), "samples": arguments.samples, "peak_mib": peaks}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
