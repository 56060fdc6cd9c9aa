"""Labels of other shapes, and labels that reach the model or forward_fn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driver_helpers import (
    SkipNet,
    assert_identical,
    images,
    initialized,
    mlp,
    unchanged,
)
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import DataError, LabelError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("code", ["onehot", "logistic"])
def test_columns_of_integers_are_classes(dtype: torch.dtype, code: str) -> None:
    expected = initialized(mlp(), (ROWS, Y), head_code=code, code="lda")
    column = Y[:, None].to(dtype)
    for data in (
        (ROWS, column),
        (ROWS, column.numpy()),
        [(ROWS, column.tolist())],
        {"input": ROWS, "labels": column},
    ):
        assert_identical(expected, initialized(mlp(), data, head_code=code, code="lda"))


def test_what_is_no_column_of_classes() -> None:
    model, labels = mlp(), Y[:, None].repeat(1, 2)
    with (
        unchanged(model),
        pytest.raises(LabelError, match="one label for every row"),
    ):
        sylvinit.initialize_(model, (ROWS, labels), preset="best", head_code="onehot")


# ------------------------------------------------------------------- labels in the model's forward


class LossInside(SkipNet):
    """A model that computes its own loss and cannot run without labels."""

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return nn.functional.cross_entropy(super().forward(input), labels)


class NamedTarget(SkipNet):
    def forward(self, input: Tensor, *, target: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        scores = super().forward(input)
        return {"scores": scores, "loss": nn.functional.cross_entropy(scores, target)}


class Optional(SkipNet):
    """Would fail with labels of another kind than its own."""

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        assert labels is None
        return super().forward(input)


class Input(SkipNet):
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input)


@pytest.mark.parametrize(
    ("kind", "key"), [(LossInside, "labels"), (NamedTarget, "target"), (Optional, "labels")]
)
@pytest.mark.parametrize("storage", ["memory", "recompute"])
def test_labels_go_where_the_signature_requires_them(kind: Any, key: str, storage: Any) -> None:
    expected = initialized(Input(), {"input": ROWS, "label": Y}, microbatch=8)
    found = initialized(kind(), {"input": ROWS, key: Y}, microbatch=8, storage=storage)
    assert_identical(expected, found)


def test_labels_always_go_to_forward_fn() -> None:
    def call(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        assert inputs.keys() == {"input", "labels", "y"}
        assert len(inputs["input"]) == len(inputs["labels"]) == len(inputs["y"])
        return model(inputs["input"])

    data = {"input": ROWS, "labels": Y, "y": Y.float()}
    found = initialized(SkipNet(), data, microbatch=8, forward_fn=call)
    assert_identical(initialized(SkipNet(), (ROWS, Y), microbatch=8), found)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("storage", ["memory", "recompute"])
def test_strings_belong_to_their_samples(kind: Any, storage: Any) -> None:
    """The survey and microbatches cut them as they cut tensors."""

    def call(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        assert type(inputs["text"]) is kind
        assert len(inputs["text"]) == len(inputs["labels"])
        return model(torch.stack([ROWS[int(text)] for text in inputs["text"]]))

    data = {"text": kind(str(index) for index in range(30)), "labels": Y}
    found = initialized(SkipNet(), data, microbatch=8, forward_fn=call, storage=storage)
    assert_identical(initialized(SkipNet(), (ROWS, Y), microbatch=8), found)


def test_what_cannot_be_cut_is_warned_of() -> None:
    data = {"words": [[index, index + 1] for index in range(30)], "labels": Y}

    def call(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return model(torch.stack([ROWS[first] for first, _ in inputs["words"]]))

    model = SkipNet()
    with unchanged(model), pytest.warns(sylvinit.SylvinitWarning) as caught:
        report = sylvinit.initialize_(model, data, preset="best", forward_fn=call)
    assert not report.solved
    assert any("no layer's input depends on the data" in str(w.message) for w in caught)


class Decoder(nn.Module):
    """Encoder and decoder, by the names that such models share; inputs may be given or made."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            self.words, self.target = nn.Embedding(20, 8), nn.Embedding(20, 8)
            self.encode, self.decode = nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 20)

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("decoder_input_ids or labels")
            decoder_input_ids = labels.roll(1, dims=1).clamp(min=0)
        seen = self.encode(self.words(input_ids)).mean(dim=1, keepdim=True)
        return self.head((self.decode(self.target(decoder_input_ids)) + seen).relu())


IDS = torch.randint(1, 20, (30, 6), generator=torch.Generator().manual_seed(1))
TARGETS = torch.randint(1, 20, (30, 4), generator=torch.Generator().manual_seed(2))
IGNORED = TARGETS.masked_fill(torch.arange(4) >= 3, -100)


@pytest.mark.filterwarnings("ignore::sylvinit.SylvinitWarning")
@pytest.mark.parametrize("labels", [TARGETS, IGNORED], ids=["", "ignored tokens"])
def test_tokens_for_a_decoder_that_is_given_nothing_else(labels: Tensor) -> None:
    shifted = labels.roll(1, dims=1).clamp(min=0)
    given = {"input_ids": IDS, "decoder_input_ids": shifted, "labels": labels}
    expected = initialized(Decoder(), given)
    assert_identical(expected, initialized(Decoder(), {"input_ids": IDS, "labels": labels}))
    both = {"input_ids": IDS, "decoder_input_ids": shifted, "labels": labels * 0}
    found = initialized(Decoder(), both)  # the labels are the head's alone
    body = [name for name in expected if not name.startswith("head")]
    assert_identical({x: expected[x] for x in body}, {x: found[x] for x in body})


def test_rows_of_the_decoder_belong_to_the_samples_of_the_labels() -> None:
    """With labels left out when one sample is replaced the decoder's input would look constant."""
    model = Decoder()
    data = {"input_ids": IDS, "labels": TARGETS}
    with pytest.warns(sylvinit.SylvinitWarning) as caught:
        report = sylvinit.initialize_(model, data, preset="best", patches="all")
    assert [layer.status for layer in report.solved] == ["solved"] * 3
    assert report["decode"].rows == TARGETS.numel()
    # They were used, by the model.
    assert not any("labels were given" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": ROWS, "labels": Y}, "a batch holds x, but the forward of Input takes input;"),
        ({"input": ROWS, "idx": Y, "note": Y, "y": Y}, "holds idx, note, but .*forward_fn="),
        ([{"input": ROWS, "y": Y}, {"input": ROWS, "y": Y, "weight": Y}], "holds weight, but"),
    ],
)
def test_inputs_that_the_forward_does_not_take(data: Any, message: str) -> None:
    model = Input()
    with unchanged(model), pytest.raises(DataError, match=message):
        sylvinit.initialize_(model, data, preset="best")
