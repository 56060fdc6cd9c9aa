"""Checks of single arguments: numbers, choices, patterns of names."""

from __future__ import annotations

import math
import numbers
import operator
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import OptionError, OptionTypeError


def check_number(
    argument: str,
    value: Any,
    *,
    positive: bool = False,
    largest: float | None = None,
    otherwise: str = "",
) -> float:
    """A finite number of at least zero, or of either sign where ``largest`` bounds its size.

    Numbers are Python's, NumPy's and tensors or arrays of one entry; strings and booleans are not.
    ``otherwise`` says what else the argument may be.

    Raises:
        OptionError: negative, too large, not finite, or, if ``positive``, zero.
        OptionTypeError: not a number.
    """
    otherwise = f", or {otherwise}" if otherwise else ""
    if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise OptionTypeError(f"{argument} must be a number{otherwise}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    low, high = (0.0, sys.float_info.max) if largest is None else (-largest, largest)
    if not low <= number <= high or (positive and number == 0):
        kind = "positive" if positive else "at least 0"
        kind = kind if largest is None else f"at most {largest:g} in size"
        raise OptionError(f"{argument} must be finite and {kind}{otherwise}, got {value!r}")
    return number


def check_count(argument: str, value: Any, otherwise: str = "") -> int:
    """A whole number of at least 1; ``otherwise`` says what else the argument may be."""
    otherwise = f" {otherwise}" if otherwise else ""
    try:
        count = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        count = None
    if count is None:
        raise OptionTypeError(f"{argument} must be a positive integer{otherwise}, got {value!r}")
    if count < 1:
        raise OptionError(f"{argument} must be at least 1{otherwise}, got {value!r}")
    return count


def check_seed(value: Any) -> int:
    """A whole number of 64 bits with sign."""
    if isinstance(value, (bool, np.bool_)):
        raise OptionTypeError(f"seed must be an integer, got {value!r}")
    try:
        seed = operator.index(value)
    except TypeError as error:
        raise OptionTypeError(f"seed must be an integer, got {value!r}") from error
    if not -(2**63) <= seed < 2**63:
        raise OptionError(f"seed must fit into 64 bits, got {value!r}")
    return seed


def check_flag(argument: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise OptionTypeError(f"{argument} must be True or False, got {value!r}")
    return bool(value)


def check_generator(value: Any) -> torch.Generator | None:
    """A generator of torch, or None for the global one."""
    if value is not None and not isinstance(value, torch.Generator):
        raise OptionTypeError(
            f"generator must be a torch.Generator or None, got {type(value).__name__}"
        )
    return value


def check_choice(argument: str, value: Any, choices: Sequence[str]) -> Any:
    """One of the choices, which are strings."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{argument} must be one of {list(choices)}, got {value!r}")
    return value


def check_patterns(argument: str, value: Any) -> tuple[str, ...]:
    """A pattern of names, or several."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise OptionTypeError(f"{argument} must be a pattern or a list of patterns, got {value!r}")
    patterns = tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise OptionTypeError(f"{argument}: patterns must be strings, got {pattern!r}")
    return patterns


def matches(name: str, pattern: str) -> bool:
    """Whether an fnmatch pattern fits a name; a name with brackets in it fits itself."""
    return name == pattern or fnmatchcase(name, pattern)


def check_used(argument: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise OptionError if a pattern fits no name."""
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            shown = ", ".join(name or "''" for name in names[:8])
            shown += ", ..." if len(names) > 8 else ""
            remedy = "write 'block.*' for all that a module contains"
            if any(pattern in name for name in names):
                remedy = f"{'*' + pattern + '*'!r} matches every name with {pattern!r} in it"
            raise OptionError(
                f"{argument}: the pattern {pattern!r} matches no layer; names are {shown}; {remedy}"
            )


@dataclass(frozen=True)
class Selection:
    """Names that include lets in and exclude does not keep out."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]

    @staticmethod
    def of(include: Any, exclude: Any) -> Selection:
        """From the arguments of these names; None selects everything."""
        return Selection(
            None if include is None else check_patterns("include", include),
            () if exclude is None else check_patterns("exclude", exclude),
        )

    def settings(self) -> dict[str, list[str] | None]:
        """The arguments as plain values, for reports."""
        return {
            "include": None if self.include is None else list(self.include),
            "exclude": list(self.exclude),
        }

    def takes(self, name: str) -> bool:
        """Whether a name is selected."""
        if any(matches(name, pattern) for pattern in self.exclude):
            return False
        return self.include is None or any(matches(name, pattern) for pattern in self.include)

    def check(self, names: Sequence[str]) -> None:
        """Raise OptionError if a pattern fits no name."""
        check_used("include", self.include or (), names)
        check_used("exclude", self.exclude, names)
