"""Models of every kind simply work: lazy, frozen, tied, idle, branching, called twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from driver_helpers import (
    CLASSES,
    assert_close,
    assert_identical,
    bits,
    images,
    initialized,
    mlp,
    small_net,
    unchanged,
    weights_of,
)
from torch import Tensor, nn

import sylvinit

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]  # (30, 12)
STORAGES = pytest.mark.parametrize("storage", ["memory", "recompute"])


# -------------------------------------------------------------------------------- layers and blocks


def test_dropout_is_off() -> None:
    plain = mlp()
    dropping = nn.Sequential(plain[0], nn.Dropout(0.9), *plain[1:])
    expected = initialized(plain, (ROWS, Y))
    sylvinit.initialize_(dropping, (ROWS, Y), preset="best")  # of the modules of plain
    assert_identical(expected, weights_of(plain))


def test_lazy_modules() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten())
    lazy.append(nn.LazyLinear(CLASSES))
    known = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    known.append(nn.Linear(128, CLASSES))
    random = bits(torch.get_rng_state())
    report = sylvinit.initialize_(lazy, (X, Y), preset="best")
    sylvinit.initialize_(known, (X, Y), preset="best")
    assert bits(torch.get_rng_state()) == random
    assert_identical(weights_of(known), weights_of(lazy))
    assert torch.equal(lazy[1].running_var, known[1].running_var)
    assert [layer.kind for layer in report.layers] == ["Conv2d", "BatchNorm2d", "Linear"]


def test_frozen_parameters() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    with unchanged(model, written=("2.weight", "4.weight", "4.bias")):
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert report["0"].status == "skipped"
    assert "frozen" in report["0"].reason
    assert report["2"].status == "solved"


def test_a_frozen_normalization_keeps_its_statistics() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    model[1].requires_grad_(False)
    with unchanged(model, written=("0.weight", "0.bias", "2.weight", "2.bias")):
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert "frozen" in report["1"].reason


def test_a_weight_tied_to_an_embedding_is_left_alone() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.body = nn.Linear(8, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.body(self.embed(ids)).relu())

    model, ids = Language(), torch.arange(60).reshape(12, 5) % 11
    with unchanged(model, written=("body.weight", "body.bias")):
        report = sylvinit.initialize_(model, ids, preset="best")
    assert report["head"].reason == "its weight is tied to embed (Embedding), which is not solved"
    assert report["embed"].status == "skipped"
    assert "Embedding" in report["embed"].reason


@STORAGES
def test_shared_weights_are_solved_once_from_all_inputs(storage: Any) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
            self.second.weight = self.first.weight
            self.between = nn.Linear(12, 12)
            self.head = nn.Linear(12, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(self.second(self.between(self.first(x)))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Shared().double()
    data = (ROWS.double(), Y)
    report = sylvinit.initialize_(model, data, preset="best", microbatch=7, storage=storage)
    assert report["first"].rows == 3 * len(ROWS)
    assert report["between"].rows == len(ROWS)
    assert report["second"].reason == "shares its weight with first"
    assert torch.equal(model.first.bias, model.second.bias)
    assert len(report.solved) == 3


def test_modules_that_never_run() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(12, CLASSES), nn.Linear(12, 5)
            self.norm, self.attention = nn.BatchNorm1d(5), nn.MultiheadAttention(8, 2)
            self.scale = nn.LayerNorm(12)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.scale(x))

    model = Idle()
    with unchanged(model, written=("used.weight", "used.bias")):
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    idle = {layer.name for layer in report.layers if layer.reason == "its forward was not called"}
    letters = {f"attention.{part}_proj" for part in ("q", "k", "v", "out")}
    assert idle == {"idle", "norm"} | letters
    assert "no layer type is registered for LayerNorm" in report["scale"].reason


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_layer_in_evaluation_mode(batch_first: bool) -> None:
    """Its fast path calls no sub-module; time first, its Linear layers need to know the samples."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.TransformerEncoderLayer(12, 2, 20, batch_first=batch_first)
            self.head = nn.Linear(12, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            first = self.block.self_attn.batch_first
            x = self.block(x if first else x.transpose(0, 1))
            return self.head(x.mean(dim=1 if first else 0))

    def owner(name: str, x: Tensor, samples: int) -> Tensor | None:
        time_first = not batch_first and name.startswith("block.linear")
        return torch.arange(x.shape[0] * x.shape[1]) % samples if time_first else None

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Classifier().double().eval()
    x = X.double().reshape(30, 9, 12)
    report = sylvinit.initialize_(
        model, (x, Y), preset="best", patches=4, microbatch=8, row_to_sample=owner
    )
    attention = [f"block.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    names = [*attention, "block.linear1", "block.linear2", "head"]
    assert [layer.name for layer in report.solved] == names
    assert {report[name].rows for name in names[:-1]} == {4 * 30}
    assert torch.backends.mha.get_fastpath_enabled()
    if not batch_first:
        again = copy.deepcopy(model)
        again.block.self_attn.batch_first = True
        # The same rows in another layout: rounding (1e-16 a product) through six layers.
        assert_close(weights_of(model), initialized(again, (x, Y), patches=4, microbatch=8), 1e-12)


def test_token_ids() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(20, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.body(self.embed(ids)).relu().mean(dim=1))

    ids = torch.randint(20, (30, 7), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.int64, torch.int32):
        report = sylvinit.initialize_(Tokens(), (ids.to(dtype), Y), preset="best", patches=3)
        assert [layer.name for layer in report.solved] == ["body", "head"]
        assert report["body"].rows == 3 * 30


# ------------------------------------------------------------------ data-dependent control flow


class Branching(nn.Module):
    """Takes its branch where the microbatch is positive on average."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = nn.Linear(12, 12), nn.Linear(12, 12)
        self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        if x.mean() > 0:
            y = y + self.norm(self.branch(y)).relu()
        return self.head(y)


def branch_data(*signs: float) -> list[tuple[Tensor, Tensor]]:
    centered = ROWS.double() - ROWS.double().mean()
    return [(sign + centered, Y) for sign in signs]


@STORAGES
def test_a_branch_of_some_microbatches(storage: Any) -> None:
    model = Branching().double()
    report = sylvinit.initialize_(model, branch_data(5, -5, 5), preset="best", storage=storage)
    assert report["first"].rows == report["head"].rows == 90
    assert report["branch"].rows == report["norm"].rows == 60
    assert {layer.status for layer in report.layers} == {"solved", "calibrated"}
    other = "recompute" if storage == "memory" else "memory"
    again = initialized(model, branch_data(5, -5, 5), storage=other)
    # Microbatches reach the head in another order, which is another order of summation.
    assert_close(weights_of(model), again, 1e-12)


@STORAGES
def test_a_branch_that_the_first_samples_do_not_take_is_left_alone(storage: Any) -> None:
    model = Branching().double()
    rest = ("first.weight", "first.bias", "head.weight", "head.bias")
    with (
        unchanged(model, written=rest),
        pytest.warns(
            sylvinit.SylvinitWarning, match="not run on the two survey samples.*branch, norm"
        ),
    ):
        report = sylvinit.initialize_(model, branch_data(-5, 5), preset="best", storage=storage)
    assert "did not run on the two survey samples" in report["branch"].reason
    assert "did not run on the two survey samples" in report["norm"].reason


@STORAGES
def test_a_branch_of_the_first_samples_alone(storage: Any) -> None:
    """The order is found on two samples, which may go another way than their whole microbatch."""
    (x, y), model = branch_data(-5)[0], Branching().double()
    x[:2] += 10
    report = sylvinit.initialize_(model, (x, y), preset="best", storage=storage)
    assert report["branch"].status == report["norm"].status == "skipped"
    assert "no whole microbatch" in report["branch"].reason
    x, y = torch.cat((x, *(x for x, _ in branch_data(5)))), torch.cat((y, y))
    report = sylvinit.initialize_(model, (x, y), preset="best", microbatch=30, storage=storage)
    assert report["branch"].rows == 30


# ---------------------------------------------------------------------------------- a second call


def test_a_second_call_gives_the_identical_weights() -> None:
    model = small_net()
    first = sylvinit.initialize_(model, (X, Y), preset="best", microbatch=8)
    weights, buffers = weights_of(model), copy.deepcopy(dict(model.named_buffers()))
    second = sylvinit.initialize_(model, (X, Y), preset="best", microbatch=8)
    assert_identical(weights, weights_of(model))
    for name, buffer in model.named_buffers():
        assert name.endswith("num_batches_tracked") or bits(buffer) == bits(buffers[name])
    assert [layer.status for layer in first.layers] == [layer.status for layer in second.layers]
