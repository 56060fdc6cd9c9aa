"""Joining the results of several runs of the same sources on the same kind of GPU."""

from __future__ import annotations

from collections.abc import Sequence

from gpu.context import Document


def merge(documents: Sequence[Document]) -> Document:
    """One document; of a step that several have, the one that says most: complete before quick,
    without error before with one, later before earlier."""
    merged = documents[0]
    for document in documents[1:]:
        for key in ("format", "csrc", "dry_run", "device"):
            if document[key] != merged[key]:
                raise SystemExit(
                    f"results of different runs: {key} {merged[key]!r} and {document[key]!r}"
                )
        steps = dict(merged["steps"])
        for name, step in document["steps"].items():
            if name not in steps or _worth(step) >= _worth(steps[name]):
                steps[name] = step
        merged = {**document, "steps": steps}
    return merged


def _worth(step: Document) -> tuple[bool, bool]:
    return step["status"] == "ok", not step["quick"]
