"""Rows that networks sort over all samples: nobody can say whose they are."""

from __future__ import annotations

import pytest
import torch
from driver_helpers import CLASSES, assert_close, images, initialized, unchanged
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import RowLayoutError

# The same rows in another order: sums of a few hundred float64 numbers, amplified by two layers.
SUMS = 1e-9


X, Y = images(30, dtype=torch.float64)  # (30, 3, 6, 6)


TOKENS = X.flatten(2).mT  # (30, 36, 3)


class Shuffled(nn.Module):
    """Tokens are sorted by their first feature, over all samples, before the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.hidden, self.head = nn.Linear(3, 3), nn.Linear(3, CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        order = rows[:, 0].argsort()
        rows = self.hidden(rows[order])[order.argsort()]
        return self.head(rows.relu().unflatten(0, x.shape[:2]).mean(dim=1))


def test_rows_of_nobody_are_all_taken_by_codes_without_labels() -> None:
    class Plain(Shuffled):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.hidden(x).relu().mean(dim=1))

    report = sylvinit.initialize_(Shuffled(), (TOKENS, Y), preset="best", patches=4, microbatch=10)
    assert report["hidden"].rows == 30 * 36
    shuffled = initialized(Shuffled(), (TOKENS, Y), patches="all", microbatch=10)
    assert_close(initialized(Plain(), (TOKENS, Y), patches="all", microbatch=10), shuffled, SUMS)
    frozen = sylvinit.initialize_(Shuffled(), (TOKENS, Y), preset="frozen", microbatch=10)
    assert frozen["hidden"].code == "pca-pairs"


def test_fewer_rows_than_outputs_are_solved_where_the_caller_says_whose_they_are() -> None:
    """Else they look like those of an expert."""

    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(3, 40).double(), nn.Linear(40, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            rows = x.mean(dim=1)
            order = rows[:, 0].argsort()
            return self.head(self.hidden(rows[order])[order.argsort()].relu())

    found = sylvinit.initialize_(Sorted(), (TOKENS, Y), preset="best")["hidden"]
    assert found.reason == "an expert that got 30 rows, fewer than its 40 outputs"
    report = sylvinit.initialize_(
        Sorted(),
        (TOKENS, Y),
        preset="best",
        row_to_sample=lambda name, x, samples: torch.arange(samples) if name == "hidden" else None,
    )
    assert report["hidden"].status == "solved"
    assert report["hidden"].rows == 30


@pytest.mark.parametrize("code", ["lda", "discriminant"])
def test_rows_of_nobody_have_no_labels(code: str) -> None:
    model = Shuffled()
    message = r"layer hidden: .* do not follow the samples .*row_to_sample="
    with unchanged(model), pytest.raises(RowLayoutError, match=message):
        sylvinit.initialize_(model, (TOKENS, Y), code=code)


@pytest.mark.parametrize("first", [(0.0, 1.0, 2.0), (0.0, 2.0, 1.0), (2.0, 1.0, 0.0)])
def test_samples_that_are_sorted_have_no_labels(first: tuple[float, ...]) -> None:
    """Even where those that are looked at are in that order already."""

    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            order = x[:, 0, 0].argsort()
            return self.head(x.mean(dim=1)[order])[order.argsort()]

    x = TOKENS.clone()
    x[:3, 0, 0] = torch.tensor(first)
    model = Sorted()
    with unchanged(model), pytest.raises(RowLayoutError, match=r"layer head: .*no labels"):
        sylvinit.initialize_(model, (x, Y), preset="best")


def test_a_head_of_rows_of_nobody() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean(dim=1).flip(0))

    model = Reversed()
    with unchanged(model), pytest.raises(RowLayoutError, match=r"layer head: .*no labels"):
        sylvinit.initialize_(model, (TOKENS, Y), preset="best")


def test_rows_of_nobody_in_batches_of_a_fixed_size() -> None:
    class Fixed(Shuffled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(10, 36, 3))

    report = sylvinit.initialize_(Fixed(), (TOKENS, Y), preset="best", patches=4, microbatch=10)
    assert report["hidden"].rows == 30 * 36
    model = Fixed()
    with unchanged(model), pytest.raises(RowLayoutError, match=r"layer hidden: .* do not follow"):
        sylvinit.initialize_(model, (TOKENS, Y), code="lda", microbatch=10)
