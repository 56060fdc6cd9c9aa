"""Data in every form, and which rows of a layer's input belong to which sample."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from driver_helpers import (
    CLASSES,
    assert_close,
    assert_identical,
    images,
    initialized,
    mlp,
    small_net,
    unchanged,
    weights_of,
)
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import RowLayoutError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]
# Two orders of the same float64 sums, through three layers; the worst seen is 4e-15.
SUMS = 1e-11


class Pair(NamedTuple):
    images: Tensor
    target: Tensor


class Two(nn.Module):
    """Adds the features of two inputs; the second is optional."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.left, self.right = nn.Linear(12, 8), nn.Linear(12, 8)
            self.head = nn.Linear(8, CLASSES)

    def forward(self, a: Tensor, b: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        x = self.left(a) if b is None else self.left(a) + self.right(b)
        return self.head((scale * x).relu())


# ------------------------------------------------------------------------------------ forms of data


def test_a_ragged_last_batch() -> None:
    model = small_net(dtype=torch.float64)
    x, y = X.double(), Y
    whole = initialized(model, (x, y), microbatch=30)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    assert [len(batch[1]) for batch in loader] == [8, 8, 8, 6]
    assert_close(whole, initialized(model, loader), SUMS)
    assert_close(whole, initialized(model, (x, y), microbatch=29), SUMS)  # one is left over


FORMS: dict[str, Any] = {
    "list of tuples": [(X[:16], Y[:16]), (X[16:], Y[16:])],
    "list of lists": [[X[:16], Y[:16]], [X[16:], Y[16:]]],
    "tuple of three batches": ((X[:16], Y[:16]), (X[16:20], Y[16:20]), (X[20:], Y[20:])),
    "dicts": [{"input": X[:16], "label": Y[:16]}, {"input": X[16:], "label": Y[16:]}],
    "one dict": {"targets": Y, "input": X},
    "any mapping": UserDict({"input": X, "y": Y}),
    "named tuples": [Pair(X[:16], Y[:16]), Pair(X[16:], Y[16:])],
    "one named tuple": Pair(X, Y),
    "labels first": namedtuple("Reversed", ["labels", "pixels"])(Y, X),
    "arguments in a tuple": [((X[:16],), Y[:16]), ((X[16:],), Y[16:])],
    "arrays": (X.numpy(), Y.numpy()),
    "labels in a list": (X, Y.tolist()),
    "small integers": (X, Y.to(torch.uint8)),
    "samples that are left out": [(X[:0], Y[:0]), (X, Y), (X[:0], Y[:0])],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    model = small_net()
    expected = initialized(model, (X, Y), microbatch=16)
    data = FORMS[form]
    sizes = {"tuple of three batches": None, "dicts": None, "named tuples": None}
    result = initialized(model, data, microbatch=sizes.get(form, 16))
    if form == "tuple of three batches":
        # Float32, in other microbatches: rounding of 1e-7 a layer, times the gaps.
        assert_close(expected, result, 1e-3)
    else:
        assert_identical(expected, result)


def test_a_generator_is_read_once_and_no_further_than_needed() -> None:
    read: list[int] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for begin in range(0, 30, 10):
            read.append(begin)
            yield X[begin : begin + 10], Y[begin : begin + 10]

    model = small_net()
    result = initialized(model, batches(), max_samples=17)
    assert read == [0, 10]
    assert_identical(initialized(model, (X[:17], Y[:17]), microbatch=10), result)
    assert sylvinit.initialize_(model, batches(), preset="best", max_samples=17).samples == 17


def test_nested_arguments() -> None:
    class Nested(Two):
        def forward(self, a: Tensor, rest: tuple[tuple[Tensor, float], ...]) -> Tensor:
            ((b, scale),) = rest
            return super().forward(a, b, scale=scale)

    x, other = ROWS, ROWS.flip(0)
    plain = Two()
    expected = initialized(plain, [((x, other), Y)], microbatch=16)
    nested = Nested()
    assert_identical(expected, initialized(nested, [((x, ((other, 1.0),)), Y)], microbatch=16))
    by_name = {"b": other, "a": x, "scale": 1.0, "labels": Y}
    assert_identical(expected, initialized(plain, by_name, microbatch=16))


def test_forward_fn() -> None:
    seen: list[Any] = []

    def forward(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        seen.append(sorted(inputs))
        return model(inputs["left"], b=inputs["right"], scale=1.0)

    model = Two()
    expected = initialized(model, [((ROWS, ROWS.flip(0)), Y)], microbatch=16)
    data = {"left": ROWS, "right": ROWS.flip(0), "labels": Y}
    result = initialized(model, data, microbatch=16, forward_fn=forward)
    assert_identical(expected, result)
    assert all(keys == ["labels", "left", "right"] for keys in seen)


def test_a_forward_that_works_in_place_does_not_touch_the_data() -> None:
    class InPlace(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    data = ROWS.clone()
    first = initialized(InPlace(*mlp()), (data, Y), storage="recompute")
    assert torch.equal(data, ROWS)
    assert_identical(first, initialized(InPlace(*mlp()), (data, Y)))


def test_arrays_and_inference_tensors() -> None:
    with torch.inference_mode():
        x = ROWS.clone()
    expected = initialized(mlp(), (ROWS, Y))
    assert_identical(expected, initialized(mlp(), (x, Y)))
    assert_identical(expected, initialized(mlp(), (ROWS.numpy(), Y.numpy())))


def test_one_sample() -> None:
    model = small_net()
    report = sylvinit.initialize_(model, (X[:1], Y[:1]), preset="best")
    assert report.samples == 1
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    report = sylvinit.initialize_(
        mlp(), (ROWS[:1], Y[:1]), preset="best"
    )  # one row: nothing varies
    assert report["0"].reason.startswith("dead inputs")


def test_constant_data() -> None:
    model = small_net()
    before = weights_of(model)
    report = sylvinit.initialize_(model, (torch.zeros_like(X), Y), preset="best")
    assert report["conv1"].status == "skipped"
    assert "dead inputs" in report["conv1"].reason
    assert torch.equal(before["conv1.weight"], model.conv1.weight)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


# ------------------------------------------------------------------------------------ rows, samples


class Tokens(nn.Module):
    """A Linear layer on every token, the mean over real tokens, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.embed, self.body = nn.Embedding(20, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.body(self.embed(ids)).relu() * attention_mask[:, :, None]
        return self.head(x.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("patches", ["all", 3])
@pytest.mark.parametrize("storage", ["memory", "recompute"])
def test_padding_tokens_are_dropped(patches: Any, storage: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (30, 7), generator=generator)
    lengths = 1 + torch.arange(30) % 7
    mask = (torch.arange(7) < lengths[:, None]).long()
    other = torch.where(mask.bool(), ids, (ids + 7) % 20)  # differs in padding alone
    assert not torch.equal(ids, other)
    model = Tokens()
    options = {"patches": patches, "storage": storage, "microbatch": 8}
    data = {"ids": ids, "attention_mask": mask, "labels": Y}
    first = initialized(model, data, **options)
    assert_identical(first, initialized(model, data | {"ids": other}, **options))
    report = sylvinit.initialize_(model, data, **{"preset": "best", **options})
    most = 7 if patches == "all" else patches
    assert report["body"].rows == int(lengths.clamp(max=most).sum())
    # With the tokens of the padding the result is another one.
    wide = initialized(model, data, **options, row_to_sample=lambda name, x, n: every_row(x, n))
    assert not torch.equal(wide["body.weight"], first["body.weight"])


def every_row(x: Tensor, samples: int) -> Tensor:
    return torch.arange(samples).repeat_interleave(x[..., 0].numel() // samples)


class TimeFirst(nn.Module):
    """Rows (time, batch, features), as recurrent networks have them."""

    def __init__(self, *, time_first: bool) -> None:
        super().__init__()
        self.time_first = time_first
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.cell, self.head = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.time_first:
            return self.head(self.cell(x.transpose(0, 1)).tanh().mean(dim=0))
        return self.head(self.cell(x).tanh().mean(dim=1))


@pytest.mark.parametrize("microbatch", [10, 3, 1])
@pytest.mark.parametrize("patches", ["all", 2])
@pytest.mark.parametrize("code", ["pca", "lda"])
def test_time_first_is_seen(code: str, patches: Any, microbatch: int) -> None:
    """With as many samples as steps both have the same shape."""
    x = ROWS.double().reshape(30, 3, 4)
    options: dict[str, Any] = {"patches": patches, "code": code, "microbatch": microbatch}
    expected = initialized(TimeFirst(time_first=False).double(), (x, Y), **options)
    result = initialized(TimeFirst(time_first=True).double(), (x, Y), **options)
    assert_close(expected, result, SUMS)


@pytest.mark.parametrize("patches", ["all", 2])
def test_row_to_sample(patches: Any) -> None:
    def owner(name: str, x: Tensor, samples: int) -> Tensor | None:
        if name != "cell":
            return None
        assert x.shape == (3, samples, 4)
        return torch.arange(3 * samples) % samples

    x = ROWS.double().reshape(30, 3, 4)
    expected = initialized(TimeFirst(time_first=False).double(), (x, Y), patches=patches)
    model = TimeFirst(time_first=True).double()
    result = initialized(model, (x, Y), patches=patches, row_to_sample=owner)
    assert_close(expected, result, SUMS)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (torch.arange(5), r"must return 30 integers for layer cell .*got torch.int64 \(5,\)"),
        (torch.zeros(30), "must return 30 integers .* got torch.float32"),
        (torch.arange(30), r"samples in \[0, 10\), or -1 to drop .* cell, got 0 to 29"),
        (torch.arange(30) % 10 - 2, r"samples in \[0, 10\), .* cell, got -2 to 7"),
    ],
    ids=["too few", "floats", "too large", "negative"],
)
def test_a_bad_row_to_sample(owner: Tensor, message: str) -> None:
    model = TimeFirst(time_first=True)
    x = ROWS.reshape(30, 3, 4)
    with unchanged(model), pytest.raises(RowLayoutError, match=message):
        sylvinit.initialize_(
            model, (x, Y), preset="best", microbatch=10, row_to_sample=lambda *args: owner
        )
