"""The list of sections at the top of the report: of which paper, and how much there is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from measures import Measured


def contents(results: Sequence[Measured]) -> str:
    """A row for each section, in their order.

    Raises:
        ValueError: two have one title, and a link would lead to the first of them.
    """
    titles = [item.config.title for item in results]
    if len(set(titles)) < len(titles):
        raise ValueError(f"expected different titles, got {sorted(titles)}")
    lines = [
        "The sections, what they repeat or follow (paper 1: Das, Bhalgat and Porikli;",
        "paper 2: Schneider), and how many of their runs are done:",
        "",
        "| section | table or figure | runs done |",
        "|---|---|---|",
    ]
    for item in results:
        config = item.config
        link = f"[{config.title}](#{anchor(config.title)})"
        lines.append(f"| {link} | {config.paper} | {_progress(item)} |")
    return "\n".join([*lines, ""])


def by_paper(results: Sequence[Measured]) -> list[Measured]:
    """Those after the first paper, those after the second, and the others."""
    return sorted(results, key=lambda item: _paper(item.config.paper))


def anchor(title: str) -> str:
    """What GitHub makes of a heading, so that it can be linked to."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _paper(text: str) -> int:
    """1 and 2 for what repeats or follows these papers, 3 for the rest."""
    found = re.match(r"(?:after )?paper ([12])", text)
    return int(found[1]) if found else 3


def _progress(item: Measured) -> str:
    config = item.config
    done = sum(len(records) for records in item.records.values())
    count = sum(len(config.cell_seeds(cell)) for cell in config.cells) * len(config.arms)
    return f"all {count}" if done == count else f"{done} of {count}"
