"""Spatial correlation of a network's filters by distance, layer by layer (figure 1)."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from sylvinit.correlated.estimate import filter_correlation
from sylvinit.errors import OptionError, OptionTypeError
from sylvinit.priors.distance import DistanceProfile, correlation_by_distance
from sylvinit.priors.matrix import Kernel
from sylvinit.report.drawing import add_grid, require_matplotlib, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From near to far, told apart by lightness too.
_COLORS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#c8a600", "#8a8a8a")
_MARKERS = "os^Dv*"
_MOST_LINES = 6


def filter_profiles(model_or_weights: Any, kernel_size: Kernel = 3) -> dict[str, DistanceProfile]:
    """Mean correlation of two taps at every distance, for every layer.

    "Correlated Initialization for Correlated Data", figure 1.

    Args:
        model_or_weights, kernel_size: as for :func:`sylvinit.filter_correlation`.

    Returns:
        By layer, in the order of the modules or of the state dict. The standard errors take the
        output units of a layer as independent.

    Raises:
        ModelError, DataError, OptionError, OptionTypeError: as
            :func:`sylvinit.filter_correlation`.
    """
    matrices = filter_correlation(model_or_weights, kernel_size, per_layer=True)
    return {name: correlation_by_distance(matrix) for name, matrix in matrices.items()}


def draw_filter_profiles(
    profiles: Mapping[str, DistanceProfile] | Mapping[str, Mapping[str, DistanceProfile]],
    path: str | PathLike[str],
) -> None:
    """Draw correlation over depth, a line for each distance: the paper's figure 1.

    Bars are two standard errors. Of more than six distances, six are drawn.

    Args:
        profiles: of :func:`filter_profiles`; or several of those by label, which are drawn side by
            side.
        path: of the file, whose suffix gives the format; an existing one is replaced.

    Raises:
        OptionTypeError: ``profiles`` is none of that.
        OptionError: layers side by side have kernels of different sizes, or matplotlib does not
            know the format.
        MissingMatplotlibError, OSError: as :func:`draw_record`.
    """
    panels = _panels(profiles)
    require_matplotlib("draw_filter_profiles()'s figure")
    from matplotlib.figure import Figure

    widths = [max(len(layers), 5) for layers in panels.values()]
    figure = Figure(figsize=(2.5 + 0.42 * sum(widths), 4.4), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axis, (label, layers) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, layers)
        axis.set_title(label, fontsize="medium")
    axes[0].set_ylabel("correlation of two taps")
    if len({tuple(next(iter(p.values())).distance.tolist()) for p in panels.values()}) == 1:
        # Beside the panels: inside one it would hide lines of some network.
        handles, labels = axes[0].get_legend_handles_labels()
        title = "distance (taps)"
        figure.legend(handles, labels, title=title, loc="outside right upper", frameon=False)
    else:
        for axis in axes:
            axis.legend(title="distance (taps)", fontsize="small")
    save(figure, path)


def _draw_panel(axis: Axes, layers: Mapping[str, DistanceProfile]) -> None:
    first = next(iter(layers.values()))
    count = len(first.distance)
    lines = min(count, _MOST_LINES)
    # Evenly over all distances, the nearest and the farthest among them.
    chosen = [round(line * (count - 1) / max(lines - 1, 1)) for line in range(lines)]
    depth = range(1, len(layers) + 1)
    for line, index in enumerate(chosen):
        values = [float(profile.correlation[index]) for profile in layers.values()]
        errors = [
            0.0 if profile.standard_error is None else 2 * float(profile.standard_error[index])
            for profile in layers.values()
        ]
        style, color = f"{_MARKERS[line]}-", _COLORS[line]
        bars = axis.errorbar(depth, values, errors, fmt=style, color=color, ms=5, lw=1.6, capsize=2)
        bars.set_label(f"{float(first.distance[index]):.2f}")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(list(depth), list(layers), rotation=60, ha="right", fontsize="small")
    axis.set_xlabel("layer, from input to output")
    add_grid(axis)


def _panels(profiles: Any) -> dict[str, Mapping[str, DistanceProfile]]:
    panels = profiles
    if isinstance(profiles, Mapping) and _all(profiles, DistanceProfile):
        panels = {"": profiles}
    if not isinstance(panels, Mapping) or not _all(panels, Mapping):
        raise OptionTypeError(
            "profiles must be what filter_profiles() returns, or a mapping of labels to that, and "
            f"not empty; got {profiles!r}"
        )
    for label, layers in panels.items():
        if not _all(layers, DistanceProfile):
            raise OptionTypeError(
                f"profiles must be what filter_profiles() returns; got {layers!r} for {label!r}"
            )
        if len({tuple(profile.distance.tolist()) for profile in layers.values()}) > 1:
            raise OptionError(
                f"profiles: the layers of {label!r} have kernels of different sizes; draw each "
                "size in a panel of its own"
            )
    return dict(panels)


def _all(values: Mapping[Any, Any], kind: type) -> bool:
    return bool(values) and all(isinstance(value, kind) for value in values.values())
