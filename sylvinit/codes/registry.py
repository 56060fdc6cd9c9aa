"""Codes by name."""

from __future__ import annotations

from collections.abc import Callable

from sylvinit.codes.code import Code
from sylvinit.codes.components import ICA, LDA, PCA
from sylvinit.codes.correlated_filters import CorrelatedFilters
from sylvinit.codes.discriminant import Discriminant
from sylvinit.codes.pairs import SignPairs
from sylvinit.codes.targets import KMeans, Logistic, OneHot, Ridge, Targets
from sylvinit.errors import OptionError, OptionTypeError

_CODES: dict[str, Callable[[], Code]] = {
    "pca": PCA,
    "lda": LDA,
    "ica": ICA,
    "kmeans": KMeans,
    "onehot": OneHot,
    "correlated": CorrelatedFilters,
    "discriminant": Discriminant,
    "logistic": Logistic,
    "targets": Targets,
    "ridge": Ridge,
}
_PAIRS = "-pairs"


def register_code(name: str, factory: Callable[[], Code]) -> None:
    """Make ``code=name`` mean ``factory()``.

    Raises:
        OptionError: the name is taken.
    """
    if name in _CODES:
        raise OptionError(f"a code named {name!r} is registered already; choose another name")
    _CODES[name] = factory


def available_codes() -> list[str]:
    """Names that ``code=`` takes."""
    return sorted(_CODES)


def get_code(code: str | Code) -> Code:
    """The code of that name; a code is returned as it is.

    Raises:
        OptionError: there is none of that name, or there are no pairs of it.
        OptionTypeError: neither a name nor a :class:`Code`.
    """
    if isinstance(code, str):
        base = code.removesuffix(_PAIRS)
        if base not in _CODES:
            raise OptionError(
                f"code must be one of {available_codes()}, one of them with {_PAIRS!r} added, or a "
                f"Code, got {code!r}"
            )
        found = _CODES[base]()
        return SignPairs(found) if base != code else found
    if isinstance(code, Code):
        return code
    raise OptionTypeError(
        "code must be a name or an object with name, needs_labels, reservoir, reducible and fit, "
        f"got {type(code).__name__}"
    )
