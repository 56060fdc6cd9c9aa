"""Pictures of what a monitor recorded.

They are drawn on figures of their own, without pyplot, so neither the backend nor the style of a
calling program changes. matplotlib is imported only where one is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sylvinit.diagnostics.record import LAYER_COLUMNS, OTHER_COLUMNS, Record
from sylvinit.errors import DataError, OptionError, OptionTypeError
from sylvinit.report.drawing import add_grid, log_ticks, require_matplotlib, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Record | Mapping[str, "Record | Sequence[Record]"]

# Told apart with any color vision, together with the style of the line.
_COLORS = ("#5f5f5f", "#d1495b", "#2f7fb8", "#e69f00", "#009e73", "#7b4fa3", "#56b4e9", "#8c5a2b")
_LINES = ("-", "--", "-.", ":")
_MARKED_POINTS = 40  # more of them would cover the line

# Title, label of the axis, and factor of the columns that every record has.
_COLUMNS = {
    "sign_changes": ("Gradient sign changes", "entries whose sign changed (%)", 100.0),
    "gradient_magnitude": ("Gradient magnitude", "mean magnitude of the entries", 1.0),
    "effective_rank": ("Effective rank of the features", "effective rank", 1.0),
}


class Curve(NamedTuple):
    """Mean over seeds and its standard deviation (NaN of a single seed), point by point."""

    x: list[float]
    mean: list[float]
    deviation: list[float]


def draw_record(records: Records, path: str | PathLike[str]) -> None:
    """Draw sign changes, gradient magnitude and everything else over training.

    The other panels are the effective rank, if recorded, and the values given to
    :meth:`Record.end_epoch`. The axis is that of epochs if every record has some, else that of
    updates.

    Args:
        records: one record; or records by label; or several records by label, say of several
            seeds, which are drawn as their mean and an area of one standard deviation (with n - 1)
            about it.
        path: of the file, whose suffix gives the format (PNG without one); replaced if it exists.

    Raises:
        OptionTypeError: ``records`` is none of that.
        OptionError: there is no record, or matplotlib does not know the format.
        DataError: no update and no epoch has been recorded.
        MissingMatplotlibError: matplotlib cannot be imported.
        OSError: the file cannot be written.
    """
    groups = _groups(records)
    require_matplotlib("draw_record()'s figure")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    everything = [record for group in groups.values() for record in group]
    by_epoch = all(record.epochs for record in everything)
    if not by_epoch and not any(record.updates for record in everything):
        raise DataError(
            "records: expected updates or epochs, got none; draw a record after training under it"
        )
    rows = [row for r in everything for row in (r.epochs if by_epoch else [r.history()])]
    given = dict.fromkeys(name for row in rows for name in row if name not in OTHER_COLUMNS)
    names = [n for n in _COLUMNS if n in given] + [n for n in given if n not in _COLUMNS]
    columns = min(len(names), 3)
    height = math.ceil(len(names) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.1)  # between a panel and the label of the next one
    figure = Figure(figsize=(4.6 * columns, 3.6 * height), dpi=120, layout=layout)
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, names, strict=False):
        for index, (label, group) in enumerate(groups.items()):
            curve = _curve([_points(record, name, by_epoch) for record in group])
            _draw_curve(panel, curve, _COLUMNS.get(name, ("", "", 1.0))[2], label, index)
        _label(panel, name, "epoch" if by_epoch else "update")
    handles, labels = panels[0].get_legend_handles_labels()
    if any(labels):
        sizes = [len(group) for group in groups.values()]
        count = " to ".join(str(size) for size in sorted({min(sizes), max(sizes)}))
        note = None if count == "1" else f"mean of {count} runs, area: one standard deviation"
        place = "outside lower center"
        figure.legend(handles, labels, loc=place, ncols=4, frameon=False, title=note)
    save(figure, path)


def draw_layers(record: Record, path: str | PathLike[str]) -> None:
    """Draw variances and dead units of every layer, at the first and the last recorded update.

    Args:
        record: with activations, of at least one update.
        path: as for :func:`draw_record`.

    Raises:
        OptionTypeError: ``record`` is not a record.
        DataError: no layer has been recorded.
        OptionError, MissingMatplotlibError, OSError: as :func:`draw_record`.
    """
    if not isinstance(record, Record):
        raise OptionTypeError(f"record must be a Record, got {type(record).__name__}")
    history = record.history()
    layers, units = history["layers"], record.units()
    if not layers:
        raise DataError(
            "record: expected statistics of layers, got none; use monitor(activations=True) and "
            "train in its block"
        )
    require_matplotlib("draw_layers()'s figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 1.9 + 0.26 * len(layers)), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    updates = history["update"]
    activations, gradients, dead = (
        [columns[name] for columns in layers.values()] for name in LAYER_COLUMNS
    )
    percent = [
        [100 * count / units.get(name, math.nan) for count in counts]
        for name, counts in zip(layers, dead, strict=True)
    ]
    for panel, title, label, values in (
        (panels[0], "Activations", "variance of the output", activations),
        (panels[1], "Gradients", "variance of the gradient of the output", gradients),
        (panels[2], "Dead units", "units without any gradient (%)", percent),
    ):
        _draw_ends(panel, values, updates, log=values is not percent)
        panel.set_title(title, loc="left")
        panel.set_xlabel(label)
    panels[2].set_xlim(-4, 104)
    panels[0].set_ylabel("layer")
    panels[0].set_yticks(range(len(layers)), [name or "(model)" for name in layers])
    panels[0].set_ylim(len(layers) - 0.4, -0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def _groups(records: Any) -> dict[str, list[Record]]:
    if isinstance(records, Record):
        return {"": [records]}
    if not isinstance(records, Mapping):
        raise OptionTypeError(
            "records must be a Record or a mapping from labels to Records or lists of them, got "
            f"{type(records).__name__}"
        )
    groups: dict[str, list[Record]] = {}
    for label, value in records.items():
        group = [value] if isinstance(value, Record) else value
        if not isinstance(group, Sequence) or not all(isinstance(item, Record) for item in group):
            raise OptionTypeError(
                f"records: {label!r} must be a Record or a list of Records, got {value!r:.80}"
            )
        if group:
            groups[str(label)] = list(group)
    if not groups:
        raise OptionError("records: expected at least one Record, got none")
    return groups


def _points(record: Record, name: str, by_epoch: bool) -> dict[float, float]:
    if by_epoch:
        return {row["epoch"]: row.get(name, math.nan) for row in record.epochs}
    history = record.history()
    return dict(zip(history["update"], history.get(name, []), strict=False))


def _curve(runs: list[dict[float, float]]) -> Curve:
    """Runs may differ in length and have gaps: a point is of those that have it."""
    curve = Curve([], [], [])
    for x in sorted({x for run in runs for x in run}):
        values = [run[x] for run in runs if math.isfinite(run.get(x, math.nan))]
        mean = math.fsum(values) / len(values) if values else math.nan
        square = math.fsum((value - mean) ** 2 for value in values)
        curve.x.append(x)
        curve.mean.append(mean)
        several = len(values) > 1
        curve.deviation.append(math.sqrt(square / (len(values) - 1)) if several else math.nan)
    return curve


def _draw_curve(axes: Axes, curve: Curve, factor: float, label: str, index: int) -> None:
    color = _COLORS[index % len(_COLORS)]
    mean, deviation = (factor * np.array(values) for values in (curve.mean, curve.deviation))
    style, marker = _LINES[index % len(_LINES)], "o" if len(curve.x) <= _MARKED_POINTS else None
    axes.plot(curve.x, mean, style, color=color, label=label, lw=1.8, marker=marker, ms=3.5)
    if np.isfinite(deviation).any():
        low, high = mean - deviation, mean + deviation
        axes.fill_between(curve.x, low, high, color=color, alpha=0.18, lw=0)


def _label(axes: Axes, name: str, x_label: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    words = name.replace("_", " ")
    title, y_label, _ = _COLUMNS.get(name, (words[:1].upper() + words[1:], words, 1.0))
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    # A common factor of the ticks would be written over the title.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    add_grid(axes)


def _draw_ends(axes: Axes, layers: list[list[float]], updates: list[int], log: bool) -> None:
    """A row for each layer: its first and its last value, joined by a line."""
    known = [[value for value in layer if math.isfinite(value)] for layer in layers]
    ends = [(values[0], values[-1]) if values else (math.nan, math.nan) for values in known]
    if log:
        axes.set_xscale("log")
        log_ticks(axes, [value for end in ends for value in end if value > 0])
    for row, (first, last) in enumerate(ends):
        if not log or (first > 0 and last > 0):
            axes.plot([first, last], [row, row], color="#bbbbbb", lw=1.2, zorder=1)
    for which, name in enumerate(("first", "last")):
        color = _COLORS[which]
        rows = [row for row, end in enumerate(ends) if not log or end[which] > 0]
        label = f"{name} recorded update ({updates[-which]})"
        points = [ends[row][which] for row in rows]
        (line,) = axes.plot(points, rows, "o", color=color, label=label, zorder=2 + which)
        # Both are seen where they coincide.
        line.set(markersize=(6.5, 5)[which], markerfacecolor=color if which else "white")
        for row, end in enumerate(ends):
            if log and end[which] == 0:  # has no place on the axis
                x, transform = 0.02 + 0.05 * which, axes.get_yaxis_transform()
                axes.annotate("0", (x, row), xycoords=transform, color=color, va="center")
    add_grid(axes)
