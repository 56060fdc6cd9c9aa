"""The demo's figure: accuracy over epochs, first filters, and features before training.

It draws on a figure of its own, without pyplot, so neither the backend nor the style of a calling
program changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sylvinit.demo.experiment import HEAD, METHODS, OWN, SYLVINIT, Result, View
from sylvinit.report.drawing import add_grid, require_matplotlib

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Array = npt.NDArray[np.float64]

# Told apart by lightness too, and with any color vision.
_COLORS = {OWN: "#8a8a8a", HEAD: "#2f7fb8", SYLVINIT: "#d1495b"}
_MAX_FILTERS = 32
_FILTERS_A_ROW = 8
_GAP_COLOR = (0.86, 0.90, 0.95)  # no tile of gray or strong colors merges with it


def draw(result: Result, path: Path) -> None:
    """Write the figure as a PNG file; an existing one is replaced.

    Raises:
        MissingMatplotlibError: matplotlib cannot be imported.
        OSError: the file cannot be written.
    """
    require_matplotlib("the demo's figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 7.2), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.0, 1.12], wspace=0.03)[0]
    _draw_curves(left.subplots(), result)
    filters, features = right.subfigures(2, 1, squeeze=False, height_ratios=[0.5, 1.0])[:, 0]
    _draw_filters(filters, result.views)
    _draw_features(features, result)
    figure.savefig(path, format="png")


def _draw_curves(axes: Axes, result: Result) -> None:
    from matplotlib.ticker import MaxNLocator

    task = result.task
    epochs = np.arange(task["epochs"] + 1)
    for method, row in zip(METHODS, result.summary(), strict=True):
        curves = 100 * np.array(result.curves(method))
        color = _COLORS[method]
        label = f"{method}: {row.before[0]:.1f} % before, {row.after[0]:.1f} % after"
        axes.plot(epochs, curves.mean(axis=0), "-o", color=color, label=label, ms=4.5, lw=2)
        axes.fill_between(
            epochs, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.18, lw=0
        )
    classes = len(task["classes"])
    axes.axhline(100 / classes, color="black", lw=0.8, ls=":")
    axes.annotate(
        "chance", (epochs[-1], 100 / classes), (0, 3), textcoords="offset points", ha="right"
    )
    top = 100 * max(max(run.accuracy) for run in result.runs)
    axes.set_ylim(0, min(100, 1.25 * top))  # room for the legend
    note = ""
    if task["test_samples_between"] != task["test_samples"]:
        note = (
            f"\nfirst and last point: all {task['test_samples']:,} test images, "
            f"others: {task['test_samples_between']:,} of them"
        )
    axes.set_xlabel(f"epochs of training (0: before any training){note}")
    axes.set_ylabel("test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_grid(axes)
    axes.legend(loc="best", frameon=False)
    seeds = len(task["seeds"])
    axes.set_title(
        f"{task['name']}: {task['network']},\n{task['train_samples_per_class']} training images "
        f"per class, mean and range of {seeds} seed{'s' if seeds > 1 else ''}",
        loc="left",
    )


def _draw_filters(figure: SubFigure, views: dict[str, View]) -> None:
    figure.suptitle("First layer's filters before training", fontsize="large")
    for axes, method in zip(figure.subplots(1, 2), (OWN, SYLVINIT), strict=True):
        axes.imshow(_mosaic(views[method].filters.double().numpy()), interpolation="nearest")
        axes.set_title(method, color=_COLORS[method], fontsize="medium")
        axes.set_axis_off()


def _mosaic(filters: Array) -> Array:
    """Filters (c_out, c_in, kh, kw) side by side as one RGB image.

    Each is scaled by its largest magnitude, with zero as mid-gray. Filters of three channels show
    their colors, all others the mean over their channels.
    """
    filters = filters[:_MAX_FILTERS]
    count, channels, height, width = filters.shape
    if channels != 3:
        filters = np.repeat(filters.mean(axis=1, keepdims=True), 3, axis=1)
    peak = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * filters / np.where(peak > 0, peak, 1)
    rows = math.ceil(count / _FILTERS_A_ROW)
    zoom = 6  # pixels of the image for one weight, so that a gap can be finer than a weight
    gap = 3
    down, right = height * zoom + gap, width * zoom + gap  # from one tile to the next
    image = np.full((rows * down + gap, _FILTERS_A_ROW * right + gap, 3), _GAP_COLOR)
    for index, tile in enumerate(tiles):
        top = index // _FILTERS_A_ROW * down + gap
        left = index % _FILTERS_A_ROW * right + gap
        pixels = np.kron(tile.transpose(1, 2, 0), np.ones((zoom, zoom, 1)))
        image[top : top + height * zoom, left : left + width * zoom] = pixels
    return image


def _draw_features(figure: SubFigure, result: Result) -> None:
    from matplotlib import colormaps

    figure.suptitle(
        "Input of the last layer before training (t-SNE of test images)", fontsize="large"
    )
    colors = colormaps["tab10"]
    names = result.task["classes"]
    for axes, method in zip(figure.subplots(1, 2), (OWN, SYLVINIT), strict=True):
        view = result.views[method]
        plane = _plane(view.features.double().flatten(1).numpy())
        labels = view.labels.numpy()
        for index, name in enumerate(names):
            x, y = plane[labels == index].T
            axes.scatter(x, y, s=11, color=colors(index % 10), label=name, lw=0)
        axes.set_title(method, color=_COLORS[method], fontsize="medium")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#cccccc")
    handles, _ = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=10 if max(map(len, names)) < 4 else 5,
        frameon=False,
        fontsize="small",
        markerscale=1.8,
        handletextpad=0.2,
        columnspacing=1.2,
    )


def _plane(features: Array) -> Array:
    """Two coordinates for each row of ``features`` (n, d), by t-SNE from a fixed start."""
    from sklearn.manifold import TSNE

    # Features may differ in scale from layer to layer and method to method.
    features = (features - features.mean(axis=0)) / (features.std() or 1.0)
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
