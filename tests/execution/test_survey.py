"""The survey takes two samples, and all of the first batch where the model needs it."""

from __future__ import annotations

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
    unchanged,
    weights_of,
)
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import RowLayoutError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]
WRITTEN = tuple(f"{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias"))


class FixedSize(nn.Sequential):
    """Takes ten samples at a time, by the shape that it gives its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(10, 12))


class Refusing(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) % 5:
            raise NotImplementedError("five at a time")
        return super().forward(x)


class MemoryBank(nn.Sequential):
    """Keeps the last ten samples, which nothing reads; its size is that of a batch."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_buffer("bank", torch.zeros(10, 12))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.bank[torch.arange(10)] = x
        return super().forward(x)


@pytest.mark.parametrize("kind", [FixedSize, Refusing, MemoryBank])
@pytest.mark.parametrize("options", [{}, {"storage": "recompute"}, {"preset": "frozen"}], ids=str)
def test_models_of_a_fixed_batch_size(kind: type[nn.Sequential], options: dict[str, Any]) -> None:
    model = kind(*mlp())
    right = initialized(mlp(), (ROWS, Y), microbatch=10, **options)
    with unchanged(model, written=WRITTEN):
        sylvinit.initialize_(model, (ROWS, Y), microbatch=10, **{"preset": "best", **options})
    assert_identical(right, weights_of(model))


@pytest.mark.parametrize("kind", [FixedSize, Refusing, MemoryBank])
def test_the_last_batch_is_too_small_for_them(kind: type[nn.Sequential]) -> None:
    model = kind(*mlp())
    with unchanged(model), pytest.raises((RuntimeError, NotImplementedError)) as caught:
        sylvinit.initialize_(model, (ROWS[:24], Y[:24]), preset="best", microbatch=10)
    assert "samples 20 to 23: float32 (4, 12)" in caught.value.__notes__[0]


def test_a_dry_run_and_the_head_alone() -> None:
    model = FixedSize(*mlp())
    with unchanged(model):
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=10, dry_run=True)
    assert [layer.status for layer in report.layers] == ["planned"] * 3
    with unchanged(model, written=("4.weight", "4.bias")):
        sylvinit.initialize_head_(model, (ROWS, Y), microbatch=10)


def test_what_the_failed_forward_left_behind_does_not_stay() -> None:
    """A mask for two samples, of which the forward finds out too late."""

    class Cached(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "mask"):
                self.register_buffer("mask", torch.ones(len(x), 1))
            return super().forward((x * self.mask).view(10, 12))

    model = Cached(*mlp())
    right = initialized(mlp(), (ROWS, Y), microbatch=10)
    with unchanged(model, written=WRITTEN):
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=10)
    assert_identical(right, weights_of(model))


def test_lazy_modules_of_a_fixed_batch_size() -> None:
    model = FixedSize(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(CLASSES))
    report = sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=10)
    assert [layer.status for layer in report.layers] == ["solved"] * 2


# ------------------------------------------------------------------------------------------ graphs

GENERATOR = torch.Generator().manual_seed(3)
LINKS = torch.rand(30, 30, generator=GENERATOR) < 0.08
ADJACENCY = ((LINKS | LINKS.T).double() + torch.eye(30, dtype=torch.float64)).clamp(max=1)
ADJACENCY /= ADJACENCY.sum(dim=1, keepdim=True)
EDGES = ADJACENCY.nonzero().T.contiguous()  # (2, edges), the nodes themselves included
NODES = ROWS.double()


class DenseGraph(nn.Module):
    """Two graph convolutions and a head on nodes (30, 12) of a graph that the model holds."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 16)
            self.head = nn.Linear(16, CLASSES)
        self.register_buffer("adjacency", ADJACENCY)
        self.double()

    def pass_messages(self, x: Tensor) -> Tensor:
        return self.adjacency @ x

    def features(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = self.pass_messages(layer(x)).tanh()
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class EdgeList(DenseGraph):
    """The same; the edges are an input, and so are numbers for them, which a layer reads."""

    def __init__(self, numbers: bool = False) -> None:
        super().__init__()
        self.edge = nn.Linear(5, 1).double() if numbers else None

    def forward(self, x: Tensor, edges: Tensor, numbers: Tensor | None = None) -> Tensor:
        weight = ADJACENCY[edges[0], edges[1]][:, None]
        if self.edge is not None:
            weight = weight * (1 + self.edge(numbers).sigmoid())
        self.weight, self.edges = weight, edges
        return super().forward(x)

    def pass_messages(self, x: Tensor) -> Tensor:
        source, target = self.edges[1], self.edges[0]
        return torch.zeros_like(x).index_add(0, target, self.weight * x[source])


@pytest.mark.parametrize("dense", [True, False])
def test_nodes_of_a_graph_have_their_own_labels(dense: bool) -> None:
    """The head is the one that is solved from the features of the nodes, given as a table."""
    model = DenseGraph() if dense else EdgeList()
    batch = (NODES, Y) if dense else {"x": NODES, "edges": EDGES, "labels": Y}
    report = sylvinit.initialize_(model, [batch], preset="best", patches="all")
    assert [layer.rows for layer in report.solved] == [30, 30, 30]
    with torch.no_grad():
        if not dense:
            model(NODES, EDGES)
        features = model.features(NODES)
    head = nn.Linear(16, CLASSES).double()
    right = initialized(head, (features, Y), preset="paper", patches="all")
    # Both are solved from the same 30 rows, in sums of another order.
    assert_close(right, weights_of(model.head), 1e-9)


def test_both_kinds_of_graph_agree() -> None:
    dense = initialized(DenseGraph(), [(NODES, Y)], preset="frozen")
    edges = initialized(EdgeList(), [{"x": NODES, "edges": EDGES, "labels": Y}], preset="frozen")
    assert_close(dense, edges, 1e-9)  # the same sums in another order, three layers deep


def test_what_edges_carry_is_data() -> None:
    """It is shared by the samples, so that it is not replaced with one of them."""
    numbers = torch.randn(EDGES.shape[1], 5, generator=GENERATOR, dtype=torch.float64)
    batch = {"x": NODES, "edges": EDGES, "numbers": numbers, "labels": Y}
    report = sylvinit.initialize_(EdgeList(numbers=True), [batch], preset="best")
    assert report["edge"].status == "solved"
    assert report["edge"].rows == len(numbers)


def test_nodes_in_another_order_have_no_labels() -> None:
    """Sorted by their first feature: some stay where they were when one is replaced."""

    class Sorted(DenseGraph):
        def features(self, x: Tensor) -> Tensor:
            x = super().features(x)
            return x[x[:, 0].argsort()]

    model = Sorted()
    with unchanged(model), pytest.raises(RowLayoutError, match=r"layer head: .*no labels"):
        sylvinit.initialize_(model, [(NODES, Y)], preset="best")


# ----------------------------------------------------------------------------------------- experts


class Late(nn.Module):
    """Layer ``i`` of a list runs if a sample's first entry asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        asked = x[:, 0].long() % 3
        out = x.new_zeros(len(x), 4)
        for number in asked.unique().tolist():
            if len(x) == 2 and number == 2:
                raise ValueError("never on two samples")
            out[asked == number] = self.branches[number](x[asked == number])
        return self.head(out)


@pytest.mark.parametrize("size", [10, 30])
def test_layers_that_the_two_samples_miss_and_the_first_batch_reaches(size: int) -> None:
    x = ROWS.clone()
    x[:, 0] = (torch.arange(30) % 10 >= 4).float()  # the first four go to branch 0
    x[20:, 0] = 2.0
    model = Late()
    report = sylvinit.initialize_(model, (x, Y), preset="best", microbatch=size)
    assert report["branches.0"].rows == 8
    assert report["branches.1"].rows == 12
    if size == 30:
        assert report["branches.2"].rows == 10
    else:
        assert "did not run on the 10 survey samples" in report["branches.2"].reason


def test_a_first_batch_that_fails_is_seen_when_it_is_propagated() -> None:
    """The survey of two samples stands, and the error comes with the layer that is next."""
    x = ROWS.clone()
    x[:, 0] = 0.0
    x[5:, 0] = 1.0

    class Failing(Late):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if len(x) > 3:
                raise ValueError("no more than three")
            return out

    model = Failing()
    before = bits(model.head.weight)
    with unchanged(model), pytest.raises(ValueError, match="no more than three") as caught:
        sylvinit.initialize_(model, (x, Y), preset="best", microbatch=10)
    assert "after the last layer had been solved" in caught.value.__notes__[0]
    assert bits(model.head.weight) == before
