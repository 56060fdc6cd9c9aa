"""The page of the panel in Markdown, from the stored results alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.analysis import Comparison, estimate
from experiments.store import Results

from panel.arms import BEST, OWN
from panel.pairs import TEST_SEEDS, Pair, amount
from panel.plan import PROTOCOLS, USER, read
from panel.seconds import Seconds
from panel.seconds import read as read_seconds
from panel.summary import (
    SIGNIFICANT,
    By,
    Criterion,
    Row,
    by_pair,
    criteria,
    later_mean,
    rows,
)

_ABOUT = """
Written by `python bench/panel table`: do not edit. Test accuracy in per cent, of tables R2 and of
label maps mean intersection over union in points; means of {seeds} seeds. All arms of a seed have
the same samples, the same random weights and the same batches. Differences are paired, ± half the
width of the 95 % interval (Student's t over seeds); p is adjusted by Holm's method for all cells of
a table, and bold where it is below {level}. Rates are chosen among three on samples that are
neither trained on nor tested on; several in one cell are those of the arms, in their order. Shots
are training samples of each class, of label maps in all, of tables the share of the rows.

[How preset auto chooses](auto.md) has the rule. Its constants were chosen with the first two seeds
of the first pairs, its exception for networks that read windows with all seeds of theirs at the
rate of the own start, and with other images.
"""
_LATER = """Added after that: {later}. Their mean difference, at the rate that suits the own start,
is {mean:+.2f}.
"""


def page(pairs: Sequence[Pair], folder: Path, arm: str) -> str:
    """The whole page.

    Args:
        pairs: a row for each of their cells.
        folder: of the results.
        arm: the one that has to pass.
    """
    records = read(pairs, folder)
    cells = [cell for pair in pairs for cell in pair.cells]
    found = {protocol: rows(cells, records, arm, protocol) for protocol in PROTOCOLS}
    seconds = read_seconds(folder)
    title = f"# The panel: {arm} beside the network's own start"
    lines = [title, "", *verdict(found, arm, seconds)]
    lines += [_ABOUT.format(level=SIGNIFICANT, seeds=len(TEST_SEEDS))]
    later, mean = "; ".join(pair.title for pair in pairs if pair.later), later_mean(found[USER])
    if not math.isnan(mean):
        lines += [_LATER.format(later=later, mean=mean)]
    for protocol, title in PROTOCOLS.items():
        lines += [f"## After training, at {title}", "", *_after(found[protocol], arm), ""]
    lines += [
        "## Before training",
        "",
        *_before(found[USER], arm, seconds),
        "",
        *_environments(pairs, folder),
    ]
    return "\n".join(lines) + "\n"


def in_short(found: Sequence[Row], arm: str) -> str:
    """A table with a row for each pair."""
    header = ["network / data", "own start", arm, "difference", "significant"]
    lines = _head(header)
    for row in by_pair(found, arm):
        yes = "yes" if row.p < SIGNIFICANT else "no"
        lines.append(_line([row.title, f"{row.own:.1f}", f"{row.arm:.1f}", _gap(row.gap), yes]))
    return "\n".join(lines)


def verdict(found: dict[str, list[Row]], arm: str, seconds: Seconds) -> list[str]:
    """What is missed, what is not known, and what is met, in this order."""
    every: list[tuple[str, Criterion]] = [
        (PROTOCOLS[protocol], item)
        for protocol, table in found.items()
        for item in criteria(table, arm, seconds)
    ]
    lines: list[str] = []
    for protocol, table in found.items():
        complete = sum(row.complete for row in table)
        if complete < len(table):
            lines.append(
                f"- **not complete**, at {PROTOCOLS[protocol]}: {complete} of {len(table)} cells "
                "have all seeds"
            )
    for met, label in ((False, "**missed**"), (None, "**not known**"), (True, "met")):
        lines += [f"- {label}, at {title}: {item.text}" for title, item in every if item.met is met]
    return lines


def _after(found: Sequence[Row], arm: str) -> list[str]:
    names = _names(arm)
    header = ["network / data", "shots", "optimizer", "rate", *names]
    header += [f"{name} - own" + (", p" if name == arm else "") for name in names[:0:-1]]
    lines = _head(header)
    for row in found:
        cells = [row.cell.pair.title, amount(row.cell.shots), row.cell.optimizer]
        cells += [_rates(row, names), *(_mean(row.runs[name], "after") for name in names)]
        cells.append(_gap(row.gap, row.p))
        cells += [_gap(row.best)] if arm != BEST else []
        lines.append(_line(cells))
    return lines


def _before(found: Sequence[Row], arm: str, seconds: Seconds) -> list[str]:
    """Optimizers have the same starts: the rows of the first one will do."""
    names = _names(arm)
    lines = _head(["network / data", "shots", *names, "seconds", "choices"])
    seen: set[tuple[str, int | float]] = set()
    for row in found:
        place = row.cell.pair.title, row.cell.shots
        if place in seen:
            continue
        seen.add(place)
        cells = [place[0], amount(place[1])]
        cells += [_mean(row.runs[name], "before") for name in names]
        of_pair = seconds.get(place[0], {}) if place[1] == list(row.cell.pair.updates)[-1] else {}
        timed = [f"{of_pair[name]:.2f}" for name in names if name in of_pair]
        lines.append(_line([*cells, ", ".join(timed) or "-", _choices(row.runs[arm])]))
    shown = " and ".join(names[1:])
    lines += ["", f"Seconds (of one processor, one after the other) are those of {shown}."]
    return lines


def _names(arm: str) -> list[str]:
    return list(dict.fromkeys((OWN, BEST, arm)))


def _rates(row: Row, names: Iterable[str]) -> str:
    """The rate, or those of the arms where they differ."""
    rates = ["-" if row.rates[name] is None else f"{row.rates[name]:g}" for name in names]
    return rates[0] if len(set(rates)) == 1 else ", ".join(rates)


def _mean(runs: By, field: str) -> str:
    if not runs:
        return "-"
    return f"{estimate([line[field] for line in runs.values()]).mean:.1f}"


def _choices(runs: By) -> str:
    counts = Counter(str(line["choice"]) for line in runs.values() if "choice" in line)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "-"


def _gap(found: Comparison | None, p: float | None = None) -> str:
    if found is None:
        return "-"
    gap = found.gap
    text = f"{gap.mean:+.1f}" + ("" if math.isnan(gap.half) else f" ± {gap.half:.1f}")
    if gap.count < len(TEST_SEEDS):
        text += f" {{{gap.count} seeds}}"
    if p is None or math.isnan(p):
        return text
    text += f", p = {p:.2g}"
    return f"**{text}**" if p < SIGNIFICANT else text


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|---" * len(names) + "|"]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _environments(pairs: Sequence[Pair], folder: Path) -> list[str]:
    """A line for each environment, with the commits of the code that ran there."""
    commits: dict[str, set[str]] = {}
    for pair in pairs:
        for item in Results(pair.slug, folder).environments().values():
            line = f"torch {item['torch']}, Python {item['python']}, {item['cpu']}"
            line += f", {item['threads']} thread(s) a run"
            commits.setdefault(line, set()).add(f"{item['sylvinit']} ({item['commit']})")
    return [f"Environment: {line}; sylvinit {', '.join(sorted(x))}." for line, x in commits.items()]
