"""The figures of the README, from the stored results: python bench/front_page.py [--check]

A figure stands between <!-- figure: NAME --> and <!-- end -->. Without --check the README is
rewritten; with it, figures that differ are listed and the exit status is 1.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
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
        *(forward, initialize, memory, solver, solver_batch),
    )
}


def with_figures(page: str) -> str:
    """The page with every figure as the results have it."""
    return _FIGURE.sub(lambda found: f"{found[1]}{FIGURES[found['name']]()}{found[4]}", page)


def main(arguments: list[str]) -> int:
    page = README.read_text("utf-8")
    now = with_figures(page)
    if arguments != ["--check"]:
        README.write_text(now, "utf-8")
        return 0
    pairs = zip(_FIGURE.finditer(page), _FIGURE.finditer(now), strict=True)
    wrong = [(old["name"], old["text"], new["text"]) for old, new in pairs if old[0] != new[0]]
    for name, old, new in wrong:
        print(f"{name}: README has {old!r}, the results {new!r}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
