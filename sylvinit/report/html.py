"""A report in a notebook. It takes the notebook's own colors, light or dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from sylvinit.report.table import COLUMNS, cells, choice, notes, reasons, summary

if TYPE_CHECKING:
    from sylvinit.report.record import Report

_NUMBERS = {"rows", "rank", "residual", "ms"}


def html(report: Report) -> str:
    """The table of what was written, and folded lists of the rest."""
    rows = [cells(layer) for layer in report.layers if layer.status != "skipped"]
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    head = "".join(_cell("th", name, name) for name in shown)
    body = "".join(
        f"<tr>{''.join(_cell('td', name, row.get(name, '')) for name in shown)}</tr>"
        for row in rows
    )
    left = reasons(report)
    found = notes(report, everything=True)
    return "".join(
        (
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
            f"<p>{escape(summary(report))}</p>",
            f"<p>{escape(choice(report))}</p>" if report.candidates else "",
            _folded(
                f"{sum(map(len, left.values()))} left alone",
                (f"{reason}: {', '.join(names)}" for reason, names in left.items()),
            ),
            _folded(
                f"{len(found)} notes",
                (f"{', '.join(names)}: {note}" for note, names in found.items()),
            ),
            _folded(f"{len(report.warnings)} warnings", report.warnings),
        )
    )


def _cell(tag: str, name: str, value: str) -> str:
    side = "right" if name in _NUMBERS else "left"
    return f'<{tag} style="text-align:{side}">{escape(value)}</{tag}>'


def _folded(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details><summary>{title}</summary><ul>{items}</ul></details>" if items else ""
