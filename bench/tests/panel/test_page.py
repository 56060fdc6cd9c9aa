"""What the page says of made-up results that pass, that fail and that are not complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from experiments.store import Results
from panel.arms import AUTO, BEST, OWN
from panel.cli import main
from panel.pairs import Cell, Pair
from panel.plan import EACH, USER, choice_runs
from panel.seconds import measure, read, store
from panel.summary import by_pair, criteria, rows, winning
from panel.table import in_short, page

NOISE = np.array([0.3, -0.2, 0.1, -0.4, 0.2])


@pytest.fixture
def two_pairs(pair: Pair) -> list[Pair]:
    return [pair, Pair("MLP / other clusters", "mlp", "clusters", {2: 4, 5: 4}, 8)]


def results(
    pairs: list[Pair],
    made_up: Callable[..., dict[str, dict[str, Any]]],
    gains: Callable[[Cell], tuple[float, float]],
) -> dict[str, dict[str, Any]]:
    """All rates alike; "best" and "auto" are ahead of the own start by what ``gains`` says."""
    records: dict[str, dict[str, Any]] = {}
    for cell in (cell for pair in pairs for cell in pair.cells):
        rate = min(cell.rates)
        best, auto = gains(cell)
        for place, (arm, gain) in enumerate({OWN: 0.0, BEST: best, AUTO: auto}.items()):
            points = (50 + gain + np.roll(NOISE, place)).tolist()
            records |= made_up(cell, arm, dict.fromkeys(cell.rates, 1.0), {rate: points})
    return records


def stored(records: dict[str, dict[str, Any]], folder: Path, seconds: float = 1.5) -> Path:
    for line in records.values():
        Results(line["config"], folder).append([line])
    for title in ("MLP / clusters", "MLP / other clusters"):
        store({title: {BEST: 1.0, AUTO: seconds}}, folder)
    return folder


def first_lines(pairs: list[Pair], folder: Path) -> list[str]:
    text = page(pairs, folder, AUTO)
    return [line for line in text.splitlines() if line.startswith("- ")]


def test_a_panel_that_passes(two_pairs: list[Pair], made_up: Any, tmp_path: Path) -> None:
    records = results(two_pairs, made_up, lambda cell: (4.0, 3.0))
    lines = first_lines(two_pairs, stored(records, tmp_path))
    assert len(lines) == 2 * 5
    assert all(line.startswith("- met") for line in lines)
    assert any("mean difference over 6 cells: +3.00" in line for line in lines)
    assert any(line.endswith("(6 cells): 0.75, at least 0.5") for line in lines)


def test_what_is_missed_comes_first(two_pairs: list[Pair], made_up: Any, tmp_path: Path) -> None:
    def gains(cell: Cell) -> tuple[float, float]:
        lost = cell.pair is two_pairs[0] and cell.optimizer == "SGD"
        return 4.0, -9.0 if lost else 1.0

    records = results(two_pairs, made_up, gains)
    lines = first_lines(two_pairs, stored(records, tmp_path, seconds=2.5))
    missed = [line for line in lines if line.startswith("- **missed**")]
    assert lines[: len(missed)] == missed
    assert len(missed) == len(lines) == 2 * 5
    below = [line for line in missed if "significantly below" in line]
    assert all(line.endswith(": MLP / clusters, 5, SGD") for line in below)
    assert any("mean difference over 6 cells: -0.67" in line for line in missed)
    assert any("(6 cells): -0.17" in line for line in missed)  # (5 - 9) / (6 x 4)
    assert any("most 2.50" in line for line in missed)


def test_seeds_that_are_missing_are_said_first(
    two_pairs: list[Pair], made_up: Any, tmp_path: Path
) -> None:
    records = results(two_pairs, made_up, lambda cell: (4.0, 3.0))
    some = {
        key: line
        for key, line in records.items()
        if line["arm"] != AUTO or line["seed"] != 4 or line["cell"]["shots"] != 2
    }
    lines = first_lines(two_pairs, stored(some, tmp_path))
    assert lines[0].startswith("- **not complete**")
    assert "4 of 6 cells" in lines[0]
    assert "{4 seeds}" in page(two_pairs, tmp_path, AUTO)


def test_pairs_that_the_rule_was_not_chosen_on(
    two_pairs: list[Pair], made_up: Any, tmp_path: Path
) -> None:
    pairs = [two_pairs[0], replace(two_pairs[1], later=True)]
    assert [x.key for x in choice_runs(pairs[1].cells[0], OWN)] == [
        x.key for x in choice_runs(two_pairs[1].cells[0], OWN)
    ]
    records = results(pairs, made_up, lambda cell: (4.0, 3.0 + cell.pair.later))
    assert "Added after" not in page(pairs, tmp_path, AUTO)
    text = " ".join(page(pairs, stored(records, tmp_path), AUTO).split())
    assert "Added after that: MLP / other clusters. Their mean difference" in text
    assert "at the rate that suits the own start, is +4.00" in text


def test_without_results_nothing_is_claimed(two_pairs: list[Pair], tmp_path: Path) -> None:
    lines = first_lines(two_pairs, tmp_path)
    assert not any(line.startswith("- met") for line in lines)
    assert sum(line.startswith("- **not known**") for line in lines) == 2


def test_intervals_and_corrected_p_are_those_of_scipy(two_pairs: list[Pair], made_up: Any) -> None:
    size = {cell: place for place, cell in enumerate(str(c) for p in two_pairs for c in p.cells)}
    records = results(two_pairs, made_up, lambda cell: (1.0, 0.1 * size[str(cell)]))
    cells = [cell for pair in two_pairs for cell in pair.cells]
    found = rows(cells, records, AUTO, USER)
    tests = []
    for row in found:
        ours, own = ([line["after"] for line in row.runs[arm].values()] for arm in (AUTO, OWN))
        tests.append(scipy.stats.ttest_rel(ours, own))
        interval = tests[-1].confidence_interval(0.95)
        assert row.gap is not None
        gap = row.gap.gap
        # Both in float64 with other orders of operations.
        assert gap.mean - gap.half == pytest.approx(interval.low, rel=1e-10)
        assert gap.mean + gap.half == pytest.approx(interval.high, rel=1e-10)
    order = np.argsort([test.pvalue for test in tests])
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * tests[place].pvalue))
        assert found[place].p == pytest.approx(largest, rel=1e-9)


def test_best_wins_where_it_does_with_both_optimizers(two_pairs: list[Pair], made_up: Any) -> None:
    def gains(cell: Cell) -> tuple[float, float]:
        if cell.pair is two_pairs[0]:
            return (4.0 if cell.optimizer == "SGD" else -1.0), 0.0
        return 2.0 * cell.shots, 1.0 * cell.shots

    records = results(two_pairs, made_up, gains)
    found = rows([c for p in two_pairs for c in p.cells], records, AUTO, EACH)
    assert {row.cell.pair.title for row in winning(found)} == {"MLP / other clusters"}
    (kept,) = (item for item in criteria(found, AUTO, {}) if "share" in item.text)
    assert "(4 cells): 0.50" in kept.text


def test_a_row_for_each_pair(two_pairs: list[Pair], made_up: Any) -> None:
    def gains(cell: Cell) -> tuple[float, float]:
        return 4.0, (3.0 if cell.pair is two_pairs[0] else 0.0) + (cell.optimizer == "SGD")

    records = results(two_pairs, made_up, gains)
    cells = [cell for pair in two_pairs for cell in pair.cells]
    found = by_pair(rows(cells, records, AUTO, USER), AUTO)
    assert [row.title for row in found] == [pair.title for pair in two_pairs]
    test = scipy.stats.ttest_1samp(np.roll(NOISE, 2) - NOISE + 0.5, 0)  # SGD in half of the cells
    assert found[1].gap.gap.mean == pytest.approx(0.5)
    assert found[1].p == pytest.approx(test.pvalue, rel=1e-9)  # the larger of the two
    assert found[0].p < 0.01
    lines = in_short(rows(cells, records, AUTO, USER), AUTO).splitlines()
    assert lines[2].startswith("| MLP / clusters | 50.0 | 53.5 | +3.5 ±")
    assert [line.rsplit("|")[-2] for line in lines[2:]] == [" yes ", " no "]


def test_rates_of_each_arm(pair: Pair, made_up: Any, tmp_path: Path) -> None:
    """Under the user's recipe all arms are at the own rate, under the other one at theirs."""
    records: dict[str, dict[str, Any]] = {}
    for cell in pair.cells:
        low, middle, high = cell.rates
        for arm, suits in ((OWN, low), (BEST, middle), (AUTO, high)):
            tests = {low: [50.0] * 5, suits: [60.0 if arm != OWN else 50.0] * 5}
            records |= made_up(cell, arm, {x: float(x == suits) for x in cell.rates}, tests)
    user, each = (rows(pair.cells, records, AUTO, protocol) for protocol in (USER, EACH))
    assert [row.gap.gap.mean for row in user if row.gap] == [0.0, 0.0]
    assert [row.gap.gap.mean for row in each if row.gap] == [10.0, 10.0]
    text = page([pair], stored(records, tmp_path), AUTO)
    assert "| 0.01 | 50.0 | 50.0 | 50.0 |" in text
    assert "| 0.01, 0.03, 0.1 | 50.0 | 60.0 | 60.0 |" in text


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    out = tmp_path / "panel.md"
    assert main(["table", "--results", str(tmp_path), "--out", str(out)]) == 0
    assert "not known" in out.read_text()


def test_seconds_are_measured_side_by_side(tmp_path: Path, pair: Pair) -> None:
    store({"another": {BEST: 1.0}}, tmp_path)
    store({pair.title: measure(pair, (BEST, AUTO))}, tmp_path)
    found = read(tmp_path)
    assert found["another"] == {BEST: 1.0}
    assert 0 < found[pair.title][BEST] < found[pair.title][AUTO]
