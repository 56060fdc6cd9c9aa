"""The pictures of README and docs/pictures: python bench/pictures.py [NAME ...]

Accuracies and times come from bench/results. "filters" computes first layers from CIFAR-10 images
and needs SYLVINIT_DATA, the folder that contains cifar-10-batches-py.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from experiments.analysis import Estimate, estimate
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from panel.arms import AUTO
from panel.pairs import PAIRS
from panel.plan import FOLDER, USER, read
from panel.summary import rows
from torch import Tensor, nn

import sylvinit
from sylvinit.io.datasets import few_per_class, load_cifar10, normalize_cifar10
from sylvinit.report.drawing import add_grid

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PICTURES = ROOT / "bench" / "results", ROOT / "docs" / "pictures"

RED, BLUE, GRAY, ORANGE, GREEN = "#d1495b", "#2f7fb8", "#7a7a7a", "#e69f00", "#009e73"
RANDOM = ("He normal", "He uniform", "Xavier normal", "Xavier uniform", "orthogonal")


# ------------------------------------------------------------------------- accuracy against images


def accuracies(field: str) -> dict[str, dict[int, Estimate]]:
    """Mean and 95 % interval by arm and number of images of each class, at the rate of 0.1."""
    values: dict[str, dict[int, list[float]]] = {}
    for name in ("few_shot_cifar10", "few_shot_500_cifar10"):
        for line in (RESULTS / "experiments" / f"{name}.jsonl").read_text("utf-8").splitlines():
            record = json.loads(line)
            if "arm" in record:
                arm = values.setdefault(record["arm"], {})
                arm.setdefault(record["cell"]["shots"], []).append(record[field])
    return {
        arm: {shots: estimate(cell) for shots, cell in sorted(cells.items())}
        for arm, cells in values.items()
    }


def few_images() -> Figure:
    """Before and after training, the default beside random weights and LSUV."""
    figure = Figure(figsize=(9.6, 3.9), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2)
    titles = ("Before training", "After training")
    for panel, field, title in zip(
        panels, ("accuracy_before", "accuracy_after"), titles, strict=True
    ):
        found = accuracies(field)
        cells = [found[arm] for arm in RANDOM]
        shots = sorted(found["He normal"])
        ends = [[cell[count].mean for cell in cells if count in cell] for count in shots]
        label = "random weights: He, Xavier, orthogonal"
        panel.fill_between(
            *(shots, [min(x) for x in ends], [max(x) for x in ends]),
            color=GRAY,
            alpha=0.3,
            lw=4,
            label=label,
        )
        for arm, color, label, style in (
            ("LSUV", BLUE, "LSUV", "s--"),
            ("He + solved head", GREEN, "He, only the head solved", "^:"),
            ("sylvinit, best", RED, 'sylvinit, preset="best"', "o-"),
        ):
            points = found[arm]
            panel.errorbar(
                *(list(points), [x.mean for x in points.values()]),
                yerr=[x.half for x in points.values()],
                fmt=style,
                color=color,
                label=label,
                lw=2,
                ms=5.5,
                capsize=3,
            )
        panel.set_title(title, loc="left")
        panel.set_xscale("log")
        panel.set_xticks(shots, [str(count) for count in shots])
        panel.minorticks_off()
        panel.set_xlabel("training images of each class")
        panel.set_ylim(0, 80)
        add_grid(panel)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(frameon=False, loc="upper left")
    figure.suptitle(
        "ResNet-20 on CIFAR-10: mean and 95 % interval over 5 or 10 seeds",
        x=0.01,
        ha="left",
        fontsize="medium",
    )
    return figure


# --------------------------------------------------------------------------------- cost against d


def cost() -> Figure:
    """Seconds of one positive definite equation by the size of B; the faster number of threads."""
    best: dict[str, dict[int, float]] = {}
    labels = {}
    for row in json.loads((RESULTS / "solver_speed.json").read_text())["rows"]:
        found = re.fullmatch(r"positive \((\d+), (\d+)\)", row["problem"])
        if found is None:
            continue
        k, d = int(found[1]), int(found[2])
        times = best.setdefault(row["contender"], {})
        times[d] = min(times.get(d, float("inf")), row["median_s"])
        labels[d] = f"{d}\n({k} x {d})"
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for contender, color, label, style in (
        ("scipy", GRAY, "scipy.linalg.solve_sylvester", "^-"),
        ("eigh twice", BLUE, "two torch.linalg.eigh, which a solution needs", "s-"),
        ("auto", RED, "solve_sylvester", "o-"),
        ("dsytrd", GREEN, "floor: LAPACK's tridiagonal form of B", ":"),
    ):
        times = best[contender]
        axes.plot(list(times), list(times.values()), style, color=color, label=label, lw=2, ms=5.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(labels), list(labels.values()))
    axes.minorticks_off()
    axes.set_xlabel("features d (equation k x d)")
    axes.set_ylabel("seconds, median")
    axes.set_title("One equation A X + X B = Q, float64, 2 CPU cores", loc="left")
    axes.legend(frameon=False)
    add_grid(axes)
    return figure


# ----------------------------------------------------------------------------- the gate's choice


def gate() -> Figure:
    """What "best" and "auto" gain over the own start after training, mean of a pair's cells."""
    cells = [cell for pair in PAIRS for cell in pair.cells]
    table = rows(cells, read(PAIRS, FOLDER), AUTO, USER)
    gains: dict[str, list[tuple[float, float]]] = {}
    for row in table:
        if row.gap is not None and row.best is not None:
            means = row.best.gap.mean, row.gap.gap.mean
            gains.setdefault(row.cell.pair.title, []).append(means)
    found = {title: tuple(map(fmean, zip(*cell, strict=True))) for title, cell in gains.items()}
    found = dict(sorted(found.items(), key=lambda item: item[1][0]))
    figure = Figure(figsize=(9.6, 0.7 + 0.27 * len(found)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, (best, auto) in enumerate(found.values()):
        axes.plot([best, auto], [place, place], color=GRAY, lw=1.5, alpha=0.6, zorder=1)
    for index, (color, label) in enumerate(((BLUE, 'preset="best"'), (RED, 'preset="auto"'))):
        values = [gain[index] for gain in found.values()]
        axes.scatter(values, range(len(found)), color=color, label=label, s=36, zorder=2)
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_xscale("symlog", linthresh=2, linscale=0.8)
    ticks: list[int] = [-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50]
    low, high = (end(value for gain in found.values() for value in gain) for end in (min, max))
    ticks = [x for x in ticks if low - 1 <= x <= high + 1]
    axes.set_xticks(ticks, [f"{x:+d}" if x else "own start" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel("points of accuracy, R2 or intersection over union after training")
    axes.legend(frameon=False, loc="lower right")
    add_grid(axes)
    return figure


# ---------------------------------------------------------------------------------------- filters


def filters() -> Figure:
    """First layers of 7 x 7 filters, by their codes, from 100 CIFAR-10 images of each class."""
    images, labels = load_cifar10(os.environ["SYLVINIT_DATA"], train=True)
    chosen = few_per_class(labels, 100, seed=0)
    data = normalize_cifar10(images[chosen]), labels[chosen]
    torch.manual_seed(0)
    start = nn.Sequential(nn.Conv2d(3, 24, 7, padding=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    start.extend([nn.Flatten(), nn.Linear(24, 10)])
    nn.init.kaiming_normal_(start[0].weight)
    shown: dict[str, Tensor] = {"He normal": start[0].weight.detach().clone()}
    for title, code in (
        ("principal components (default)", "pca"),
        ("independent components", "ica"),
        ("centers of clusters", "kmeans"),
        ("discriminant directions", "discriminant"),
    ):
        sylvinit.initialize_(start, data, code=code, head_code="onehot", patches=30)
        shown[title] = start[0].weight.detach().clone()
    sylvinit.correlated_init_(start, sylvinit.input_correlation(start, data[0]))
    shown["correlated as the input"] = start[0].weight.detach().clone()
    figure = Figure(figsize=(9.6, 5.6), dpi=130, layout="constrained")
    for part, (title, weight) in zip(figure.subfigures(2, 3).flat, shown.items(), strict=True):
        part.suptitle(title, fontsize="medium")
        for axes, kernel in zip(part.subplots(4, 6).flat, weight, strict=True):
            axes.imshow(0.5 + 0.5 * kernel.permute(1, 2, 0) / kernel.abs().max())
            axes.set_axis_off()
    return figure


# --------------------------------------------------------------------------------------- pipeline


def pipeline() -> Figure:
    """What happens at one layer, and how the batches go on from layer to layer."""
    figure = Figure(figsize=(7.6, 3), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 96)
    axes.set_ylim(0, 35)

    def box(x: float, y: float, width: float, text: str, color: str, height: float = 6) -> None:
        style = "round,pad=0.1,rounding_size=0.9"
        axes.add_patch(
            FancyBboxPatch((x, y), width, height, style, fc=color + "22", ec=color, lw=1.5)
        )
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5)

    def arrow(start: tuple[float, float], end: tuple[float, float], color: str = GRAY) -> None:
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=color, lw=1.6)
        )

    axes.text(1, 32.5, "every batch runs to the next layer that is not solved, and waits there")
    for index, (text, color) in enumerate(
        (
            ("batches", GRAY),
            ("layer 1\nsolved", GREEN),
            ("layer 2\nsolved", GREEN),
            ("layer 3\nbeing solved", RED),
            ("layer 4\nas it was", GRAY),
            ("head\nas it was", GRAY),
        )
    ):
        left = 1 + 16 * index
        box(left, 23, 12.4, text, color, 7)
        if index:
            arrow((left - 3.4, 26.5), (left - 0.2, 26.5))
    steps = (
        ("its inputs x", "patches or rows"),
        ("sums", "n, mean, covariance"),
        ("code s", "components, classes"),
        ("A W + W B = Q", "solved, checked"),
        ("W", "scaled, written"),
    )
    axes.text(1, 16.5, "at that layer", color=RED)
    for index, (text, below) in enumerate(steps):
        left = 1 + 19.4 * index
        box(left, 7, 15.4, text, RED if index == 3 else BLUE)
        axes.text(left + 7.7, 4, below, ha="center", fontsize=8.5, color=GRAY)
        if index:
            arrow((left - 3.9, 10), (left - 0.2, 10))
    arrow((54.5, 22.8), (9, 13.4), RED)
    arrow((87, 13.4), (58.5, 22.8), RED)
    return figure


DRAWN: dict[str, Callable[[], Figure]] = {
    function.__name__: function for function in (few_images, cost, gate, filters, pipeline)
}


def main(names: list[str]) -> None:
    unknown = set(names) - DRAWN.keys()
    if unknown:
        raise SystemExit(f"expected names of {list(DRAWN)}, got {sorted(unknown)}")
    PICTURES.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"metadata": {"Software": None}}
    for name in names or DRAWN:
        DRAWN[name]().savefig(PICTURES / f"{name}.png", **settings)
        print(PICTURES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
