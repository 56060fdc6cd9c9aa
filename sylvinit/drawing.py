"""Whether pictures can be drawn; matplotlib is an optional dependency."""

from __future__ import annotations

from sylvinit.errors import SylvinitError


class MissingMatplotlibError(SylvinitError, ImportError):
    """The picture needs matplotlib, which is an optional dependency."""


def require_matplotlib(what: str = "the picture") -> None:
    """Fail early, before minutes of computation, where no picture can be drawn.

    Args:
        what: is to be drawn, for the message.

    Raises:
        MissingMatplotlibError: matplotlib cannot be imported.
    """
    try:
        import matplotlib.figure  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingMatplotlibError(
            f"{what} is drawn with matplotlib, which cannot be imported ({error}); "
            "run: pip install 'sylvinit[plot]'"
        ) from error
