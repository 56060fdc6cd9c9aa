"""Whose the rows of a layer's input are, for every way in which networks order them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from driver_helpers import CLASSES, assert_close, images, initialized, unchanged
from torch import Tensor, nn

import sylvinit
from sylvinit.execution.row_rules import fit_rule
from sylvinit.moments.rows import RowRule

# The same rows in another order: sums of a few hundred float64 numbers, amplified by two layers.
SUMS = 1e-9
X, Y = images(30, dtype=torch.float64)  # (30, 3, 6, 6)
TOKENS = X.flatten(2).mT  # (30, 36, 3)

Order = Callable[[Tensor], Tensor]


class Folded(nn.Module):
    """Two layers on tokens (n, 36, 3), which are folded before and unfolded behind each."""

    def __init__(self, fold: Order, unfold: Order) -> None:
        super().__init__()
        self.fold, self.unfold = fold, unfold
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 4)
            self.head = nn.Linear(4, CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.unfold(self.first(self.fold(x))).tanh()
        return self.head(self.unfold(self.second(self.fold(x))).tanh().mean(dim=1))


def windows(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 3, 2, 3)).transpose(2, 3).flatten(0, 2).flatten(1, 2)


def from_windows(x: Tensor) -> Tensor:
    return x.unflatten(0, (-1, 2, 2)).unflatten(3, (3, 3)).transpose(2, 3).flatten(1, 4)


ORDERS: dict[str, tuple[Order, Order, RowRule]] = {
    "windows": (windows, from_windows, RowRule(1, 36)),
    "tokens in the batch": (
        lambda x: x.flatten(0, 1),
        lambda x: x.unflatten(0, (-1, 36)),
        RowRule(1, 36),
    ),
    "time first": (lambda x: x.transpose(0, 1), lambda x: x.transpose(0, 1), RowRule(36, 1)),
    "time first, flattened": (
        lambda x: x.transpose(0, 1).flatten(0, 1),
        lambda x: x.unflatten(0, (36, -1)).transpose(0, 1),
        RowRule(36, 1),
    ),
    "frames first, then samples, then places": (
        lambda x: x.unflatten(1, (4, 9)).transpose(0, 1).flatten(0, 1),
        lambda x: x.unflatten(0, (4, -1)).transpose(0, 1).flatten(1, 2),
        RowRule(4, 9),
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "options",
    [{"patches": "all"}, {"patches": "all", "code": "lda"}, {"preset": "frozen", "patches": "all"}],
    ids=str,
)
def test_every_order_gives_the_weights_of_batch_first(order: str, options: dict[str, Any]) -> None:
    fold, unfold, _ = ORDERS[order]
    plain = initialized(Folded(lambda x: x, lambda x: x), (TOKENS, Y), microbatch=10, **options)
    folded = initialized(Folded(fold, unfold), (TOKENS, Y), microbatch=10, **options)
    assert_close(plain, folded, SUMS)


@pytest.mark.parametrize(
    ("order", "note"),
    [
        ("windows", None),
        ("time first", "row j belongs to sample j mod N, for N samples"),
        ("frames first, then samples, then places", "row j belongs to sample (j // 9) mod N"),
    ],
)
def test_the_report_says_so(order: str, note: str | None) -> None:
    report = sylvinit.initialize_(
        Folded(*ORDERS[order][:2]), (TOKENS, Y), preset="best", microbatch=10
    )
    notes = " ".join(report["first"].notes)
    assert (note in notes) if note else ("row j" not in notes)
    given = sylvinit.initialize_(  # whose the rows are is the caller's word then
        Folded(*ORDERS[order][:2]),
        (TOKENS, Y),
        preset="best",
        microbatch=10,
        row_to_sample=lambda *_: None,
    )
    assert "row j" not in " ".join(given["first"].notes)


@pytest.mark.parametrize("order", ORDERS)
def test_rules_from_changed_rows(order: str) -> None:
    fold, _, rule = ORDERS[order]
    changed = torch.zeros(3, 36, 1, dtype=torch.bool)
    changed[1] = True
    assert fit_rule(fold(changed).flatten(), 3, 1, batch_first=False) == rule
    changed[1, 0] = False  # a class token before the first attention
    assert fit_rule(fold(changed).flatten(), 3, 1, batch_first=False) == rule


def test_no_rule_from_rows_in_any_order() -> None:
    changed = torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.bool)
    assert fit_rule(changed, 3, 1, batch_first=True) is None
    assert fit_rule(torch.ones(5, dtype=torch.bool), 2, 1, batch_first=True) is None
    # Statistics of the batch change all rows: the shape has to do.
    assert fit_rule(torch.ones(6, dtype=torch.bool), 2, 1, batch_first=True) == RowRule(1, 3)
    assert fit_rule(torch.ones(6, dtype=torch.bool), 2, 1, batch_first=False) is None


def test_two_views_give_the_head_its_own_labels() -> None:
    """Views one after the other in the batch: sample i is row i and row n + i."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(108, 60), nn.ReLU())
            self.head = nn.Linear(60, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(torch.cat((x, x.flip(3)))))

    torch.manual_seed(0)
    model = Views().double()
    report = sylvinit.initialize_(model, (X, Y), preset="best", microbatch=10)
    assert report["head"].rows == 60
    right = model(X)[: len(X)].argmax(1) == Y
    assert float(right.double().mean()) == 1.0  # 0.25 by chance


def test_frames_of_a_video_in_the_batch() -> None:
    """(n, frames, ...) to (n frames, ...): convolutions see frames, the head sees samples."""

    class Video(nn.Module):
        def __init__(self, fold: bool) -> None:
            super().__init__()
            self.fold = fold
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(3)
                self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, CLASSES)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            if not self.fold:  # one frame after the other: the module is called twice
                parts = [self.conv(x[:, frame]) for frame in range(2)]
                return self.head(torch.stack(parts, 1).relu().mean(dim=(1, 3, 4)))
            x = self.conv(x.flatten(0, 1)).relu().unflatten(0, (-1, 2))
            return self.head(x.mean(dim=(1, 3, 4)))

    video = torch.stack((X, X.flip(2) + 0.5), dim=1)
    folded, apart = (
        initialized(Video(fold), (video, Y), microbatch=10, code="lda", patches="all")
        for fold in (True, False)
    )
    assert_close(folded, apart, SUMS)


def test_lengths_that_differ_between_batches() -> None:
    """Where the number of rows does not tell how it is made up, every length is looked at."""
    fold = ORDERS["frames first, then samples, then places"][0]

    def fold_any(x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 9)).transpose(0, 1).flatten(0, 1)

    def unfold_any(x: Tensor, frames: list[int]) -> Tensor:
        return x.unflatten(0, (frames[0], -1)).transpose(0, 1).flatten(1, 2)

    frames = [4]

    class Lengths(Folded):
        def forward(self, x: Tensor) -> Tensor:
            frames[0] = x.shape[1] // 9
            return super().forward(x)

    assert torch.equal(fold(TOKENS), fold_any(TOKENS))
    batches = [(TOKENS[:10], Y[:10]), (TOKENS[10:20, :18], Y[10:20]), (TOKENS[20:, :27], Y[20:])]
    # One microbatch at a time, since the number of frames is global.
    options: dict[str, Any] = {"code": "lda", "patches": "all", "storage": "recompute"}
    plain = initialized(Folded(lambda x: x, lambda x: x), batches, **options)
    folded = initialized(Lengths(fold_any, lambda x: unfold_any(x, frames)), batches, **options)
    assert_close(plain, folded, SUMS)


def test_an_input_that_does_not_depend_on_the_data_is_left_alone() -> None:
    """A table of relative positions goes through a layer of its own."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.randn(36, 2, dtype=torch.float64))
            self.bias, self.head = nn.Linear(2, 3).double(), nn.Linear(3, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + self.bias(self.places)).relu().mean(dim=1))

    model = Positions()
    with unchanged(model, written=("head.weight", "head.bias")):
        report = sylvinit.initialize_(model, (TOKENS, Y), preset="best", microbatch=10)
    assert report["bias"].reason == "its input does not depend on the data"


def test_a_layer_that_sees_some_samples_only_is_not_constant() -> None:
    """An expert for the first half of the batch: the samples that are compared are not all."""

    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expert, self.head = nn.Linear(3, 3).double(), nn.Linear(3, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            half = len(x) // 2
            return self.head(torch.cat((self.expert(x[:half]), x[half:])).mean(dim=1))

    report = sylvinit.initialize_(Expert(), (TOKENS, Y), preset="best", microbatch=10)
    assert report["expert"].status == "solved"
    assert report["expert"].rows == 15 * 36


@pytest.mark.parametrize("same", [True, False])
def test_samples_that_are_all_alike(same: bool) -> None:
    """Nothing can be seen then, and it does not matter."""
    x = TOKENS[:1].expand(30, -1, -1) if same else TOKENS
    report = sylvinit.initialize_(
        Folded(*ORDERS["windows"][:2]), (x, Y), preset="best", microbatch=10
    )
    assert report["first"].status == "solved"


def test_noise_and_buffers_are_as_before() -> None:
    """Both looks draw the same noise, so that it changes no row; random states are untouched."""

    class Noisy(Folded):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.randn(x.shape[1:], dtype=x.dtype))

    model = Noisy(*ORDERS["time first"][:2])
    with unchanged(model, written=tuple(name for name, _ in model.named_parameters())):
        sylvinit.initialize_(model, (TOKENS, Y), code="lda", microbatch=10)


def test_a_start_of_zeros_hides_nothing() -> None:
    """Nothing of the data gets through a layer of zeros, or a branch whose scale is zero."""

    class Zeros(Folded):
        def __init__(self) -> None:
            super().__init__(*ORDERS["time first"][:2])
            self.scale = nn.Parameter(torch.zeros(4, dtype=torch.float64))
            for parameter in self.first.parameters():
                nn.init.zeros_(parameter)
            self.first.bias.data.neg_()  # -0.0 is put back, too

        def forward(self, x: Tensor) -> Tensor:
            x = self.unfold(self.first(self.fold(x))).tanh()
            x = x[..., :4] + self.scale * self.unfold(self.second(self.fold(x)))
            return self.head(x.mean(dim=1))

    model = Zeros()
    written = tuple(name for name, _ in model.named_parameters() if name != "scale")
    with unchanged(model, written=written):
        report = sylvinit.initialize_(model, (TOKENS, Y), code="lda", microbatch=10)
    assert [layer.status for layer in report.solved] == ["solved"] * 3


def test_what_small_weights_pass_on_is_seen() -> None:
    """Each layer makes it 1e-5 times as large; only biases that are not zero would drown it."""
    layers = [nn.Linear(12, 12) for _ in range(6)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=1e-5 / 12**0.5, generator=torch.Generator())
        nn.init.zeros_(layer.bias)
    model = nn.Sequential(*layers, nn.Linear(12, CLASSES))
    rows = X.float().flatten(1)[:, :12]
    report = sylvinit.initialize_(model, (rows, Y), preset="best")
    assert [layer.status for layer in report.layers] == ["solved"] * 7


def test_a_first_batch_of_one_sample_tells_nothing() -> None:
    batches = [(TOKENS[:1], Y[:1]), (TOKENS[1:], Y[1:])]
    plain = initialized(Folded(lambda x: x, lambda x: x), batches, code="lda", patches="all")
    folded = initialized(Folded(*ORDERS["time first"][:2]), batches, code="lda", patches="all")
    assert_close(plain, folded, SUMS)


def test_an_own_start_that_nothing_passes() -> None:
    """Deep networks of small weights: 1e-45 is the smallest float32."""
    torch.manual_seed(0)
    small = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)]
    model = nn.Sequential(*small, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    with torch.no_grad():
        for layer in small:
            layer.weight.mul_(1e-25)
            layer.bias.zero_()
    labels = torch.arange(40) % 2
    x = torch.randn(40, 3, 6, 6) + 3 * labels[:, None, None, None]
    assert not bool(small[0](x).mul(1e-25).any())
    report = sylvinit.initialize_(model, (x, labels), preset="best")
    assert [layer.status for layer in report.layers] == 3 * ["solved"]
    assert float((model(x).argmax(dim=1) == labels).double().mean()) > 0.95


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_behind_a_start_that_nothing_passes(order: str) -> None:
    def silent(fold: Order, unfold: Order) -> Folded:
        model = Folded(fold, unfold)
        model.first = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 5, bias=False))
        with torch.no_grad():
            for layer in model.first:
                layer.weight.copy_(
                    1e-200 * torch.arange(layer.weight.numel()).view_as(layer.weight)
                )
        return model.double()

    assert not bool(silent(lambda x: x, lambda x: x).first(TOKENS).any())
    fold, unfold, _ = ORDERS[order]
    options: dict[str, Any] = {"code": "lda", "patches": "all", "preset": "best"}
    plain = initialized(silent(lambda x: x, lambda x: x), (TOKENS, Y), **options)
    assert_close(plain, initialized(silent(fold, unfold), (TOKENS, Y), **options), SUMS)


class FixedSize(Folded):
    """Takes ten samples at a time and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 10:
            raise ValueError("ten samples at a time")
        return super().forward(x)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("code", ["lda", "pca"])
def test_every_order_in_batches_of_a_fixed_size(order: str, code: str) -> None:
    """Rules are found from all of the first batch then."""
    fold, unfold, _ = ORDERS[order]
    options: dict[str, Any] = {"microbatch": 10, "code": code, "patches": "all"}
    plain = initialized(Folded(lambda x: x, lambda x: x), (TOKENS, Y), **options)
    assert_close(plain, initialized(FixedSize(fold, unfold), (TOKENS, Y), **options), SUMS)


def test_a_constant_input_in_batches_of_a_fixed_size() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.randn(36, 2, dtype=torch.float64))
            self.bias, self.head = nn.Linear(2, 3).double(), nn.Linear(3, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x.view(10, 36, 3) + self.bias(self.places)).relu().mean(dim=1))

    report = sylvinit.initialize_(Positions(), (TOKENS, Y), preset="best", microbatch=10)
    assert report["bias"].reason == "its input does not depend on the data"
    assert report["head"].code == "onehot"
