"""Subclasses that override forward: which are recognized, which are not and why, and what stays."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from driver_helpers import CLASSES, assert_close, images, unchanged, weights_of
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import ModelError

# Products and sums in another order, float64, amplified by two layers.
SUMS = 1e-9
X, Y = images(30, dtype=torch.float64)  # (30, 3, 6, 6)
ROWS = X.flatten(1)[:, :12]


def network(head: nn.Module) -> nn.Sequential:
    """A layer of 10 outputs, and the head, for rows (n, 12)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), head).double()


def solved_head(head: nn.Module) -> tuple[Tensor, Tensor]:
    model = network(head)
    report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert report.head == "2"
    return model[2].weight, model[2].bias


# ---------------------------------------------------------------------- what is that layer


class Matmul(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Masked(nn.Linear):
    """Has an argument of its own."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = super().forward(x)
        return x if mask is None else x * mask


class Storing(nn.Linear):
    """Counts its calls in a buffer, replaces another one, and keeps its input."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().clone()
        self.kept.append(x)
        return super().forward(x)


class Delegating(nn.Linear):
    """Computes with the weight of a child that it calls, hooks and all."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.add = nn.Identity()
        self.add.register_forward_hook(lambda module, args, output: output + self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(F.linear(x, self.weight))


@pytest.mark.parametrize("kind", [Matmul, Masked, Storing, Delegating])
def test_a_subclass_that_computes_the_formula_is_that_layer(kind: type[nn.Linear]) -> None:
    weight, bias = solved_head(kind(10, CLASSES))
    expected_weight, expected_bias = solved_head(nn.Linear(10, CLASSES))
    torch.testing.assert_close(weight, expected_weight, rtol=SUMS, atol=SUMS)
    torch.testing.assert_close(bias, expected_bias, rtol=SUMS, atol=SUMS)


@pytest.mark.parametrize("zero", ["weight", "bias", "input"])
def test_zeros_tell_nothing_and_hide_nothing(zero: str) -> None:
    """Neither that a layer is one, nor that it is none."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    class UnlikeBias(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight) - self.bias

    for kind, found in ((Matmul, True), (Doubled, False), (UnlikeBias, False)):
        model = network(kind(10, CLASSES))
        parameters = [model[0].weight, model[0].bias]
        if zero != "input":
            parameters = [getattr(model[2], zero)]
        for parameter in parameters:
            nn.init.zeros_(parameter)
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best", dry_run=True)
        assert (report["2"].status == "planned") == found, (kind, report["2"].reason)


def test_attention() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    class Sharp(nn.MultiheadAttention):
        def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().forward(4 * query, *args, **kwargs)

    class Net(nn.Module):
        def __init__(self, kind: type[nn.MultiheadAttention]) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                self.attention = kind(12, 2, batch_first=True)
                self.head = nn.Linear(12, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).mT.reshape(len(x), 9, 12)
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))

    models = [Net(kind).double() for kind in (nn.MultiheadAttention, Own, Sharp)]
    solved = [len(sylvinit.initialize_(model, (X, Y), preset="best").solved) for model in models]
    assert solved == [5, 5, 1]
    assert_close(weights_of(models[0]), weights_of(models[1]), SUMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_precisions(dtype: torch.dtype, autocast: bool) -> None:
    """Rounding is no difference; what is left out is one in every precision."""

    class Unbiased(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    for kind, status in ((Matmul, "planned"), (Unbiased, "skipped")):
        model = network(kind(10, CLASSES)).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            report = sylvinit.initialize_(model, (ROWS.to(dtype), Y), preset="best", dry_run=True)
        assert report["2"].status == status
        assert not report["2"].notes


# ------------------------------------------------------------------------- what is another one


class Adapted(nn.Linear):
    """With a branch that starts at zero."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.down = nn.Parameter(torch.ones(2, sizes[0]))
        self.up = nn.Parameter(torch.zeros(sizes[1], 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.001 * torch.randn(len(x), CLASSES)


class Clipped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.clamp(-0.6, 0.6), self.bias)


class Rectified(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class OneOutputOff(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.tensor([1.0] * (CLASSES - 1) + [0.5])


class Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : CLASSES // 2].repeat(1, 4)


class Picky(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any()):
            raise ValueError("only what a rectifier makes")
        return super().forward(x)


OTHERS: dict[type[nn.Linear], str] = {
    Adapted: "of Linear with one that computes something else: on random numbers .* off by",
    Rectified: "computes something else",
    OneOutputOff: "computes something else",
    Halved: "has another shape",
    Noisy: "gives other outputs for the same input",
    Clipped: "for weights of the present range alone",
    Picky: "fails on random numbers: ValueError: only what a rectifier makes",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_computes_something_else_is_left_alone(kind: type[nn.Linear]) -> None:
    model = network(kind(10, CLASSES))
    with unchanged(model, written=("0.weight", "0.bias")):
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert report["2"].status == "skipped"
    assert re.search(OTHERS[kind], report["2"].reason)
    with unchanged(model), pytest.raises(ModelError, match=OTHERS[kind]):
        sylvinit.initialize_head_(model, (ROWS, Y), head="2")
    alone = nn.Sequential(nn.ReLU(), kind(12, CLASSES)).double()
    with unchanged(alone), pytest.raises(ModelError, match=OTHERS[kind]):
        sylvinit.initialize_(alone, (ROWS, Y), preset="best")


def test_a_registered_subclass_is_not_asked() -> None:
    class Sign(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    @sylvinit.register_layer(Sign)
    class SignLayer(sylvinit.RowLayer):
        def weight_matrix(self) -> Tensor:
            return -self.module.weight

        def set_weight_matrix(self, weight: Tensor) -> None:
            self.module.weight.copy_(-weight)

        def tensors(self) -> dict[str, str]:
            return {"weight": "weight"}

    assert (
        sylvinit.initialize_(network(Sign(10, CLASSES)), (ROWS, Y), preset="best")["2"].status
        == "solved"
    )


def test_one_that_does_not_run() -> None:
    model = network(Matmul(10, CLASSES))
    model[2].unused = Matmul(3, 3).double()
    assert (
        sylvinit.initialize_(model, (ROWS, Y), preset="best")["2.unused"].reason
        == "its forward was not called"
    )


# ------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails: bool) -> None:
    """Parameters, buffers, attributes and random states; in the middle of a forward, too.

    (In the last one, that of the data, weights are written.)
    """
    seen: list[tuple[float, bool]] = []

    class Watched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self[1](self[0](x))
            before = weights_of(self)
            calls = float(self[2].calls)
            output = self[2](hidden)
            same = all(torch.equal(value, before[name]) for name, value in self.named_parameters())
            seen.append((float(self[2].calls) - calls, same))
            if fails:
                raise RuntimeError("on purpose")
            return output

    model = Watched(*network(Storing(10, CLASSES)))
    written = () if fails else ("0.weight", "0.bias", "2.weight", "2.bias")
    with unchanged(model, written=written):
        if fails:
            with pytest.raises(RuntimeError, match="on purpose"):
                sylvinit.initialize_(model, (ROWS, Y), preset="best")
        else:
            sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert all(entry == (1.0, True) for entry in (seen if fails else seen[:-1]))


def test_what_a_forward_is_given_is_not_written_to() -> None:
    class Caching(nn.Linear):
        def forward(self, x: Tensor, count: Tensor, cache: list[Tensor]) -> Tensor:
            count += 1
            cache.append(x)
            y = super().forward(x)
            x.zero_()
            return y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = Caching(12, 10), nn.Linear(10, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            count, cache = torch.zeros(()), []
            y = self.first(x.clone(), count, cache)
            assert (float(count), len(cache)) == (1, 1)
            return self.head(y)

    assert len(sylvinit.initialize_(Net().double(), (ROWS, Y), preset="best").solved) == 2
