"""Pictures in files; matplotlib is an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from sylvinit.errors import OptionError, SylvinitError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class MissingMatplotlibError(SylvinitError, ImportError):
    """The picture needs matplotlib, which is an optional dependency."""


def require_matplotlib(what: str = "the picture") -> None:
    """Raise MissingMatplotlibError early, before minutes of computation for ``what``."""
    try:
        import matplotlib.figure  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingMatplotlibError(
            f"{what} is drawn with matplotlib, which cannot be imported ({error}); "
            "run: pip install 'sylvinit[plot]'"
        ) from error


def add_grid(axes: Axes) -> None:
    """A light grid in place of the upper and the right border."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Labels that neither overlap nor are too few, whatever the range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_minor_formatter(NullFormatter())
    if values and max(values) < 50 * min(values):
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure in the format of the path's suffix, else PNG; OptionError if it is unknown."""
    suffix = Path(path).suffix.lstrip(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise OptionError(f"path: expected a suffix of {sorted(known)}, got {str(path)!r}")
    figure.savefig(path, format=suffix)
