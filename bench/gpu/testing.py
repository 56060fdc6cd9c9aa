"""Step "tests": tests/gpu, a process for each file, counted from junit reports."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu.context import ROOT, Context
from gpu.processes import execute

FOLDER = ROOT / "tests" / "gpu"
LONGEST = 150.0  # seconds for one file


def run(context: Context) -> None:
    files = sorted(FOLDER.glob("test_*.py"))
    if context.dry:
        files = files[:1]
    env = {"SYLVINIT_GPU_EXAMPLES": "40"} if context.quick else {}
    for path in context.cases(files, need=10):
        limit = min(LONGEST, context.left())
        found = test_file(path, limit, env)
        context.row("files", "file passed failed skipped seconds", file=path.name, **found)
    rows = context.results.get("files", [])
    context.put(
        passed=all_passed(rows) and len(rows) == len(files),
        tests=sum(row["passed"] for row in rows),
    )


def all_passed(rows: list[dict[str, Any]]) -> bool:
    """Whether every file ran to its end, with tests that passed and none that failed."""
    return bool(rows) and all(
        row["ended"] and row["passed"] > 0 and row["failed"] == 0 for row in rows
    )


def test_file(path: Path, limit: float, env: dict[str, str]) -> dict[str, Any]:
    """Counts, failures, reasons of skips and recorded figures of one file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(path), "-vv", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", "-o", "faulthandler_timeout=100", "--durations=5"]
        done = execute(command, limit, env=env, cwd=ROOT)
        found = read_report(report.read_text()) if report.exists() else read_report("")
    found.update(ended=done.code in (0, 1), status=done.code, seconds=done.seconds)
    if done.code != 0:
        found["output"] = done.tail
    return found


def read_report(text: str) -> dict[str, Any]:
    """A junit report as counts; an empty text gives zeros."""
    failures: list[dict[str, str]] = []
    skips: dict[str, int] = {}
    figures: list[dict[str, str]] = []
    passed = 0
    for case in ElementTree.fromstring(text).iter("testcase") if text else ():
        bad = [item for item in case if item.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if bad:
            message = (bad[0].get("message") or "")[:300]
            failures.append({"test": case.get("name", ""), "message": message})
        elif skipped is not None:
            reason = skipped.get("message", "")
            skips[reason] = skips.get(reason, 0) + 1
        else:
            passed += 1
        for item in case.iter("property"):
            name, value = item.get("name", ""), item.get("value", "")
            figures.append({"test": case.get("name", ""), "figure": name, "value": value})
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": sum(skips.values()),
        "failures": failures,
        "skips": skips,
        "figures": figures,
    }
