"""What the names in a configuration stand for: part of what identifies a result.

A result must not be taken for that of another preset, code or initialiser that has the same name.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

from initialisers.table import BASELINES

import sylvinit
from sylvinit.codes import SignPairs, get_code
from sylvinit.errors import SylvinitError
from sylvinit.options import PRESETS

SYLVINIT, CORRELATED, HEAD = "sylvinit", "correlated", "head"
# What the rescaling of sylvinit's rows takes in place of its own constant.
DAMPING = "damping"
# For new heads alone.
SYLVINIT_HEAD, SKLEARN, SKLEARN_LDA = "sylvinit-head", "sklearn-logistic", "sklearn-lda"
# The preset of an arm that names none: the tables vary one setting of the first paper.
PRESET = "paper"
# Settings that are no argument of every initialiser: they choose the samples, change the network
# (sylvinit has an argument for that), or say what of an image a new head gets to see.
OF_SAMPLES = ("augmented", "per_class")
OF_NETWORK = ("branch_gain", "norms_of", "head_scale")
OF_HEADS = ("views",)
# Features of an image and of its mirror image: two samples, or their mean as one.
VIEWS = ("rows", "mean")


def code_from(value: Any) -> Any:
    """A code from JSON: a name, {"code": name, "field": value, ...}, {"pairs_of": one of these}, or
    those by module pattern.

    Raises:
        ValueError: such a code has no such field.
    """
    if isinstance(value, Mapping) and "code" in value:
        fields: dict[str, Any] = {key: item for key, item in value.items() if key != "code"}
        code: Any = get_code(value["code"])
        try:
            return dataclasses.replace(code, **fields)
        except TypeError as error:
            raise ValueError(f"code {value['code']!r}: {error}") from error
    if isinstance(value, Mapping) and value.keys() == {"pairs_of"}:
        return SignPairs(get_code(code_from(value["pairs_of"])))
    if isinstance(value, Mapping):
        return {pattern: code_from(item) for pattern, item in value.items()}
    return value


def arguments_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of an initialiser that settings stand for."""
    return {
        key: code_from(value) if key in ("code", "head_code") else value
        for key, value in settings.items()
        if key not in (*OF_SAMPLES, *OF_NETWORK, *OF_HEADS, DAMPING)
    }


def meaning(initialiser: str, settings: Mapping[str, Any], network: str) -> list[str]:
    """What an arm's names stand for, as text; empty for names that are nothing but a function."""
    base, _, head = initialiser.partition("+")
    found: list[str] = []
    if base in BASELINES:
        defaults = inspect.signature(BASELINES[base]).parameters.values()
        found += [str(item) for item in defaults if item.kind is item.KEYWORD_ONLY]
    if base == SYLVINIT:
        found += _of_preset(settings, network)
    for part in (settings, settings.get("head", {}) if head else {}):
        for key in ("code", "head_code"):
            value = code_from(part.get(key))
            values = value.values() if isinstance(value, Mapping) else [value]
            found += [repr(get_code(item)) for item in values if item not in (None, "auto")]
    other = settings.get("norms_of")
    if other is not None:
        found += meaning(other["initialiser"], other.get("settings", {}), network)
    return found


def wrong_with(initialiser: str, settings: Mapping[str, Any], of_head: bool) -> str | None:
    """Why an arm cannot be run, or None.

    Args:
        initialiser, settings: of the arm.
        of_head: whether it initialises a new head, and not a whole network.
    """
    base, plus, head = initialiser.partition("+")
    solved = [SYLVINIT_HEAD, SKLEARN, SKLEARN_LDA] if of_head else [SYLVINIT, CORRELATED]
    if base not in (*solved, *BASELINES) or (plus and (of_head or head != HEAD)):
        known = [*solved, *BASELINES]
        return f"initialiser {initialiser!r}: expected one of {known}" + (
            "" if of_head else f", or one of them with +{HEAD}"
        )
    wrong = _unknown(initialiser, settings, _settings_of(base, bool(plus), of_head))
    if wrong is None and plus:
        wrong = _unknown("head", settings.get(HEAD, {}), _keywords(sylvinit.initialize_head_))
    if wrong is None and "norms_of" in settings:
        wrong = _wrong_example(settings["norms_of"])
    gain = settings.get("branch_gain", 1.0)
    known = type(gain) in (int, float) and math.isfinite(gain)
    if wrong is None and not (known or (base == SYLVINIT and gain in ("depth", "none"))):
        wrong = f"branch_gain: expected a finite number, got {gain!r}"
    scale = settings.get("head_scale", 1.0)
    if wrong is None and not (type(scale) in (int, float) and math.isfinite(scale)):
        wrong = f"head_scale: expected a finite number, got {scale!r}"
    damping = settings.get(DAMPING, 0.0)
    if wrong is None and not (type(damping) in (int, float) and 0 <= damping < math.inf):
        wrong = f"damping: expected a number of at least 0, got {damping!r}"
    regular = settings.get("C", 1.0)
    positive = type(regular) in (int, float) and math.isfinite(regular) and regular > 0
    if wrong is None and regular != "cv" and not positive:
        wrong = f'C: expected a positive number or "cv", got {regular!r}'
    if wrong is None and settings.get("views", VIEWS[0]) not in VIEWS:
        wrong = f"views: expected one of {VIEWS}, got {settings['views']!r}"
    if wrong is None:
        try:
            meaning(initialiser, settings, "")
        except (SylvinitError, ValueError) as error:
            return str(error)
    return wrong


def _wrong_example(value: Any) -> str | None:
    """Why the arm whose norms are to be taken cannot be run, or None."""
    content = dict[str, Any](value) if isinstance(value, dict) else {}
    initialiser, settings = content.pop("initialiser", None), content.pop("settings", {})
    if not isinstance(initialiser, str) or not isinstance(settings, dict) or content:
        return f"norms_of: expected an object with initialiser and settings alone, got {value!r}"
    if "head_scale" in settings:
        return "norms_of: head_scale changes no convolution"
    return wrong_with(initialiser, settings, of_head=False)


def _settings_of(base: str, with_head: bool, of_head: bool) -> set[str]:
    if base == SKLEARN:
        return {*OF_HEADS, "standardise", "C"}
    if base == SKLEARN_LDA:
        return {*OF_HEADS}
    if base == SYLVINIT_HEAD:
        return _keywords(sylvinit.initialize_head_) | {*OF_HEADS}
    if of_head:
        return set()
    known: set[str] = {*OF_SAMPLES, *OF_NETWORK} | ({HEAD} if with_head else set())
    if base == SYLVINIT:
        known |= _keywords(sylvinit.initialize_) | {DAMPING}
    if base == CORRELATED:
        known |= _keywords(sylvinit.correlated_init_)
    return known


def _of_preset(settings: Mapping[str, Any], network: str) -> list[str]:
    name = settings.get("preset", PRESET)
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {tuple(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    codes = [preset.hidden(first=first, labeled=True, rectified=True) for first in (True, False)]
    # The gain of branches is a matter of networks that have some.
    values = {
        "name": preset.name,
        "patches": preset.patches,
        "lam": preset.lam,
        "head": preset.labeled_head,
        "rescale": preset.rescale == "variance",
        "supervised": preset.supervised,
        "pairs": preset.pairs,
    }
    text = ", ".join(f"{key}={value!r}" for key, value in values.items())
    found = [f"Preset({text})", *map(repr, codes)]
    if network.startswith("resnet") and "branch_gain" not in settings:
        found += [f"branch_gain={preset.branch_gain!r}"] if preset.branch_gain != "none" else []
    return found


def _keywords(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"model", "data"}


def _unknown(what: str, settings: Mapping[str, Any], known: set[str]) -> str | None:
    unknown = sorted(settings.keys() - known)
    if not unknown:
        return None
    return f"{what!r}: unknown settings {unknown}, expected some of {sorted(known)}"
