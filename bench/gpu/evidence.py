"""Whether a run shows that the kernels are right, and the line for verified.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu.context import ROOT, Document

VERIFIED = ROOT / "sylvinit" / "backends" / "verified.json"


def verdict(document: Document) -> tuple[dict[str, str] | None, str]:
    """The line, or None and why there is none.

    Full tests and all tools of the sanitizer have passed, with the build of one csrc, on one GPU.
    """
    if document.get("dry_run"):
        return None, "a dry run is no evidence"
    steps = document.get("steps", {})
    for name in ("environment", "build", "tests", "sanitizer"):
        if steps.get(name, {}).get("status") != "ok":
            return None, f"step {name} is {steps.get(name, {}).get('status', 'missing')}"
    for name in ("tests", "sanitizer"):
        if steps[name]["results"].get("passed") is not True:
            return None, f"step {name} has not passed"
        if steps[name]["quick"]:
            return None, f"a quick run of step {name} leaves some out"
    machine, built = steps["environment"]["results"], steps["build"]["results"]
    if not built.get("csrc") or built["csrc"] != machine.get("csrc"):
        return None, "what was tested is not built from the sources that lie here"
    if not machine.get("gpu"):
        return None, "no GPU was found"
    return {"csrc": built["csrc"], "device": machine["gpu"], "date": machine["date"][:10]}, ""


def record(line: dict[str, str], folder: Path) -> None:
    """The lines of this tree and this one, as a new verified.json for it in a folder."""
    lines: list[Any] = json.loads(VERIFIED.read_text(encoding="utf-8"))
    if line not in lines:
        lines.append(line)
    (folder / VERIFIED.name).write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
