"""The arguments of the drivers, checked before anything is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sylvinit.backends import table
from sylvinit.checks import (
    Selection,
    check_choice,
    check_count,
    check_seed,
    check_used,
    matches,
)
from sylvinit.codes import Code, get_code
from sylvinit.errors import OptionError, OptionTypeError
from sylvinit.execution.batches import ForwardFn
from sylvinit.moments.rows import RowToSample
from sylvinit.presets import BranchGain, Preset, available_presets, get_preset

T = TypeVar("T")
_MOST_GAIN = 1e4  # which every floating type of parameters holds


@dataclass(frozen=True)
class ByName(Generic[T]):
    """A value for every layer name: the first pattern that matches decides, else the default."""

    argument: str
    default: T
    patterns: dict[str, T]

    def __call__(self, name: str) -> T:
        """The value for a layer of that name."""
        for pattern, value in self.patterns.items():
            if matches(name, pattern):
                return value
        return self.default

    def plain(self, convert: Callable[[T], Any]) -> Any:
        """The value, or a dict of the values by pattern, for reports."""
        if not self.patterns:
            return convert(self.default)
        return {pattern: convert(value) for pattern, value in self.patterns.items()}

    def values(self) -> list[T]:
        """Every value that may be asked for."""
        return [self.default, *self.patterns.values()]


@dataclass(frozen=True)
class Options:
    """Checked arguments of :func:`sylvinit.initialize_`."""

    preset: Preset
    code: ByName[Code | None]
    head: str | None
    head_code: Code | None
    lam: ByName[float]
    patches: int | None
    selection: Selection
    microbatch: int | None
    max_samples: int | None
    recompute: bool
    split_siblings: bool
    calibrate_norm: bool
    rescale: bool
    branch_gain: BranchGain
    gain_asked: bool
    seed: int
    backend: str
    progress: bool | None
    dry_run: bool
    forward_fn: ForwardFn | None
    row_to_sample: RowToSample | None
    head_only: bool

    def settings(self) -> dict[str, Any]:
        """The arguments as plain values: codes and functions by their names."""
        return {
            "preset": self.preset.name,
            "code": self.code.plain(lambda code: None if code is None else code.name),
            "head": self.head,
            "head_code": "auto" if self.head_code is None else self.head_code.name,
            "lam": self.lam.plain(lambda lam: lam),
            "patches": self.patches or "all",
            **self.selection.settings(),
            "microbatch": self.microbatch,
            "max_samples": self.max_samples,
            "storage": "recompute" if self.recompute else "memory",
            "siblings": "split" if self.split_siblings else "same",
            "calibrate_norm": self.calibrate_norm,
            "rescale": "variance" if self.rescale else "none",
            "branch_gain": self.branch_gain,
            "seed": self.seed,
            "backend": self.backend,
            "progress": self.progress,
            "dry_run": self.dry_run,
            "forward_fn": _function_name(self.forward_fn),
            "row_to_sample": _function_name(self.row_to_sample),
        }

    def selects(self, name: str) -> bool:
        """Whether include and exclude let a module through."""
        return self.selection.takes(name)

    @property
    def wants_gains(self) -> bool:
        """Whether there is something to give to what ends a residual branch."""
        return self.branch_gain != "none" and self.calibrate_norm and not self.head_only

    def gain_of_branches(self, count: int) -> float | None:
        """Scale of what ends a residual branch of a network with so many; None to leave it.

        "depth" is count ** -0.5: with it all branches together add about as much variance as their
        input has, where no shortcut is normalised.
        """
        if self.branch_gain == "none" or count == 0:
            return None
        return count**-0.5 if self.branch_gain == "depth" else float(self.branch_gain)

    def check_patterns(self, layers: list[str], norms: list[str]) -> None:
        """Raise OptionError if a pattern has no effect: it matches no layer or normalisation."""
        self.selection.check([*layers, *norms])
        check_used("code", self.code.patterns, layers)
        check_used("lam", self.lam.patterns, layers)


def check_options(
    *,
    preset: Any,
    code: Any,
    head: Any,
    head_code: Any,
    lam: Any,
    patches: Any,
    include: Any,
    exclude: Any,
    microbatch: Any,
    max_samples: Any,
    storage: Any,
    siblings: Any,
    calibrate_norm: Any,
    rescale: Any,
    branch_gain: Any,
    seed: Any,
    backend: Any,
    progress: bool | None,
    dry_run: bool,
    forward_fn: ForwardFn | None,
    row_to_sample: RowToSample | None,
    head_only: bool = False,
) -> Options:
    """Check every argument.

    Raises:
        OptionError: a value is outside its domain.
        OptionTypeError: a value has the wrong type.
    """
    if head is not None and not isinstance(head, str):
        raise OptionTypeError(f"head must be a module name or None, got {type(head).__name__}")
    for argument, function in (("forward_fn", forward_fn), ("row_to_sample", row_to_sample)):
        if function is not None and not callable(function):
            raise OptionTypeError(f"{argument} must be callable, got {type(function).__name__}")
    chosen = get_preset(check_choice("preset", preset, available_presets()))
    patches = chosen.patches if patches is None else patches
    return Options(
        preset=chosen,
        code=_by_name("code", code, None, lambda given: None if given is None else get_code(given)),
        head=head,
        head_code=_head_code(head_code),
        lam=_by_name("lam", chosen.lam if lam is None else lam, chosen.lam, _lam),
        patches=None if patches == "all" else check_count("patches", patches, "or 'all'"),
        selection=Selection.of(include, exclude),
        microbatch=None if microbatch is None else check_count("microbatch", microbatch, "or None"),
        max_samples=None
        if max_samples is None
        else check_count("max_samples", max_samples, "or None"),
        recompute=check_choice("storage", storage, ("memory", "recompute")) == "recompute",
        split_siblings=check_choice("siblings", siblings, ("split", "same")) == "split",
        calibrate_norm=bool(calibrate_norm),
        rescale=_rescale(rescale, chosen),
        branch_gain=chosen.branch_gain if branch_gain is None else _branch_gain(branch_gain),
        gain_asked=branch_gain not in (None, "none"),
        seed=check_seed(seed),
        backend=_backend(backend),
        progress=progress,
        dry_run=bool(dry_run),
        forward_fn=forward_fn,
        row_to_sample=row_to_sample,
        head_only=head_only,
    )


def _rescale(value: Any, preset: Preset) -> bool:
    choice = check_choice("rescale", value, (None, "variance", "none"))
    return preset.rescale if choice is None else choice == "variance"


def _branch_gain(value: Any) -> BranchGain:
    expected = f"branch_gain must be a number up to {_MOST_GAIN:g} in size, 'depth', 'none' or None"
    if isinstance(value, str):
        if value not in ("depth", "none"):
            raise OptionError(f"{expected}, got {value!r}")
        return value
    if isinstance(value, bool):
        raise OptionTypeError(f"{expected}, got {value!r}")
    try:
        gain = float(value)
    except (TypeError, ValueError) as error:
        raise OptionTypeError(f"{expected}, got {value!r}") from error
    except OverflowError:
        gain = math.inf
    if not abs(gain) <= _MOST_GAIN:
        raise OptionError(f"{expected}, got {value!r}")
    return gain


def _by_name(argument: str, value: Any, default: Any, check: Callable[[Any], T]) -> ByName[T]:
    if not isinstance(value, Mapping):
        return ByName(argument, check(value), {})
    for pattern in value:
        if not isinstance(pattern, str):
            raise OptionTypeError(f"{argument}: patterns must be strings, got {pattern!r}")
    return ByName(argument, check(default), {key: check(item) for key, item in value.items()})


def _head_code(value: Any) -> Code | None:
    """The code; None for "auto"."""
    if isinstance(value, str) and value == "auto":
        return None
    try:
        return get_code(value)
    except (OptionError, OptionTypeError) as error:
        raise type(error)(f"head_code must be 'auto' or a code: {error}") from error


def _backend(value: Any) -> str:
    names = [row.name for row in table()]
    if value not in ("auto", *names):
        raise OptionError(f"backend must be 'auto' or one of {names}, got {value!r}")
    return value


def _lam(value: Any) -> float:
    try:
        lam = float(value)
    except (TypeError, ValueError) as error:
        raise OptionTypeError(f"lam must be a positive number, got {value!r}") from error
    if not (lam > 0 and math.isfinite(lam)):
        raise OptionError(f"lam must be positive and finite, got {value!r}")
    return lam


def _function_name(function: Callable[..., Any] | None) -> str | None:
    if function is None:
        return None
    return getattr(function, "__qualname__", type(function).__qualname__)
