"""The figures of the report, on figures of their own, without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import estimate
from config import Arm, cell_label
from measures import Measured

from sylvinit.report.drawing import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart with any colour vision (Okabe and Ito), and by line style from the ninth on.
_COLOURS = (
    *("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#000000"),
)


def draw_curves(results: Measured, path: Path) -> bool:
    """Accuracy over wall clock time, a panel for each cell that has curves.

    Cells of which some times were not stored are drawn over epochs.

    Args:
        results: seconds and accuracies are means over the seeds, at the same epochs.
        path: of the PNG file.

    Returns:
        Whether there was anything to draw.
    """
    config = results.config
    cells = [
        place
        for place in range(len(config.cells))
        if any(_curves(results, place, arm) for arm in config.arms)
    ]
    if not cells:
        return False
    axes = _panels(len(cells), path)
    for axis, place in zip(axes, cells, strict=True):
        timed = not any(
            point[1] is None
            for arm in config.arms
            for curve in _curves(results, place, arm)
            for point in curve
        )
        for index, arm in enumerate(config.arms):
            curves = _curves(results, place, arm)
            if not curves:
                continue
            column = 1 if timed else 0
            points = [
                _mean([(point[column], point[2]) for point in same_epoch])
                for same_epoch in zip(*curves, strict=True)
            ]
            axis.plot(
                [point[0] for point in points],
                [point[1] for point in points],
                color=_COLOURS[index % len(_COLOURS)],
                linestyle="-" if index < len(_COLOURS) else "--",
                label=arm.name,
                lw=1.4,
            )
        axis.set_title(cell_label(config.cells[place]), fontsize="medium")
        axis.set_xlabel("seconds since the start of the initialisation" if timed else "epochs")
        axis.set_ylabel("accuracy on a fixed 1,000 images at most (%)")
    axes[-1].legend(frameon=False, fontsize="small", loc="lower right")
    _save(axes, path)
    return True


def draw_over_x(results: Measured, path: Path) -> bool:
    """Accuracy over a setting of the arms, a line for each cell, with 95 % intervals.

    Returns:
        Whether there was anything to draw.
    """
    config = results.config
    arms = sorted((arm for arm in config.arms if arm.x is not None), key=lambda arm: arm.x or 0.0)
    (axis,) = _panels(1, path)
    drawn = False
    for place, cell in enumerate(config.cells):
        present = [arm for arm in arms if results.finished(place, arm)]
        if not present:
            continue
        drawn = True
        values = [
            estimate(list(results.values(place, arm, results.final).values())) for arm in present
        ]
        axis.errorbar(
            [arm.x or 0.0 for arm in present],
            [value.mean for value in values],
            yerr=[value.half for value in values],
            color=_COLOURS[place % len(_COLOURS)],
            marker="o",
            ms=4,
            capsize=3,
            label=cell_label(cell),
        )
    if not drawn:
        return False
    if config.plot.get("log"):
        axis.set_xscale("log")
    axis.set_xlabel(config.plot.get("x", ""))
    when = "after" if results.final == "accuracy_after" else "before any"
    axis.set_ylabel(
        f"{'test' if config.split == 'test' else 'validation'} accuracy {when} training (%)"
    )
    axis.legend(frameon=False)
    _save([axis], path)
    return True


def draw_maps(results: Measured, path: Path) -> bool:
    """The points of features in two dimensions, coloured by class, a panel for each cell and arm.

    Returns:
        Whether there was anything to draw.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for (place, arm), records in results.records.items():
        # One seed's: points of others lie elsewhere.
        first = next((records[seed] for seed in sorted(records) if "points" in records[seed]), None)
        if first is not None:
            found.append((f"{arm}, {cell_label(results.config.cells[place])}", first))
    if not found:
        return False
    axes = _panels(len(found), path)
    for axis, (title, record) in zip(axes, found, strict=True):
        axis.scatter(
            [point[0] for point in record["points"]],
            [point[1] for point in record["points"]],
            c=record["labels"],
            cmap="tab10" if max(record["labels"]) < 10 else "hsv",
            s=6,
            linewidths=0,
        )
        axis.set_title(title, fontsize="medium")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
    _save(axes, path)
    return True


def _curves(results: Measured, place: int, arm: Arm) -> list[list[list[Any]]]:
    records = results.records[place, arm.name]
    curves = [records[seed]["curve"] for seed in sorted(records) if "curve" in records[seed]]
    # Curves of one recipe have the same epochs.
    return curves if results.finished(place, arm) else []


def _mean(points: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(points) for column in zip(*points, strict=True)]


def _panels(count: int, path: Path) -> list[Axes]:
    require_matplotlib(str(path))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 4.6 * count), 4.2), dpi=120, layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return axes


def _save(axes: Sequence[Axes], path: Path) -> None:
    figure = axes[0].get_figure(root=True)
    if figure is not None:
        # Without the name of matplotlib's version the same results give the same file.
        figure.savefig(path, format="png", metadata={"Software": None})
