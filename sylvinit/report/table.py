"""The text of a report: a table of at most ``WIDTH`` columns, and what is said below it."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sylvinit.report.record import LayerReport, Report

WIDTH = 100

COLUMNS = ("layer", "kind", "code", "size", "rows", "rank", "residual", "std", "ms")
_RIGHT = {"rows", "rank", "residual", "ms"}
_GAP = "  "
# What gives way in a table that is too wide, in this order, and how far.
_SHORTENED = (("layer", 16), ("kind", 8), ("code", 8), ("layer", 6))
_NAMED = 3  # layers of one reason or note that are named
_NOTES = 8  # kinds of notes that are shown


def text(report: Report, *, everything: bool) -> str:
    """The table and, below it, what was left alone, notes and warnings."""
    shown = [layer for layer in report.layers if everything or layer.status != "skipped"]
    blocks = [_table(shown), *_wrapped(summary(report)), *_wrapped(choice(report))]
    if not everything:
        for reason, names in reasons(report).items():
            blocks += _wrapped(f"{len(names)} left alone: {reason}{_named(names)}", "  ")
    found = list(notes(report, everything=everything).items())
    kept = found if everything else found[:_NOTES]
    for note, names in kept:
        blocks += _wrapped(f"{_listed(names, everything)}: {note}", "  ")
    if len(kept) < len(found):
        blocks += _wrapped(f"{len(found) - len(kept)} more kinds of notes: table(all=True)", "  ")
    for warning in report.warnings:
        blocks += _wrapped(f"warning: {warning}")
    return "\n".join(block for block in blocks if block)


def summary(report: Report) -> str:
    """One line on the whole call."""

    def count(status: str) -> int:
        return sum(layer.status == status for layer in report.layers)

    skipped = f"{count('skipped')} left alone"
    if count("planned"):
        return f"dry run: {count('planned')} layers would be initialized, {skipped}"
    if count("drawn"):
        drawn = f"{count('drawn')} layers drawn"
        correlated = sum(layer.code == "correlated" for layer in report.layers)
        given = f"R: {report.settings.get('corr')}, strength {report.settings.get('strength'):g}"
        return f"{drawn}, {correlated} with correlated filters, {skipped}; {given}"
    return (
        f"{count('solved')} layers solved, {count('calibrated')} normalizations "
        f"calibrated, {skipped}; {report.samples} samples, {report.seconds:.2f} s"
    )


def choice(report: Report) -> str:
    """What preset "auto" chose, and by which numbers; empty without a choice."""
    if not report.candidates:
        return ""
    chosen = next((x.name for x in report.candidates if x.chosen), None)
    if chosen is None:
        return f"the start would be chosen of: {'; '.join(x.name for x in report.candidates)}"
    scores = (
        (x.name, "" if math.isnan(x.error) else f"{x.error:.3f}", x.reason)
        for x in report.candidates
    )
    listed = "; ".join(
        " ".join(filter(None, (name, score))) + (f", {reason}" if reason else "")
        for name, score, reason in scores
    )
    scored = any(not math.isnan(x.error) for x in report.candidates)
    how = "by the held-out error of a head" if scored else "by a rule"
    return f"start: {chosen}, {how} ({listed})"


def reasons(report: Report) -> dict[str, list[str]]:
    """Why layers were left alone, and the names of those for each reason."""
    found: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.status == "skipped":
            found.setdefault(layer.reason, []).append(layer.title)
    return found


def notes(report: Report, *, everything: bool) -> dict[str, list[str]]:
    """Notes and the names of the layers that have them.

    Unless ``everything`` is asked for, those that differ in numbers only are one, the first.
    """
    found: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for layer in report.layers:
        for note in layer.notes:
            alike = note if everything else re.sub(r"\d+", "#", note)
            found.setdefault(first.setdefault(alike, note), []).append(layer.title)
    return found


def cells(layer: LayerReport) -> dict[str, str]:
    """The texts of a row, without those that are empty."""
    row = {"layer": layer.title, "kind": layer.kind}
    if layer.status == "skipped":
        return row | {"code": f"skipped: {layer.reason}"}
    groups = f"{layer.groups} x " if layer.groups > 1 else ""
    std = "" if math.isnan(layer.std_after) else f"{layer.std_before:.2g} -> {layer.std_after:.2g}"
    row |= {
        "code": layer.code or ("statistics" if layer.status == "calibrated" else ""),
        "size": f"{groups}{layer.d_in} -> {layer.d_out}" if layer.d_in else "",
        "rows": _count(layer.rows),
        "rank": str(layer.rank or ""),
        "residual": "" if math.isnan(layer.residual) else f"{layer.residual:.0e}",
        "std": std,
        "ms": f"{layer.seconds * 1e3:.1f}" if layer.seconds else "",
    }
    return {name: value for name, value in row.items() if value}


def _table(layers: Sequence[LayerReport]) -> str:
    """Empty without layers."""
    if not layers:
        return ""
    rows = [cells(layer) for layer in layers]
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    skipped = [layer.status == "skipped" for layer in layers]
    # What is said of a skipped layer runs over the columns behind its kind.
    width = {
        name: max(
            len("" if alone and name == "code" else row.get(name, ""))
            for row, alone in zip([{name: name}, *rows], [False, *skipped], strict=True)
        )
        for name in shown
    }
    for name, least in _SHORTENED:
        excess = sum(width.values()) + len(_GAP) * (len(shown) - 1) - WIDTH
        if excess > 0 and name in width:
            width[name] = max(width[name] - excess, min(least, width[name]))
    lines = [_line({name: name for name in shown}, shown, width)]
    lines.append("-" * len(lines[0]))
    for row, alone in zip(rows, skipped, strict=True):
        if alone:
            start = _line(
                row, [name for name in ("layer", "kind") if name in shown], width, pad=True
            )
            room = max(WIDTH - len(start) - len(_GAP), 8)
            lines.append(f"{start}{_GAP}{_cut(row['code'], room)}")
        else:
            lines.append(_line(row, shown, width))
    return "\n".join(lines)


def _line(
    row: dict[str, str], shown: Sequence[str], width: dict[str, int], *, pad: bool = False
) -> str:
    parts = []
    for name in shown:
        value = row.get(name, "")
        value = _cut(value, width[name], left=name == "layer")
        parts.append(value.rjust(width[name]) if name in _RIGHT else value.ljust(width[name]))
    line = _GAP.join(parts)
    return line if pad else line.rstrip()


def _cut(value: str, width: int, *, left: bool = False) -> str:
    """A text of at most ``width`` characters; the ends of names tell more than their beginnings."""
    if len(value) <= width:
        return value
    return "..." + value[3 - width :] if left else value[: width - 3] + "..."


def _count(number: int) -> str:
    """Up to six characters: 12345, 123.5k."""
    if number < 100_000:
        return str(number or "")
    unit, size = next((u, s) for u, s in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if number >= s)
    return f"{number / size:.4g}{unit}"


def _listed(names: Sequence[str], everything: bool) -> str:
    shown = names if everything else names[:_NAMED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if len(names) <= _NAMED else ""


def _wrapped(line: str, indent: str = "") -> Iterable[str]:
    return textwrap.wrap(
        line,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    )
