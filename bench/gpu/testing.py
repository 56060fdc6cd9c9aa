"""Step "tests": tests/gpu, a process for each file, several at a time.

Results are read from what pytest prints for each test as it ends, so that they count where the
limit of time ends a file; messages and recorded figures come from its junit report.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu.context import ROOT, Context
from gpu.processes import execute

FOLDER = ROOT / "tests" / "gpu"
# What matters most first, for machines of few cores.
ORDER = ("patch_gram", "spectral", "initialize", "patch_gram_limits")
AT_A_TIME = 4
_ENDED = re.compile(r"^\S+\.py::(.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] \S+: (.*)")
_SUMMARY = re.compile(r"^(?:FAILED|ERROR) \S+\.py::(.+?) - (.*)")


def run(context: Context) -> None:
    names = [f"test_{name}_gpu.py" for name in ORDER]
    others = sorted(path.name for path in FOLDER.glob("test_*.py") if path.name not in names)
    files = [FOLDER / name for name in [*names, *others]]
    env = {"SYLVINIT_GPU_EXAMPLES": "40"} if context.quick else {}
    with ThreadPoolExecutor(min(AT_A_TIME, os.cpu_count() or 1)) as pool:
        running = [pool.submit(test_file, path, context.left, env) for path in files]
        for path, future in zip(files, running, strict=True):
            shown = "file passed failed skipped ended seconds"
            context.row("files", shown, file=path.name, **future.result())
    rows = context.results["files"]
    context.put(passed=all_passed(rows), tests=sum(row["passed"] for row in rows))


def all_passed(rows: list[dict[str, Any]]) -> bool:
    """Whether every file ran to its end, with tests that passed and none that failed."""
    return bool(rows) and all(
        row["ended"] and row["passed"] > 0 and row["failed"] == 0 for row in rows
    )


def test_file(path: Path, left: Any, env: dict[str, str]) -> dict[str, Any]:
    """Counts, failures, reasons of skips and recorded figures of one file.

    ``left()`` are the seconds that it has when it begins.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(path),
            "-vv",
            "-rs",
            "-p",
            "no:cacheprovider",
        ]
        command += [f"--junitxml={report}", "-o", "faulthandler_timeout=100", "--durations=5"]
        done = execute(command, left(), env=env, cwd=ROOT)
        found = read_lines(done.output)
        if report.exists():
            figures, messages = read_report(report.read_text())
            found["figures"] = figures
            for failure in found["failures"]:
                failure["message"] = messages.get(failure["test"], failure["message"])
    found.update(ended=done.code in (0, 1), status=done.code, seconds=done.seconds)
    if done.code != 0:
        found["output"] = done.tail
    return found


def read_lines(text: str) -> dict[str, Any]:
    """The results of the tests that have ended, from the lines of pytest -vv."""
    lines = text.splitlines()
    ended = [found.groups() for line in lines if (found := _ENDED.match(line))]
    counts = Counter(result for _, result in ended)
    why = dict(found.groups() for line in lines if (found := _SUMMARY.match(line)))
    bad = [name for name, result in ended if result in ("FAILED", "ERROR", "XPASS")]
    skips = [found.groups() for line in lines if (found := _SKIPPED.match(line))]
    return {
        "passed": counts["PASSED"] + counts["XFAIL"],
        "failed": len(bad),
        "skipped": counts["SKIPPED"],
        "failures": [{"test": name, "message": why.get(name, "")[:300]} for name in bad],
        "skips": {reason: int(count) for count, reason in skips},
        "figures": [],
    }


def read_report(text: str) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Recorded figures, and the messages of failures by test, of a junit report."""
    figures: list[dict[str, str]] = []
    messages: dict[str, str] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = case.get("name", "")
        for item in case:
            if item.tag in ("failure", "error"):
                messages[name] = (item.get("message") or "")[:300]
        for item in case.iter("property"):
            value = {"figure": item.get("name", ""), "value": item.get("value", "")}
            figures.append({"test": name, **value})
    return figures, messages
