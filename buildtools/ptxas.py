"""Registers, spills and shared memory of every kernel, as ptxas reports them."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

_PROPERTIES = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
_KERNEL = re.compile(r"ptxas info\s*: Compiling entry function '(.+)' for '(.+)'")
_SILENT = re.compile(r"ptxas info\s*: (\d+ bytes gmem|Function properties for|Compile time)|\s*$")


def report(log: str) -> dict[str, Any]:
    """What -Xptxas -v printed: a row for each kernel and architecture, and all other messages.

    Spills and stack are in bytes a thread and include the functions that a kernel calls; shared
    memory is in bytes a block.
    """
    kernels: list[dict[str, Any]] = []
    messages: list[str] = []
    for line in log.splitlines():
        if found := _KERNEL.match(line):
            row = {"kernel": found[1], "arch": found[2], "registers": 0, "spill_stores": 0}
            kernels.append({**row, "spill_loads": 0, "stack": 0, "shared": 0})
        elif kernels and (found := _PROPERTIES.search(line)):
            for key, value in zip(
                ("stack", "spill_stores", "spill_loads"), found.groups(), strict=True
            ):
                kernels[-1][key] += int(value)
        elif kernels and (found := _USED.match(line)):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[-1].update(registers=int(found[1]), shared=int(shared[1]) if shared else 0)
        elif not _SILENT.match(line):
            messages.append(line)
    names = _demangled([row["kernel"] for row in kernels])
    for row, name in zip(kernels, names, strict=True):
        row["kernel"] = name
    kernels.sort(key=lambda row: (row["kernel"], row["arch"]))
    return {"kernels": kernels, "messages": messages}


def _demangled(names: list[str]) -> list[str]:
    """Names without parameters, where there is a program for that."""
    program = shutil.which("cu++filt") or shutil.which("c++filt")
    if not program or not names:
        return names
    command = [program, "-p"]
    answer = subprocess.run(command, input="\n".join(names), capture_output=True, text=True)
    lines = answer.stdout.splitlines()
    return lines if answer.returncode == 0 and len(lines) == len(names) else names
