"""Experts: solved from the rows that they get, left alone and counted where those are too few."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from driver_helpers import CLASSES, assert_close, bits, images, initialized, unchanged
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import RowLayoutError

X, Y = images(60, dtype=torch.float64)
TOKENS = X.flatten(2).mT  # (60, 36, 3)
# Sums of a few hundred rows in another order, and what layers make of it.
SUMS = 1e-9


class Experts(nn.Module):
    """A layer of experts on tokens (n, 36, 3) behind a frozen router, and a head on their mean.

    Token t goes to the expert that the router's largest outputs name. ``only_hit``: experts without
    tokens are not called. ``width``: hidden units of each.
    """

    def __init__(
        self, count: int = 4, width: int = 6, only_hit: bool = False, top: int = 1
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.router = nn.Linear(3, count).requires_grad_(False)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3))
                for _ in range(count)
            )
            self.head = nn.Linear(3, CLASSES)
        self.only_hit, self.top = only_hit, top
        self.double()

    def choice(self, rows: Tensor) -> Tensor:
        return self.router(rows).topk(self.top).indices

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        choice, out = self.choice(rows), rows.clone()
        for number, expert in enumerate(self.experts):
            mine = (choice == number).any(dim=1).nonzero()[:, 0]
            if len(mine) or not self.only_hit:
                out = out.index_add(0, mine, expert(rows[mine]))
        return self.head(out.reshape(x.shape).mean(dim=1))


def warned(model: nn.Module, data: Any, **options: Any) -> tuple[sylvinit.Report, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = sylvinit.initialize_(model, data, **{"preset": "best", **options})
    return report, [
        str(item.message) for item in caught if "layers of experts" in str(item.message)
    ]


@pytest.mark.parametrize("only_hit", [False, True])
@pytest.mark.parametrize("top", [1, 2])
def test_each_is_solved_from_its_own_rows(only_hit: bool, top: int) -> None:
    model = Experts(width=3, only_hit=only_hit, top=top)  # no outputs beyond the rank
    rows = TOKENS.reshape(-1, 3)
    choice = model.choice(rows)
    report, texts = warned(model, (TOKENS, Y), microbatch=20, code="pca", patches="all")
    assert texts == []
    for number, expert in enumerate(model.experts):
        mine = rows[(choice == number).any(dim=1)]
        assert report[f"experts.{number}.0"].rows == len(mine) > 6
        # As the first of two layers, so that it is not taken for a head.
        alone = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
        right = initialized(alone, mine, code="pca", patches="all")
        for name, weight in right.items():
            if not name.startswith("2"):
                assert_close({name: weight}, {name: expert.get_parameter(name).detach()}, SUMS)
    assert report["head"].code == "onehot"


@pytest.mark.parametrize("preset", ["best", "frozen", "paper"])
@pytest.mark.parametrize("only_hit", [False, True])
def test_those_with_few_rows_are_left_alone_and_counted(only_hit: bool, preset: Any) -> None:
    model = Experts(count=5, width=40, only_hit=only_hit)
    # Expert 0 gets five tokens, expert 4 none, and the others nearly all.
    with torch.no_grad():
        scores = TOKENS.reshape(-1, 3) @ model.router.weight.mT
        model.router.bias.zero_()
        model.router.bias[4] = -1e9
        first = scores[:, 0] - scores[:, 1:4].amax(dim=1)
        model.router.bias[0] = -first.topk(6).values[4:].mean()
    choice = model.choice(TOKENS.reshape(-1, 3))[:, 0]
    assert choice.bincount(minlength=5).tolist()[0] == 5
    left = [model.experts[0][0], model.experts[4][0], model.experts[4][2]]
    before = [bits(parameter) for layer in left for parameter in layer.parameters()]
    report, texts = warned(model, (TOKENS, Y), microbatch=60, preset=preset)
    assert [bits(parameter) for layer in left for parameter in layer.parameters()] == before
    assert report["experts.0.0"].reason == "an expert that got 5 rows, fewer than its 40 outputs"
    assert report["experts.0.2"].status == "solved"  # five rows for three outputs
    assert report["experts.4.0"].reason == "an expert that got no rows"
    assert {report[f"experts.{i}.{j}"].status for i in (1, 2, 3) for j in (0, 2)} == {"solved"}
    (text,) = texts
    assert text.startswith("3 of 10 layers of experts are left alone")
    assert {"experts.0.0", "experts.4.0", "experts.4.2"} <= set(
        re.findall(r"experts[.\d]+\d", text)
    )
    assert report["head"].code == "onehot"


def test_one_sample_a_row() -> None:
    """Two samples reach two experts at most; the first batch reaches more of them."""

    class Rows(Experts):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, None])

    model = Rows(count=8, only_hit=True)
    rows = TOKENS[:, 3]
    counts = model.choice(rows).flatten().bincount(minlength=8)
    report, texts = warned(model, (rows, Y), microbatch=60)
    for number, count in enumerate(counts.tolist()):
        expected = "solved" if count >= 6 else "skipped"
        assert report[f"experts.{number}.0"].status == expected
    few = int((counts < 6).sum()) + int((counts < 3).sum())
    assert texts[0].startswith(f"{few} of 16 layers of experts are left alone")
    assert report["head"].code == "onehot"


def test_experts_that_override_forward() -> None:
    """Two samples reach two of three, and nobody gets to the last one."""

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T + self.bias

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Own(3, 4) for _ in range(4))
            self.head = nn.Linear(4, CLASSES)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            out = x.new_zeros(len(x), 4)
            for number in x[:, 0].long().unique().tolist():
                mine = (x[:, 0].long() == number).nonzero()[:, 0]
                out = out.index_add(0, mine, self.experts[number](x[mine]).relu())
            return self.head(out)

    rows = TOKENS[:, 3].clone()
    rows[:, 0] = torch.arange(60) % 3
    report, texts = warned(Routed(), (rows, Y), microbatch=60)
    assert [report[f"experts.{number}"].rows for number in range(3)] == [20] * 3
    assert report["experts.3"].reason == "an expert that got no rows of the first 60 samples"
    assert texts[0].startswith("1 of 4 layers of experts")


def test_experts_of_images() -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Conv2d(3, 4, 3) for _ in range(3))
            self.head = nn.Linear(4, CLASSES)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            group = (x.mean(dim=(1, 2, 3)) > 0).long()  # nothing for the last one
            out = x.new_zeros(len(x), 4)
            for number, expert in enumerate(self.experts):
                mine = (group == number).nonzero()[:, 0]
                out = out.index_add(0, mine, expert(x[mine]).relu().mean(dim=(2, 3)))
            return self.head(out)

    model = Convolutions()
    written = ("experts.0", "experts.1", "head")
    names = tuple(f"{layer}.{name}" for layer in written for name in ("weight", "bias"))
    with unchanged(model, written=names):
        report, texts = warned(model, (X, Y), microbatch=20)
    assert report["experts.2"].reason == "an expert that got no rows"
    assert texts[0].startswith("1 of 3 layers of experts")


def test_float32_sums_in_another_order_move_no_row_of_another_sample() -> None:
    """Experts have more or fewer rows when a sample is replaced, and round the others otherwise."""
    model = Experts(count=3).float()
    report, _ = warned(model, (TOKENS.float(), Y), microbatch=20)
    assert report["head"].code == "onehot"
    assert report["head"].rows == 60


def test_few_samples_are_no_experts() -> None:
    """An ordinary layer with fewer rows than outputs is solved as ever."""
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, CLASSES)).double()
    report, texts = warned(model, (TOKENS[:20, 0], Y[:20]), patches=1)
    assert texts == []
    assert [layer.status for layer in report.layers] == ["solved"] * 2


@pytest.mark.parametrize("fixed", [False, True])
def test_a_head_of_other_rows_behind_experts(fixed: bool) -> None:
    """Rounding changes rows of all samples, and yet the head's are seen to be in another order."""

    class Reversed(Experts):
        def forward(self, x: Tensor) -> Tensor:
            if fixed:
                x = x.view(20, 36, 3)
            return super().forward(x.flip(0))

    model = Reversed(count=3).float()
    with unchanged(model), pytest.raises(RowLayoutError, match=r"layer head: .*no labels"):
        sylvinit.initialize_(model, (TOKENS.float(), Y), preset="best", microbatch=20)
