"""Which runs there are, in which order, and the rates that validation samples have chosen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.store import Results

from panel.arms import OWN
from panel.pairs import CHOICE_SEEDS, Cell, Pair, Run

FOLDER = Path(__file__).resolve().parent.parent / "results" / "panel"
USER, EACH = "user", "each"
# Whose rate an arm is trained at.
PROTOCOLS = {
    USER: "the rate that suits the own start",
    EACH: "the rate that suits each arm",
}
Records = Mapping[str, Mapping[str, Any]]


def read(pairs: Sequence[Pair], folder: Path) -> dict[str, dict[str, Any]]:
    """Stored records of some pairs by the key of their runs."""
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        found |= Results(pair.slug, folder).records()
    return found


def choice_runs(cell: Cell, arm: str) -> list[Run]:
    """The trainings that the rate of an arm is chosen by."""
    seeds = CHOICE_SEEDS[: cell.pair.choices]
    return [Run(cell, arm, seed, rate, "validation") for seed in seeds for rate in cell.rates]


def chosen_rate(cell: Cell, arm: str, records: Records) -> float | None:
    """The rate of the highest mean on validation samples, the lower of equals; None: not known."""
    runs = choice_runs(cell, arm)
    if any(run.key not in records for run in runs):
        return None

    def mean(rate: float) -> float:
        return fmean(records[run.key]["after"] for run in runs if run.rate == rate)

    return max(sorted(cell.rates), key=mean)


def protocol_rate(cell: Cell, arm: str, protocol: str, records: Records) -> float | None:
    """The rate that an arm is trained at under a protocol, None while it is not known."""
    return chosen_rate(cell, OWN if protocol == USER else arm, records)


def planned(
    cells: Sequence[Cell], arms: Sequence[str], seeds: Sequence[int], records: Records
) -> Iterator[Run | None]:
    """All runs, so that the panel is balanced wherever it is stopped; None: rate not known yet.

    The rates that suit the own start, all seeds of all cells at these rates, the rates that suit
    the other arms, and then seed by seed what is missing. No run comes twice.
    """
    seen: set[str] = set()
    for run in _ordered(cells, arms, seeds, records):
        if run is None or run.key not in seen:
            yield run
        if run is not None:
            seen.add(run.key)


def _ordered(
    cells: Sequence[Cell], arms: Sequence[str], seeds: Sequence[int], records: Records
) -> Iterator[Run | None]:
    @functools.cache
    def rate(place: int, arm: str, protocol: str) -> float | None:
        return protocol_rate(cells[place], arm, protocol, records)

    def tests(seed: int, protocols: Iterable[str]) -> Iterator[Run | None]:
        for place, cell in enumerate(cells):
            for arm, protocol in itertools.product(arms, protocols):
                found = rate(place, arm, protocol)
                yield None if found is None else Run(cell, arm, seed, found, "test")

    for cell in cells:
        yield from choice_runs(cell, OWN)
    for seed in seeds:
        yield from tests(seed, (USER,))
    for arm in arms:
        for cell in cells:
            yield from choice_runs(cell, arm)
    for seed in seeds:
        yield from tests(seed, PROTOCOLS)
