"""What the stored results say: paired differences of every cell, and what a default has to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from experiments.analysis import Comparison, compare, holm

from panel.arms import BEST, OWN
from panel.pairs import TEST_SEEDS, Cell, Run
from panel.plan import Records, protocol_rate
from panel.seconds import Seconds

SIGNIFICANT = 0.05
LOWEST_INTERVAL = -1.0  # points that no cell's interval may lie wholly below
KEPT = 0.5  # share of the gains of "best"
SECONDS = 2.0  # times those of "best"
By = Mapping[int, Mapping[str, Any]]  # records by seed


@dataclass(frozen=True)
class Row:
    """A cell under a protocol.

    Attributes:
        rates: of every arm, None where it is not known.
        runs: records of every arm by seed.
        gap: the arm that has to pass minus the own start.
        p: of this difference, adjusted for all cells; NaN where it is not known.
        best: "best" minus the own start.
    """

    cell: Cell
    rates: Mapping[str, float | None]
    runs: Mapping[str, By]
    gap: Comparison | None
    p: float
    best: Comparison | None

    @property
    def complete(self) -> bool:
        """Whether all seeds are there."""
        return self.gap is not None and self.gap.gap.count == len(TEST_SEEDS)

    @property
    def significantly_below(self) -> bool:
        """Whether the arm is, after correction."""
        return self.gap is not None and self.gap.gap.mean < 0 and self.p < SIGNIFICANT

    @property
    def interval_too_low(self) -> bool:
        """Whether the whole interval is below -1."""
        if self.gap is None:
            return False
        return self.gap.gap.mean + self.gap.gap.half < LOWEST_INTERVAL


@dataclass(frozen=True)
class Criterion:
    """One thing that a default has to show; ``met`` is None where nothing is known."""

    met: bool | None
    text: str


def rows(cells: Sequence[Cell], records: Records, arm: str, protocol: str) -> list[Row]:
    """A row for each cell. Holm's correction is for all of them, those without results included."""
    found: list[Row] = []
    for cell in cells:
        rates = {name: protocol_rate(cell, name, protocol, records) for name in (OWN, BEST, arm)}
        runs = {name: _by_seed(cell, name, rate, records) for name, rate in rates.items()}
        gap, best = (_gap(runs[name], runs[OWN]) for name in (arm, BEST))
        found.append(Row(cell, rates, runs, gap, math.nan, best))
    known = [math.nan if row.gap is None else row.gap.p for row in found]
    adjusted = holm(known, family=len(found))
    return [replace(row, p=p) for row, p in zip(found, adjusted, strict=True)]


def criteria(found: Sequence[Row], arm: str, seconds: Seconds) -> list[Criterion]:
    """What the rows of one protocol show, and how long initializations take."""
    known = [row for row in found if row.gap is not None]
    if not known:
        return [Criterion(None, f"no cell has results of {arm} and of the own start")]
    below = [row for row in known if row.significantly_below]
    low = [row for row in known if row.interval_too_low]
    by_pair: dict[str, list[float]] = {}
    for row in known:
        if row.gap is not None:
            by_pair.setdefault(row.cell.pair.title, []).append(row.gap.gap.mean)
    gains = [value for values in by_pair.values() for value in values]
    mean = fmean(gains)
    of_pairs = fmean(map(fmean, by_pair.values()))
    return [
        Criterion(not below, f"cells significantly below the own start: {_names(below)}"),
        Criterion(not low, f"cells whose 95 % interval is wholly below -1: {_names(low)}"),
        Criterion(
            mean > 0,
            f"mean difference over {len(known)} cells: {mean:+.2f}, median {median(gains):+.2f} "
            f"(mean, each of {len(by_pair)} pairs counted once: {of_pairs:+.2f})",
        ),
        _kept(known, arm),
        _seconds(seconds, arm),
    ]


def later_mean(found: Sequence[Row]) -> float:
    """Mean difference to the own start over pairs that the rule was not chosen on; NaN: none."""
    gaps = [row.gap.gap.mean for row in found if row.gap is not None and row.cell.pair.later]
    return fmean(gaps) if gaps else math.nan


@dataclass(frozen=True)
class PairRow:
    """All cells of a pair as one, each counted alike.

    Attributes:
        own, arm: means over seeds and cells.
        gap: their difference, paired over the seeds that all cells have.
        p: adjusted for all pairs.
    """

    title: str
    own: float
    arm: float
    gap: Comparison
    p: float


def by_pair(found: Sequence[Row], arm: str) -> list[PairRow]:
    """A row for each pair whose cells have common seeds."""
    pairs: dict[str, list[Row]] = {}
    for row in found:
        pairs.setdefault(row.cell.pair.title, []).append(row)
    known: list[PairRow] = []
    for title, cells in pairs.items():
        seeds = set.intersection(*({*x.runs[OWN]} & {*x.runs[arm]} for x in cells))
        own, ours = (
            {seed: fmean(x.runs[name][seed]["after"] for x in cells) for seed in seeds}
            for name in (OWN, arm)
        )
        gap = compare(ours, own)
        if gap is not None:
            known.append(PairRow(title, fmean(own.values()), fmean(ours.values()), gap, gap.p))
    adjusted = holm([row.p for row in known], family=len(pairs))
    return [replace(row, p=p) for row, p in zip(known, adjusted, strict=True)]


def winning(found: Sequence[Row]) -> list[Row]:
    """The rows of a pair and shots at which "best" is ahead with every optimizer."""
    gains: dict[tuple[str, int | float], list[float]] = {}
    for row in found:
        gain = math.nan if row.best is None else row.best.gap.mean
        gains.setdefault((row.cell.pair.title, row.cell.shots), []).append(gain)
    won = {place for place, values in gains.items() if min(values) > 0 and len(values) > 1}
    return [row for row in found if (row.cell.pair.title, row.cell.shots) in won]


def _kept(known: Sequence[Row], arm: str) -> Criterion:
    won = winning(known)
    best = sum(row.best.gap.mean for row in won if row.best is not None)
    if not won:
        return Criterion(None, "best is ahead with both optimizers nowhere")
    kept = sum(row.gap.gap.mean for row in won if row.gap is not None) / best
    text = f"share of the gains of best that {arm} keeps where best is ahead with both optimizers"
    return Criterion(kept >= KEPT, f"{text} ({len(won)} cells): {kept:.2f}, at least {KEPT}")


def _seconds(seconds: Seconds, arm: str) -> Criterion:
    shares = {
        title: of_pair[arm] / of_pair[BEST]
        for title, of_pair in seconds.items()
        if {arm, BEST} <= of_pair.keys()
    }
    if not shares:
        return Criterion(None, "seconds of initialization: not measured")
    worst = max(shares, key=lambda title: shares[title])
    text = f"seconds of initialization, {arm} / best: median of pairs {median(shares.values()):.2f}"
    return Criterion(
        shares[worst] <= SECONDS, f"{text}, most {shares[worst]:.2f} ({worst}), at most {SECONDS}"
    )


def _names(found: Sequence[Row]) -> str:
    return "; ".join(str(row.cell) for row in found) or "none"


def _by_seed(cell: Cell, arm: str, rate: float | None, records: Records) -> By:
    if rate is None:
        return {}
    keys = {seed: Run(cell, arm, seed, rate, "test").key for seed in TEST_SEEDS}
    return {seed: records[key] for seed, key in keys.items() if key in records}


def _gap(first: By, second: By) -> Comparison | None:
    return compare(*({seed: line["after"] for seed, line in by.items()} for by in (first, second)))
