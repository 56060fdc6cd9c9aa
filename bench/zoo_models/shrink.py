"""Small configurations of transformers' models, by the names of their fields alone."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

_LAYERS = re.compile(r"layers?$|^depths?$|_depth$|blocks$")
_HEADS = re.compile(r"heads?$|num_key_value|n_head|_kv_heads?")
_HEAD_WIDTH = re.compile(r"head_dim|head_size|head_width|d_kv|kv_channels")
_WIDTH = re.compile(
    r"hidden|embed|dim|width|channels|filters|rank|model_size|layer_size|d_model|d_ff|d_inner|n_inner"
    r"|n_embd|ffn|intermediate|^sizes$|proj"
)
_NO_WIDTH = re.compile(
    r"num_channels|in_chan|vocab|image|patch|kernel|window|head|position|chunk|pool|stride|layers|type"
    r"|prob|dropout|act|groups|index|ratio|factor|num_experts|eps|drop|rate|num_hidden|bias|axes"
)
_EXPERTS = re.compile(r"(num|n).*experts$")
_EXPERTS_TAKEN = re.compile(r"experts_per|top_?k|topk")
_VOCABULARY = re.compile(r"vocab_size")
_SPECIAL = re.compile(r"token_id$")

VOCABULARY = 128
SIDE = 112  # pixels: of images, 7 windows of 16
_ALL = 1_000
PAD, START, END = 0, 1, 2


@dataclass(frozen=True)
class Shrinkage:
    """How a configuration is made smaller.

    Widths are divided by ``divisor``, and either the number of heads as well or the width of each.
    """

    divisor: int
    fewer_heads: bool
    layers: int = 2
    experts: int = 4


# From small to large: the first that the model and its own checks accept is taken.
LADDER = tuple(
    Shrinkage(divisor, fewer, layers)
    for divisor in (32, 16, 8, 4, 2, 1)
    for fewer in (True, False)
    for layers in (2, 4, _ALL)
)


def small_fields(config_class: type, how: Shrinkage) -> dict[str, Any]:
    """The fields of a configuration, and of those in it, that differ from their defaults."""
    changed: dict[str, Any] = {}
    defaults = {
        item.name: item.default
        if item.default_factory is dataclasses.MISSING
        else item.default_factory()
        for item in dataclasses.fields(config_class)
    }
    depths = [value for name, value in defaults.items() if _LAYERS.search(name)]
    for name, default in defaults.items():
        value = _small(name, default, how)
        if isinstance(value, (list, tuple)) and len(value) > 4 and len(value) in depths:
            value = value[: how.layers]  # an entry for each layer
        if value != default:
            changed[name] = value
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if dataclasses.is_dataclass(part) and part.__name__ != "AutoConfig":
            changed[name] = small_fields(part, how)
    return changed


def _small(name: str, value: Any, how: Shrinkage) -> Any:
    if isinstance(value, (list, tuple)) and value and not _SPECIAL.search(name):
        divisor = how.divisor
        while divisor > 1 and any(_divided(item, divisor) == item for item in value):
            divisor //= 2  # stages grow by equal factors, so that one divisor is for all
        layers = 1 if how.layers == 2 else how.layers
        inner = dataclasses.replace(how, layers=layers, divisor=divisor)
        return type(value)(_small(name, item, inner) for item in value)
    if _SPECIAL.search(name):
        return _special(name, value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return value
    if _VOCABULARY.search(name):
        return min(value, VOCABULARY)
    if name == "image_size":
        return min(value, SIDE) if how.divisor > 1 else value
    if _EXPERTS.search(name):
        return min(value, how.experts)
    if _EXPERTS_TAKEN.search(name):
        return min(value, 2)
    if _HEAD_WIDTH.search(name):
        return value if how.fewer_heads else _divided(value, how.divisor)
    if _HEADS.search(name):
        return max(1, value // how.divisor) if how.fewer_heads else value
    if _LAYERS.search(name):
        return min(value, how.layers)
    if _WIDTH.search(name) and not _NO_WIDTH.search(name):
        return _divided(value, how.divisor)
    return value


def _divided(value: Any, divisor: int) -> Any:
    if isinstance(value, int) and value % divisor == 0 and value >= 4 * divisor:
        return value // divisor
    return value


def _special(name: str, value: Any) -> Any:
    """Ids below the smaller vocabulary; padding, which classifiers of sequences need."""
    for key, small in (("pad", PAD), ("bos", START), ("decoder_start", START), ("eos", END)):
        if name == f"{key}_token_id":
            return small
    if isinstance(value, int) and value >= VOCABULARY:
        return value % (VOCABULARY - 4) + 3
    return value
