"""The figure of a report; imported where matplotlib is."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from sylvinit.errors import DataError
from sylvinit.report.drawing import add_grid, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sylvinit.report.record import LayerReport, Report

_BEFORE, _AFTER = "#8a8a8a", "#d1495b"  # told apart by lightness, too
_FEATURES, _OUTPUTS, _RANK = "#bbbbbb", "#2f7fb8", "#d1495b"
_NAME = 28  # characters of a layer's name


class _NotebookFigure(Figure):
    """A figure that notebooks show although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def draw_report(report: Report) -> Figure:
    """Spectra of the inputs as curves; ranks and deviations with a row for each layer.

    Raises:
        DataError: there is nothing to draw.
    """
    layers = [layer for layer in report.layers if math.isfinite(layer.std_after) or layer.rank]
    if not layers:
        raise DataError(
            "report: expected layers that were solved or calibrated, found none (a dry run, or "
            "filters drawn without data, have nothing to draw)"
        )
    height = 1.6 + max(2.6, 0.24 * len(layers))
    layout = ConstrainedLayoutEngine(w_pad=0.12)  # between a panel and the label of the next one
    figure = _NotebookFigure(figsize=(13, height), dpi=100, layout=layout)
    spectra, ranks, deviations = figure.subplots(1, 3, width_ratios=[1.1, 1, 1])
    _draw_spectra(spectra, layers)
    _draw_ranks(ranks, layers)
    _draw_deviations(deviations, layers)
    for axes, named in ((ranks, True), (deviations, False)):
        axes.set_yticks(range(len(layers)), [_short(x.title) if named else "" for x in layers])
        axes.set_ylim(len(layers) - 0.4, -0.6)
    for axes in (spectra, ranks, deviations):
        add_grid(axes)
    return figure


def _draw_spectra(axes: Axes, layers: list[LayerReport]) -> None:
    known = [layer for layer in layers if layer.spectrum]
    colors = colormaps["viridis"]
    axes.set_title("Spectrum of the input", loc="left")
    axes.set_xlabel("principal component")
    axes.set_ylabel("share of the variance")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for index, layer in enumerate(known):
        shares = [share for share in layer.spectrum if share > 0]
        color = colors(0.92 * index / max(len(known) - 1, 1))
        label = _short(layer.title) if index in (0, len(known) - 1) else None
        axes.plot(range(1, len(shares) + 1), shares, "-", color=color, lw=1.4, label=label)
    if known:
        axes.legend(frameon=False, fontsize="small", title="first and last layer")


def _draw_ranks(axes: Axes, layers: list[LayerReport]) -> None:
    axes.set_title("Rank", loc="left")
    axes.set_xlabel("components")
    axes.set_xscale("log")
    for row, layer in enumerate(layers):
        if not layer.rank:
            continue  # a normalization
        axes.plot([min(layer.rank, layer.d_out), layer.d_in], [row, row], color="#dddddd", lw=1.2)
        axes.plot(layer.d_in, row, "|", color=_FEATURES, ms=10, mew=2)
        axes.plot(layer.d_out, row, "o", color=_OUTPUTS, ms=6, mfc="none")
        axes.plot(layer.rank, row, "o", color=_RANK, ms=4)
    for marker, color, label in (
        ("o", _RANK, "rank of the input"),
        ("|", _FEATURES, "its features"),
        ("o", _OUTPUTS, "outputs"),
    ):
        face = "none" if label == "outputs" else color
        axes.plot([], [], marker, color=color, mfc=face, mew=1.5, label=label)
    axes.legend(frameon=False, fontsize="small", loc="best")


def _draw_deviations(axes: Axes, layers: list[LayerReport]) -> None:
    axes.set_title("Standard deviation of the output", loc="left")
    axes.set_xlabel("root mean square over outputs")
    axes.set_xscale("log")
    ends = [(layer.std_before, layer.std_after) for layer in layers]
    log_ticks(axes, [value for end in ends for value in end if value > 0])
    for row, (before, after) in enumerate(ends):
        if before > 0 and after > 0:
            axes.plot([before, after], [row, row], color="#dddddd", lw=1.2, zorder=1)
    for which, (name, color) in enumerate((("before", _BEFORE), ("after", _AFTER))):
        rows = [row for row, end in enumerate(ends) if end[which] > 0]
        points = [ends[row][which] for row in rows]
        axes.plot(points, rows, "o", color=color, ms=(6, 4)[which], label=name)
    axes.legend(frameon=False, fontsize="small", loc="best")


def _short(name: str) -> str:
    return name if len(name) <= _NAME else "..." + name[3 - _NAME :]
