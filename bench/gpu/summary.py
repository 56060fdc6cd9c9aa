"""The short table at the end."""

from __future__ import annotations

from typing import Any

from gpu.context import Document
from gpu.evidence import verdict


def lines(document: Document) -> list[str]:
    """Steps, targets and whether the sources count as verified."""
    found = [f"{document['device']}, csrc {document['csrc']}, {document['date']}", ""]
    for name, step in document["steps"].items():
        found.append(f"{name:12s} {step['status']:9s} {step['seconds']:6.1f} s  {_of_step(step)}")
    targets = all_targets(document)
    if targets:
        met = sum(target["met"] for target in targets)
        found += ["", f"{met} of {len(targets)} targets met"]
        found += [
            f"  {'met   ' if t['met'] else 'MISSED'} {t['value']:9.3g}  {t['target']}"
            for t in targets
        ]
    line, reason = verdict(document)
    found += [
        "",
        f"for sylvinit/backends/verified.json: {line}" if line else f"not verified: {reason}",
    ]
    return found


def all_targets(document: Document) -> list[dict[str, Any]]:
    """Of all steps, in order."""
    return [
        target
        for step in document["steps"].values()
        for target in step["results"].get("targets", [])
    ]


def _of_step(step: dict[str, Any]) -> str:
    results, parts = step["results"], []
    if step["error"]:
        parts.append(step["error"].strip().splitlines()[-1][:150])
    for row in results.get("files", []):
        counts = f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"
        parts.append(f"{row['file']}: {counts}")
        parts += [f"{item['test']}: {item['message'][:100]}" for item in row["failures"][:5]]
    for row in results.get("tools", []):
        parts.append(f"{row['tool']}: {'passed' if row['passed'] else 'FAILED'} {row['summary']}")
    if results.get("skipped"):
        parts.append(str(results["skipped"]))
    if results.get("kernels_that_spill"):
        parts.append(f"{results['kernels_that_spill']} kernels spill")
    for failure in results.get("failures", [])[:5]:
        parts.append(f"{failure['case']}: {failure['error'][:150]}")
    left_out = len(results.get("out of time", []))
    if left_out:
        parts.append(f"{left_out} cases left out for lack of time")
    return ("\n" + " " * 31).join(parts)
