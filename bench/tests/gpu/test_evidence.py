"""When a run shows that the kernels work, and the line that is recorded then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gpu import evidence


def full(**changes: Any) -> dict[str, Any]:
    """A document of a run that passed, with changes to the results of its steps."""
    results: dict[str, dict[str, Any]] = {
        "environment": {"gpu": "NVIDIA H100", "csrc": "0123", "date": "2027-01-02T03:04:05+00:00"},
        "build": {"csrc": "0123"},
        "tests": {"passed": True},
        "sanitizer": {"passed": True},
    }
    for name, change in changes.items():
        results[name].update(change)
    steps = {
        name: {"status": "ok", "quick": False, "results": value} for name, value in results.items()
    }
    return {"dry_run": False, "steps": steps}


def quick(name: str) -> dict[str, Any]:
    document = full()
    document["steps"][name]["quick"] = True
    return document


def test_the_line_of_a_run_that_passed(tmp_path: Path) -> None:
    line, reason = evidence.verdict(full())
    assert line == {"csrc": "0123", "device": "NVIDIA H100", "date": "2027-01-02"}
    assert reason == ""
    evidence.record(line, tmp_path)
    before = json.loads(evidence.VERIFIED.read_text())
    assert json.loads((tmp_path / "verified.json").read_text()) == [*before, line]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({**full(), "dry_run": True}, "dry run"),
        (quick("tests"), "quick"),
        (quick("sanitizer"), "quick"),
        (full(tests={"passed": False}), "tests has not passed"),
        (full(sanitizer={"passed": False}), "sanitizer has not passed"),
        (full(sanitizer={"passed": None}), "sanitizer has not passed"),
        (full(build={"csrc": "4567"}), "not built from"),
        (full(build={"csrc": None}), "not built from"),
        (full(environment={"gpu": None}), "no GPU"),
        ({**full(), "steps": {}}, "environment is missing"),
    ],
)
def test_runs_that_show_nothing(document: dict[str, Any], reason: str) -> None:
    line, found = evidence.verdict(document)
    assert line is None
    assert reason in found
