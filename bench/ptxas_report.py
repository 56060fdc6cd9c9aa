"""Registers, spills and shared memory of the CUDA kernels, from ptxas in the last build.

    python bench/ptxas_report.py [--check] [--out bench/results/ptxas.json]

Reads build/cuda/ptxas.json, which building the extension leaves (SYLVINIT_CUDA=1 pip install .).
With --check it fails where a kernel spills registers, or if the sources have changed since.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # last: sylvinit stays the one that is installed

from buildtools.compilation import FOLDER, csrc_hash  # noqa: E402

# Kernels that may spill, by name: and why.
MAY_SPILL: dict[str, str] = {}

COLUMNS = ("arch", "registers", "spill_stores", "spill_loads", "stack", "shared")


def table(report: dict[str, Any]) -> str:
    rows = [("kernel", *COLUMNS)]
    rows += [
        (row["kernel"], *(str(row[column]) for column in COLUMNS)) for row in report["kernels"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def problems(report: dict[str, Any], csrc: str) -> list[str]:
    """What --check fails for."""
    found: list[str] = []
    if report["csrc"] != csrc:
        found.append(f"the report is of csrc {report['csrc']}, the sources are {csrc}: build again")
    if not report["kernels"]:
        found.append("the report has no kernels")
    for row in report["kernels"]:
        spilled = row["spill_stores"] + row["spill_loads"]
        if spilled and row["kernel"] not in MAY_SPILL:
            found.append(f"{row['kernel']} spills {spilled} bytes a thread on {row['arch']}")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--report", type=Path, default=ROOT / FOLDER / "ptxas.json")
    arguments = parser.parse_args(argv)
    if not arguments.report.exists():
        sys.stderr.write(f"{arguments.report} does not exist: build with SYLVINIT_CUDA=1 first\n")
        return 2
    report = json.loads(arguments.report.read_text())
    print(f"csrc {report['csrc']}, nvcc {report['nvcc']}, {report['architectures']}")
    print(table(report))
    for message in report["messages"]:
        print(message)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    found = problems(report, csrc_hash(ROOT)) if arguments.check else []
    for problem in found:
        sys.stderr.write(f"error: {problem}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
