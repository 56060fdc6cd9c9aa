"""Figures of README and docs/when.md, from the stored results: python bench/front_page.py [--check]

A figure stands between <!-- figure: NAME --> and <!-- end -->. Without --check the pages are
rewritten; with it, figures that differ are listed and the exit status is 1.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from panel.arms import AUTO
from panel.pairs import PAIRS
from panel.plan import FOLDER, USER, read
from panel.summary import Row, rows
from panel.table import in_short

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
PAGES = (README, ROOT / "docs" / "when.md")
RANDOM = ("He normal", "He uniform", "Xavier normal", "Xavier uniform", "orthogonal")
_FIGURE = re.compile(r"(<!-- figure: (?P<name>\w+) -->)(?P<text>.*?)(<!-- end -->)", re.DOTALL)


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def accuracies(
    experiment: str, field: str = "accuracy_after"
) -> dict[str, dict[int, dict[int, float]]]:
    """By arm, images of each class, and seed; of repeated runs the first."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    path = RESULTS / "experiments" / f"{experiment}.jsonl"
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        if record.get(field) is not None:
            seeds = found.setdefault(record["arm"], {}).setdefault(record["cell"]["shots"], {})
            seeds.setdefault(record["seed"], record[field])
    return found


def gap(first: dict[int, float], second: dict[int, float]) -> float:
    """Mean difference over common seeds."""
    return statistics.fmean(first[seed] - second[seed] for seed in first.keys() & second.keys())


def span(values: Iterable[float]) -> str:
    low, *_, high = sorted(values)
    return f"{low:+.1f} to {high:+.1f}".replace("-", "\N{MINUS SIGN}")


def few_images() -> str:
    found = accuracies("few_shot_cifar10")
    best = found["sylvinit, best"][50]
    return span(gap(best, found[arm][50]) for arm in (*RANDOM, "LSUV"))


def frozen() -> str:
    found = accuracies("before_training_cifar10", "accuracy_before")
    ours, head = (
        statistics.fmean(found[arm][100].values())
        for arm in ("sylvinit, frozen", "He + solved head")
    )
    return f"{ours:.1f} % against {head:.1f} %"


def new_head() -> str:
    found = accuracies("new_head", "accuracy_before")
    return f"{gap(found['sylvinit, logistic'][50], found['scikit-learn'][50]):+.1f}"


def segmentation() -> str:
    """Pixel accuracy after training beside the own start: logistic head, default head."""
    networks = [run["networks"] for run in load("targets_segmentation")["runs"]]

    def after(name: str) -> float:
        return statistics.fmean(
            run[name]["after"]["accuracy"] - run["own start"]["after"]["accuracy"]
            for run in networks
        )

    return f"{after('initialize_, logistic head'):+.1f}"


def digits() -> str:
    found = accuracies("digits")
    best = found["sylvinit, best"][50]
    return span(gap(best, found[arm][50]) for arm in RANDOM)


def _resnet20() -> dict[str, Any]:
    rows = load("initialize_speed")["rows"]
    return next(row for row in rows if row["case"].startswith("ResNet-20"))


def forward() -> str:
    return f"{_resnet20()['forward']:.2f} s"


def initialize() -> str:
    return f"{_resnet20()['initialize']:.2f} s ({_resnet20()['ratio']:.1f}x)"


def memory() -> str:
    peak = load("peak_memory")["peak_mib"]
    return f"{peak['initialize_'] / peak['forward, one batch']:.2f}x"


@functools.cache
def _panel() -> list[Row]:
    cells = [cell for pair in PAIRS for cell in pair.cells]
    return rows(cells, read(PAIRS, FOLDER), AUTO, USER)


def panel() -> str:
    """A row for each pair, between lines of its own."""
    return f"\n{in_short(_panel(), AUTO)}\n"


def panel_mean() -> str:
    """Points of auto over the own start, mean over cells, and the median."""
    gains = [row.gap.gap.mean for row in _panel() if row.gap is not None]
    mean, middle = statistics.fmean(gains), statistics.median(gains)
    return f"{mean:+.1f} (median {middle:+.1f})".replace("-", "\N{MINUS SIGN}")


def _ratio(problem: str) -> float:
    return next(
        row["median"]
        for row in load("solver_speed")["ratios"]
        if (row["problem"], row["of"], row["to"]) == (problem, "scipy", "auto")
    )


def solver() -> str:
    return f"{_ratio('positive (64, 576)'):.0f} times"


def solver_batch() -> str:
    return f"{_ratio('positive, 500 x (32, 32)'):.0f} times"


FIGURES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        *(few_images, frozen, new_head, segmentation, digits),
        *(forward, initialize, memory, solver, solver_batch, panel, panel_mean),
    )
}


def with_figures(page: str) -> str:
    """The page with every figure as the results have it."""
    return _FIGURE.sub(lambda found: f"{found[1]}{FIGURES[found['name']]()}{found[4]}", page)


def main(arguments: list[str]) -> int:
    wrong = 0
    for path in PAGES:
        page = path.read_text("utf-8")
        now = with_figures(page)
        if arguments != ["--check"]:
            path.write_text(now, "utf-8")
            continue
        for old, new in zip(_FIGURE.finditer(page), _FIGURE.finditer(now), strict=True):
            if old[0] != new[0]:
                print(f"{old['name']}: {path.name} has {old['text']!r}, results {new['text']!r}")
                wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
