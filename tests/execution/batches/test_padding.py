"""Padding masks: found by name, asked for, and warned about where they stay unused."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import pytest
import torch
from driver_helpers import CLASSES, assert_identical, images, initialized, unchanged
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import DataError, OptionError, OptionTypeError

X, Y = images(30)
LENGTHS = 1 + torch.arange(30) % 7
REAL = torch.arange(7) < LENGTHS[:, None]
TOKENS = torch.randn(30, 7, 5, generator=torch.Generator().manual_seed(0))
# Differs from TOKENS in padding alone.
OTHER = torch.where(REAL[:, :, None], TOKENS, TOKENS.flip(0) + 1)


class Tokens(nn.Module):
    """A layer on every token, the mean over real ones, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.body, self.head = nn.Linear(5, 8), nn.Linear(8, CLASSES)

    def pooled(self, x: Tensor, real: Tensor) -> Tensor:
        x = self.body(x).relu() * real[:, :, None]
        return self.head(x.sum(dim=1) / real.sum(dim=1, keepdim=True))


class Attention(Tokens):
    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.pooled(x, attention_mask)


class Mask(Tokens):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.pooled(x, mask)


class Lengths(Tokens):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.pooled(x, torch.arange(x.shape[1]) < lengths[:, None])


class KeyPadding(Tokens):
    def forward(self, x: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        return self.pooled(x, src_key_padding_mask == 0)


class Valid(Tokens):
    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.pooled(x, valid)


class Fields(NamedTuple):
    x: Tensor
    mask: Tensor
    label: Tensor


# The model, the name of its mask, and the mask.
MASKS: dict[str, tuple[type[Tokens], str, Tensor]] = {
    "mask": (Mask, "mask", REAL),
    "whole numbers": (Mask, "mask", REAL.long()),
    "floats": (Mask, "mask", REAL.float()),
    "another name": (Valid, "valid", REAL),
    "lengths": (Lengths, "lengths", LENGTHS),
    "true at padding": (KeyPadding, "src_key_padding_mask", ~REAL),
    "added to scores": (
        KeyPadding,
        "src_key_padding_mask",
        torch.zeros(30, 7).masked_fill(~REAL, -torch.inf),
    ),
}


def expected(**options: Any) -> dict[str, Tensor]:
    data = {"x": TOKENS, "attention_mask": REAL.long(), "labels": Y}
    return initialized(Attention(), data, microbatch=8, **options)


@pytest.mark.parametrize("patches", ["all", 3])
@pytest.mark.parametrize("x", [TOKENS, OTHER], ids=["", "other padding"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_that_are_asked_for(name: str, x: Tensor, patches: Any) -> None:
    kind, key, mask = MASKS[name]
    options: dict[str, Any] = {"microbatch": 8, "patches": patches, "padding_mask": key}
    by_name = initialized(kind(), {"x": x, key: mask, "labels": Y}, **options)
    assert_identical(expected(patches=patches), by_name)
    positional = initialized(kind(), (((x, mask)), Y), **options)
    assert_identical(by_name, positional)


def test_functions_of_the_inputs() -> None:
    data = {"x": OTHER, "valid": REAL, "labels": Y}
    for function in (
        lambda inputs: inputs["valid"],
        lambda inputs: LENGTHS[: len(inputs["x"])] * 0 + inputs["valid"].sum(dim=1),
        lambda inputs: inputs["valid"].numpy(),
        lambda inputs: inputs["valid"].tolist(),
    ):
        found = initialized(Valid(), data, microbatch=8, padding_mask=function)
        assert_identical(expected(), found)


def test_a_field_of_a_named_tuple() -> None:
    found = initialized(Mask(), Fields(OTHER, REAL, Y), microbatch=8, padding_mask="mask")
    assert_identical(expected(), found)


def test_names_that_only_forward_fn_knows() -> None:
    def call(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return model(inputs["tokens"], inputs["kept"])

    data = {"tokens": OTHER, "kept": REAL, "labels": Y}
    options: dict[str, Any] = {"microbatch": 8, "forward_fn": call, "padding_mask": "kept"}
    assert_identical(expected(), initialized(Mask(), data, **options))


def test_the_head_alone() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, CLASSES)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(x)

    models = []
    for x in (TOKENS, OTHER):
        model = Last()
        data = {"x": x, "mask": REAL, "labels": Y}
        report = sylvinit.initialize_head_(model, data, padding_mask="mask", patches="all")
        assert report["head"].rows == int(LENGTHS.sum())
        models.append(model)
    assert torch.equal(models[0].head.weight, models[1].head.weight)


# ------------------------------------------------------------------------------------ left unused


def warned(model: nn.Module, data: Any, **options: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = sylvinit.initialize_(model, data, **{"preset": "best", **options})
    texts = [str(x.message) for x in caught if "padding" in str(x.message)]
    assert [x for x in report.warnings if "padding" in x] == texts
    assert len(texts) <= 1
    return "".join(texts)


@pytest.mark.parametrize("name", MASKS)
def test_a_candidate_that_stays_unused(name: str) -> None:
    kind, key, mask = MASKS[name]
    by_name = {"x": TOKENS, key: mask, "labels": Y}
    for data in (by_name, ((TOKENS, mask), Y), [((TOKENS[:9], mask[:9]), Y[:9])]):
        assert f"the input {key} looks like a padding mask" in warned(kind(), data)
    assert f"padding_mask='{key}'" in warned(kind(), by_name)


def test_an_attention_mask_among_arguments() -> None:
    assert "the input attention_mask" in warned(Attention(), ((TOKENS, REAL), Y))


@pytest.mark.parametrize(
    "options",
    [
        {"padding_mask": "valid"},
        {"padding_mask": lambda inputs: inputs["valid"]},
        {"row_to_sample": lambda name, x, samples: None},
    ],
    ids=["named", "function", "row_to_sample"],
)
def test_no_warning_where_it_is_decided(options: Any) -> None:
    assert warned(Valid(), {"x": TOKENS, "valid": REAL, "labels": Y}, **options) == ""


def test_no_warning_where_nothing_is_padding() -> None:
    full = torch.ones_like(REAL)
    assert warned(Mask(), {"x": TOKENS, "mask": full, "labels": Y}) == ""
    assert warned(Lengths(), {"x": TOKENS, "lengths": full.sum(dim=1), "labels": Y}) == ""


def test_no_warning_where_no_input_has_as_many_tokens() -> None:
    class Flags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, CLASSES)

        def forward(self, x: Tensor, flags: Tensor) -> Tensor:
            return self.head(x + flags.float().mean(dim=1, keepdim=True))

    assert warned(Flags(), {"x": X.flatten(1)[:, :12], "flags": REAL, "labels": Y}) == ""


# --------------------------------------------------------------------------------------- bad masks

DATA = {"x": TOKENS, "mask": REAL, "labels": Y}
BAD: list[tuple[str, Any, Any, type[Exception], str]] = [
    ("a number", DATA, 3, OptionTypeError, "must be the name of an input or a function"),
    ("no input", DATA, "masks", OptionError, "padding_mask='masks' names no input: .* x, mask;"),
    ("no tensor", DATA, lambda inputs: "mask", DataError, "returned must be a tensor, got str"),
    ("its axes", DATA, "x", DataError, r"must have shape \(samples, length\).*\(30, 7, 5\)"),
    ("too few", DATA, lambda inputs: REAL[:3], DataError, r"\(3, 7\) for 30 samples"),
    (
        "too long",
        DATA,
        lambda inputs: LENGTHS + 1,
        DataError,
        "from 0 to the length of the first input .* is 7; got up to 8",
    ),
    ("negative lengths", DATA, lambda inputs: -LENGTHS, DataError, "must be lengths"),
    (
        "added to scores",
        DATA | {"mask": MASKS["added to scores"][2]},
        "mask",
        DataError,
        r"negative numbers, .*padding_mask=lambda inputs: inputs\['mask'\] == 0",
    ),
    (
        "added to scores, among arguments",
        ((TOKENS, MASKS["added to scores"][2]), Y),
        "mask",
        DataError,
        "negative numbers, .*true at real tokens, as in mask == 0",
    ),
]


@pytest.mark.parametrize(
    ("data", "asked", "error", "message"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_bad_masks(data: Any, asked: Any, error: type[Exception], message: str) -> None:
    model = Mask()
    with unchanged(model), pytest.raises(error, match=message):
        sylvinit.initialize_(model, data, preset="best", microbatch=8, padding_mask=asked)
