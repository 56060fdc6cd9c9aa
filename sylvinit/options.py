"""The arguments of the drivers, checked before anything is touched, and their presets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from numbers import Integral
from typing import Annotated, Any, Generic, Literal, TypeVar, get_type_hints

from torch import nn

from sylvinit.backends import table
from sylvinit.checks import (
    Selection,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_patterns,
    check_seed,
    check_used,
    matches,
)
from sylvinit.codes import PCA, Code, Discriminant, OneHot, SignPairs, get_code
from sylvinit.distributed import check_group
from sylvinit.errors import OptionError, OptionTypeError
from sylvinit.moments.rows import RowToSample

T = TypeVar("T")
ForwardFn = Callable[[nn.Module, Any], Any]
PaddingMask = str | Callable[[Any], Any]
PresetName = Literal["auto", "best", "paper", "frozen"]
BranchGain = float | Literal["depth", "none"]
_LARGEST_GAIN = 1e4  # which every floating type of parameters holds


# ---------------------------------------------------------------------------------------- presets


@dataclass(frozen=True)
class Preset:
    """Values of arguments that belong together."""

    name: PresetName
    patches: int = 10
    lam: float = 10.0
    rescale: str = "variance"
    branch_gain: BranchGain = "none"
    labeled_head: Code = field(default_factory=OneHot)  # if it has an output for every class
    supervised: bool = False  # whether hidden layers behind the first one use labels
    pairs: bool = False  # whether rectified layers have entries in pairs of opposite sign

    def hidden(self, *, first: bool, labeled: bool, rectified: bool) -> Code:
        """Code of a hidden layer, the first of the network or not, with class labels or not.

        What the first layer does not pass on is lost to all others, and single patches of the input
        tell little of the class: so it keeps the principal components.
        """
        code = Discriminant() if self.supervised and labeled and not first else PCA()
        return SignPairs(code) if self.pairs and rectified else code


# One-hot heads in all: their scores stay near 0 and 1. Those of a logistic head grow with how easy
# the training samples are, and features that were made with labels make them very easy: training
# from there went wrong at a learning rate of 0.1.
#
# "best" was chosen by the accuracy after training, on images that were neither trained on nor
# tested on (bench/experiments/configs/choose_preset.json). What wins before training ("frozen") was
# no better after it than random weights. "best" is the default since "paper" has not been
# significantly better after training in any table (above it with 500 images a class,
# few_shot_500_cifar10.json; below or level with fewer), and fails in networks without normalization
# (few_shot_vgg8.json), where outputs of rows as they solve the equation grow from layer to layer.
# With a gain of residual branches "frozen" is a little higher before training (ideas_before.json).
# It helps "best" after 200 epochs (ideas_branches.json), but slows branches down: after five epochs
# at a low rate the demo's ResNet-20 is 6 points behind. So "best" leaves them as they are.
_BEST = Preset("best")
_PAPER = replace(_BEST, name="paper", rescale="none")
_FROZEN = replace(
    _BEST, name="frozen", patches=30, branch_gain="depth", supervised=True, pairs=True
)
# "auto" has the values of "best", which is one of those that it chooses from.
PRESETS: dict[str, Preset] = {
    preset.name: preset for preset in (replace(_BEST, name="auto"), _BEST, _PAPER, _FROZEN)
}


# -------------------------------------------------------------------------------- single arguments


@dataclass(frozen=True)
class ByName(Generic[T]):
    """A value for every layer name: the first pattern that matches decides, else the default."""

    default: T
    patterns: dict[str, T]

    def __call__(self, name: str) -> T:
        """The value for a layer of that name."""
        fitting = (value for pattern, value in self.patterns.items() if matches(name, pattern))
        return next(fitting, self.default)

    def values(self) -> list[T]:
        """Every value that may be asked for."""
        return [self.default, *self.patterns.values()]


def _by_name(argument: str, value: Any, default: Any, check: Callable[[str, Any], T]) -> ByName[T]:
    if not isinstance(value, Mapping):
        return ByName(check(argument, value), {})
    check_patterns(argument, value)
    given = {pattern: check(argument, item) for pattern, item in value.items()}
    return ByName(check(argument, default), given)


def _preset(argument: str, value: Any) -> Preset:
    return PRESETS[check_choice(argument, value, tuple(PRESETS))]


def _codes(argument: str, value: Any) -> ByName[Code | None]:
    return _by_name(argument, value, None, lambda _, code: None if code is None else get_code(code))


def _head_code(argument: str, value: Any) -> Code | None:
    if isinstance(value, str) and value == "auto":
        return None
    try:
        return get_code(value)
    except (OptionError, OptionTypeError) as error:
        raise type(error)(f"{argument} must be 'auto' or a code: {error}") from error


def _lam(argument: str, value: Any) -> ByName[float]:
    return _by_name(argument, value, _BEST.lam, partial(check_number, positive=True))


def _patches(argument: str, value: Any) -> int | None:
    if isinstance(value, str) and value == "all":
        return None
    return check_count(argument, value, "or 'all'")


def _exclude(argument: str, value: Any) -> tuple[str, ...]:
    return () if value is None else check_patterns(argument, value)


def _branch_gain(argument: str, value: Any) -> Any:
    otherwise = "'depth', 'none' or None"
    if not isinstance(value, str):
        return check_number(argument, value, largest=_LARGEST_GAIN, otherwise=otherwise)
    if value not in ("depth", "none"):
        raise OptionError(f"{argument} must be a number, or {otherwise}, got {value!r}")
    return value


def _backend(argument: str, value: Any) -> str:
    return check_choice(argument, value, ("auto", *(row.name for row in table())))


def _seed(argument: str, value: Any) -> int:
    return check_seed(value)


def _whole_number(argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionTypeError(f"{argument} must be an integer, got {type(value).__name__}")
    return int(value)


def _name(argument: str, value: Any) -> str:
    if not isinstance(value, str):
        raise OptionTypeError(
            f"{argument} must be a module name or None, got {type(value).__name__}"
        )
    return value


def _function(argument: str, value: Any) -> Any:
    if not callable(value):
        raise OptionTypeError(f"{argument} must be callable, got {type(value).__name__}")
    return value


def _padding_mask(argument: str, value: Any) -> Any:
    if isinstance(value, str) or callable(value):
        return value
    raise OptionTypeError(
        f"{argument} must be the name of an input or a function of the inputs, got "
        f"{type(value).__name__}"
    )


def _process_group(argument: str, value: Any) -> str | None:
    group = check_group(argument, value)
    if group is None or isinstance(value, str):
        return value
    return f"a group of {group.size()} ranks"


def _optional(check: Callable[[str, Any], T]) -> Callable[[str, Any], T | None]:
    return lambda argument, value: None if value is None else check(argument, value)


def _one_of(*choices: str) -> Callable[[str, Any], str]:
    return lambda argument, value: check_choice(argument, value, choices)


# --------------------------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Options:
    """Checked arguments of :func:`sylvinit.initialize_`, a field for each of its keywords.

    A field's type comes with the check that makes it from what was given, and with what None reads
    in reports if that is not null: ``patches`` is None for "all", ``head_code`` for "auto".
    """

    preset: Annotated[Preset, _preset]
    code: Annotated[ByName[Code | None], _codes]
    head: Annotated[str | None, _optional(_name)]
    head_code: Annotated[Code | None, _head_code, "auto"]
    lam: Annotated[ByName[float], _lam]
    patches: Annotated[int | None, _patches, "all"]
    include: Annotated[tuple[str, ...] | None, _optional(check_patterns)]
    exclude: Annotated[tuple[str, ...], _exclude]
    microbatch: Annotated[int | None, _optional(partial(check_count, otherwise="or None"))]
    max_samples: Annotated[int | None, _optional(partial(check_count, otherwise="or None"))]
    storage: Annotated[str, _one_of("memory", "recompute")]
    siblings: Annotated[str, _one_of("split", "same")]
    calibrate_norm: Annotated[bool, check_flag]
    rescale: Annotated[str, _one_of("variance", "none")]
    branch_gain: Annotated[BranchGain, _branch_gain]
    seed: Annotated[int, _seed]
    backend: Annotated[str, _backend]
    progress: Annotated[bool | None, _optional(check_flag)]
    dry_run: Annotated[bool, check_flag]
    forward_fn: Annotated[ForwardFn | None, _optional(_function)]
    row_to_sample: Annotated[RowToSample | None, _optional(_function)]
    padding_mask: Annotated[PaddingMask | None, _optional(_padding_mask)]
    ignore_index: Annotated[int, _whole_number]
    balance: Annotated[bool, check_flag]
    process_group: Annotated[str | None, _process_group]
    head_only: bool = False  # as in initialize_head_
    gated: bool = False  # whether the body is chosen by how well a head does on its features
    kept: str = ""  # why all layers but the head are left alone; empty where they are solved
    keeps_head: bool = False  # and the head as well
    patches_given: bool = False  # and not the preset's

    @classmethod
    def checked(cls, given: Mapping[str, Any], *, head_only: bool = False) -> Options:
        """From a driver's arguments by name; those that are None are the preset's.

        Raises:
            OptionError, OptionTypeError: a value is outside its domain, or of the wrong type.
        """
        preset = _preset("preset", given["preset"])
        values: dict[str, Any] = {}
        for name, (check, *_) in _checks().items():
            value = given[name]
            values[name] = check(name, getattr(preset, name, None) if value is None else value)
        patches_given = given["patches"] is not None
        chosen = any(given[name] is not None for name in ("code", "include", "exclude", "rescale"))
        return cls(
            **values,
            head_only=head_only,
            gated=preset.name == "auto" and not chosen,
            kept="not the head" if head_only else "",
            patches_given=patches_given,
        )

    @property
    def shrinks_head(self) -> bool:
        """Whether a head of numbers is left part of its way: behind a body that will be trained."""
        return bool(self.kept) and not self.head_only and self.head_code is None

    def settings(self) -> dict[str, Any]:
        """The arguments as plain values: codes and functions by their names."""
        plain: dict[str, Any] = {}
        for name, (_, *none) in _checks().items():
            value = getattr(self, name)
            plain[name] = none[0] if value is None and none else _plain(value)
        return plain

    def lines(self) -> Iterator[str]:
        """What has to be the same on all ranks."""
        for name, value in {**self.settings(), "head_only": self.head_only}.items():
            if name not in ("microbatch", "progress"):
                yield f"{name}={value!r}"

    def selects(self, name: str) -> bool:
        """Whether include and exclude let a module through."""
        return Selection(self.include, self.exclude).takes(name)

    def check_patterns(self, layers: list[str], norms: list[str]) -> None:
        """Raise OptionError if a pattern matches no layer or normalization."""
        Selection(self.include, self.exclude).check([*layers, *norms])
        check_used("code", self.code.patterns, layers)
        check_used("lam", self.lam.patterns, layers)

    def gain_of_branches(self, count: int) -> float | None:
        """Scale of what ends a residual branch of a network with so many; None to leave it.

        "depth" is count ** -0.5: with it all branches together add about as much variance as their
        input has, where no shortcut is normalized.
        """
        if self.branch_gain == "none" or count == 0:
            return None
        return count**-0.5 if self.branch_gain == "depth" else float(self.branch_gain)


@cache
def _checks() -> dict[str, tuple[Any, ...]]:
    """For every argument its check, and what None reads in reports if that is not null."""
    hints = get_type_hints(Options, include_extras=True)
    return {
        name: hint.__metadata__ for name, hint in hints.items() if hasattr(hint, "__metadata__")
    }


def _plain(value: Any) -> Any:
    if isinstance(value, ByName):
        patterns = {pattern: _plain(item) for pattern, item in value.patterns.items()}
        return patterns or _plain(value.default)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, (Preset, Code)):
        return value.name
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return value
