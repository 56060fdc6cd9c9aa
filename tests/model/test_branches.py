"""Residual branches: which batch normalizations end one, and the scale that they are given."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.networks import resnet20


class Block(nn.Module):
    """Two layers with a normalization each, and what becomes of them and their input."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], short: nn.Module | None = None):
        super().__init__()
        self.a, self.bn1 = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.b, self.bn2 = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.short, self.join = short or nn.Identity(), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.bn2(self.b(F.relu(self.bn1(self.a(x))))), self.short(x))


def projection() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))


def in_place(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return y


JOINED = {
    "sum": lambda y, x: y + x,
    "sum, shortcut first": lambda y, x: x + y,
    "torch.add": torch.add,
    "method": lambda y, x: y.add(x),
    "in place": in_place,
    "rectified": lambda y, x: F.relu_(y.add_(x)),
    "dropout": lambda y, x: F.dropout(y, 0.5, training=False) + x,
    "another layout": lambda y, x: y.view(-1, 6, 1).reshape(-1, 6).contiguous() + x,
    "a shortcut without layers": lambda y, x: y + F.pad(x[:, ::2], (0, 3)),
    "sum of three": lambda y, x: y + x + 1,
    "out": lambda y, x: torch.add(y, x, out=torch.empty_like(x)),
    "float": lambda y, x: y.float().transpose(0, 1).transpose(0, 1).squeeze() + x,
}
OTHERS = {
    "rectified before": lambda y, x: F.relu(y) + x,
    "scaled before": lambda y, x: 0.5 * y + x,
    "scaled by alpha": lambda y, x: torch.add(x, y, alpha=0.5),
    "of another input": lambda y, x: y + F.linear(torch.ones_like(x), torch.eye(6)),
    "no sum": lambda y, x: y,
    "a constant": lambda y, x: y + 1,
    "a row": lambda y, x: y + x[:1],
    "a product": lambda y, x: y * x,
    "a difference": lambda y, x: y - x,
    "concatenated": lambda y, x: torch.cat((y, x), dim=1)[:, :6],
    "twice the same": lambda y, x: y + y,
}


class Free(nn.Module):
    """Layers and normalizations, and a function that joins them."""

    def __init__(self, forward: Callable[..., Tensor], layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(layers + 1))
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, list(self.layers), list(self.norms))


def bn(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    return norm(layer(x))


# Layers, what becomes of a rectified input, and the normalizations that end a branch.
SHAPES: dict[str, tuple[int, Callable[..., Tensor], set[int]]] = {
    "one layer": (1, lambda x, a, n: x + bn(x, a[0], n[0]), {0}),
    # Of parallel branches only the one is seen that is added to the shortcut itself.
    "two branches": (2, lambda x, a, n: x + bn(x, a[0], n[0]) + bn(x, a[1], n[1]), {0}),
    "in parentheses": (2, lambda x, a, n: x + (bn(x, a[0], n[0]) + bn(x, a[1], n[1])), set()),
    "parallel layers": (2, lambda x, a, n: bn(x, a[0], n[0]) + bn(x, a[1], n[1]), set()),
    "a layer and none": (1, lambda x, a, n: bn(x, a[0], n[0]) + n[1](x), set()),
    "three and none": (
        2,
        lambda x, a, n: bn(x, a[0], n[0]) + n[2](x) + bn(x, a[1], n[1]),
        set(),
    ),
    "linear, parallel": (
        4,
        lambda x, a, n: (
            n[0](y := bn(x, a[0], n[1])) + bn(y, a[1], n[2]) + bn(y, a[2], n[3]) + a[3](y)
        ),
        set(),
    ),
    "parallel behind a layer": (
        3,
        lambda x, a, n: F.relu(bn(y := a[0](x), a[1], n[1]) + bn(y, a[2], n[2]) + n[0](y)),
        set(),
    ),
    "no layer": (0, lambda x, a, n: x + n[0](x), set()),
    "a stream of normalized outputs": (
        2,
        lambda x, a, n: (y := bn(x, a[0], n[0])) + bn(y, a[1], n[1]),
        {1},
    ),
    "a branch within a branch": (
        3,
        lambda x, a, n: x + bn((y := a[0](x)) + bn(y, a[1], n[1]), a[2], n[2]),
        {1, 2},
    ),
    "two inputs": (
        3,
        lambda x, a, n: (
            bn(x[:, :1] * torch.ones(6), a[0], n[0])
            + bn(bn(torch.rand(len(x), 6), a[1], n[1]), a[2], n[2])
        ),
        set(),
    ),
    "an additive skip": (
        3,
        lambda x, a, n: (y := F.relu(a[0](x))) + bn(F.relu(bn(y, a[1], n[1])), a[2], n[2]),
        {2},
    ),
    "an activation in the norm": (1, lambda x, a, n: x + F.relu(bn(x, a[0], n[0])), set()),
}


def scales(model: nn.Module) -> dict[str, float]:
    """The scales of the normalizations, which have one value each."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert len(module.weight.unique()) == 1
            found[name] = module.weight[0].item()
    return found


def changed(model: nn.Module, x: Tensor, **options: object) -> dict[str, float]:
    """The scales that an initialization changes, with a gain of 1/4 unless told."""
    before = scales(model)
    sylvinit.initialize_(model, x, code="pca", **{"branch_gain": 0.25, **options})
    return {name: scale for name, scale in scales(model).items() if scale != before[name]}


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("join", JOINED)
def test_the_normalization_before_the_sum_ends_the_branch(join: str, projected: bool) -> None:
    block = Block(JOINED[join], projection() if projected else None)
    model = nn.Sequential(block, nn.Linear(6, 3))
    # A shortcut may have one layer, or something else, but not both.
    both = projected and join == "a shortcut without layers"
    assert changed(model, torch.randn(50, 6)) == ({} if both else {"0.bn2": 0.25})


@pytest.mark.parametrize("join", OTHERS)
def test_what_is_no_branch_that_ends_in_a_normalization(join: str) -> None:
    model = nn.Sequential(Block(OTHERS[join]), nn.Linear(6, 3))
    assert changed(model, torch.randn(50, 6)) == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_networks(shape: str) -> None:
    layers, forward, ends = SHAPES[shape]
    body = Free(forward, layers)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), body, nn.Linear(6, 3))
    assert changed(model, torch.randn(50, 6)) == {f"2.norms.{i}": 0.25 for i in ends}


class Active(nn.BatchNorm1d):
    """A normalization and an activation in one module."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Plain(nn.Module):
    """A layer that the library does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def test_a_normalization_with_an_activation_ends_no_branch() -> None:
    block = Block(JOINED["sum"])
    block.bn2 = Active(6)
    assert changed(nn.Sequential(block, nn.Linear(6, 3)), torch.randn(50, 6)) == {}


def test_layers_of_other_types_count_as_layers() -> None:
    """Else the shortcut with its known layer would be taken for the branch."""
    block = Block(JOINED["sum"], projection())
    block.a, block.b = Plain(), Plain()
    model = nn.Sequential(block, nn.Linear(6, 3))
    assert changed(model, torch.randn(50, 6)) == {}  # for its last layer is not solved
    block.a = nn.Linear(6, 6)
    assert changed(model, torch.randn(50, 6)) == {}
    block.a, block.b = Plain(), nn.Linear(6, 6)
    assert changed(model, torch.randn(50, 6)) == {"0.bn2": 0.25}


def test_parts_of_the_output_that_are_written_over() -> None:
    def overwritten(y: Tensor, x: Tensor) -> Tensor:
        y[:, 0] = 0
        return y + x

    assert changed(nn.Sequential(Block(overwritten), nn.Linear(6, 3)), torch.randn(50, 6)) == {}


def test_products_of_weights_are_no_depth() -> None:
    """A parametrized layer is one layer."""

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.eye(6))

        def forward(self, w: Tensor) -> Tensor:
            return w @ (self.a @ self.a)

    body = Free(lambda x, a, n: bn(x, a[0], n[0]) + bn(x, a[1], n[1]), 2)
    nn.utils.parametrize.register_parametrization(body.layers[0], "weight", Squared())
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), body, nn.Linear(6, 3))
    assert changed(model, torch.randn(50, 6)) == {}


def test_long_loops_take_little_memory() -> None:
    """What is known of every tensor hardly grows with the number of those before it."""
    body = Free(lambda x, a, n: [x := F.relu(bn(x, a[0], n[0])) for _ in range(600)][-1], 1)
    tracemalloc.start()
    try:
        sylvinit.initialize_(body, torch.randn(4, 6), code="pca", dry_run=True, branch_gain="depth")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6  # bytes; seen 1.5e6. A set of numbers for each tensor would take 7e7.


def test_sums_count_and_not_modules() -> None:
    block = Block(lambda y, x: F.relu(y + x))
    model = nn.Sequential(*[block] * 4, nn.Linear(6, 3))
    sylvinit.initialize_(model, torch.randn(50, 6), preset="best", branch_gain="depth")
    assert block.bn2.weight.tolist() == [0.5] * 6


def test_sums_of_nested_tensors_are_passed_over() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.nested.nested_tensor(list(self.layer(x)))
            return torch.nested.to_padded_tensor(rows + rows, 0.0)

    model = nn.Sequential(Nested(), nn.Linear(6, 3))
    report = sylvinit.initialize_(model, torch.randn(50, 6), preset="best", branch_gain="depth")
    assert len(report.solved) == 2


def test_of_two_ways_of_equal_depth_neither_is_a_branch() -> None:
    model = nn.Sequential(Block(JOINED["sum"], nn.Sequential(projection(), projection())))
    assert changed(model, torch.randn(50, 6)) == {}


def test_the_shortcut_may_be_older_than_the_block() -> None:
    """A stream that blocks add to: the sum is as deep as its deepest branch."""
    model = nn.Sequential(*(Block(JOINED["sum"]) for _ in range(3)), nn.Linear(6, 3))
    assert changed(model, torch.randn(50, 6)) == {f"{i}.bn2": 0.25 for i in range(3)}


def test_depth_is_one_over_the_root_of_the_number_of_branches() -> None:
    model, x = resnet20(widths=(4, 8, 16)), torch.randn(8, 3, 16, 16)
    names = {f"blocks.{i}.bn2" for i in range(9)}
    expected = dict.fromkeys(names, pytest.approx(1 / 3))
    report = sylvinit.initialize_(model, x, preset="best", branch_gain="depth", max_samples=8)
    assert {k: v for k, v in scales(model).items() if v != 1} == expected
    noted = {layer.name for layer in report.layers if "ends a residual branch" in str(layer.notes)}
    assert noted == names
    assert report["blocks.0.bn2"].notes == ["ends a residual branch: scale 0.333"]
    assert report.settings["branch_gain"] == "depth"
    # As often as one likes.
    sylvinit.initialize_(model, x, preset="best", branch_gain="depth")
    assert {k: v for k, v in scales(model).items() if v != 1} == expected
    assert changed(model, x, branch_gain="none") == {}


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("shared", [False, True])
def test_weights_are_those_for_scales_that_were_there_before(shared: bool, storage: str) -> None:
    """Layers behind a branch see the inputs that its gain causes."""
    x = torch.randn(60, 6)
    torch.manual_seed(0)
    one, two = (Block(JOINED["sum"]) for _ in range(2))
    blocks = (one, nn.Linear(6, 6), nn.ReLU(), one if shared else two)
    first = nn.Sequential(nn.Linear(6, 6), *blocks, nn.Linear(6, 3))
    second = copy.deepcopy(first)
    for block in second:
        if isinstance(block, Block):
            nn.init.constant_(block.bn2.weight, 0.25)
    sylvinit.initialize_(first, x, preset="best", branch_gain=0.25, storage=storage)
    sylvinit.initialize_(second, x, preset="best", branch_gain="none", storage=storage)
    assert set(scales(first).values()) == {0.25, 1.0}
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ways_of_running(storage: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(Block(JOINED["sum"]), nn.Linear(6, 3)).to(dtype)
    x = torch.randn(40, 6).to(dtype)
    assert changed(model, x, storage=storage, microbatch=16) == {"0.bn2": 0.25}


LEFT_ALONE = {
    "not selected": {"exclude": "*bn2"},
    "not calibrated": {"calibrate_norm": False},
    "dry run": {"dry_run": True},
    "the default": {"branch_gain": None},
}


@pytest.mark.parametrize("case", [*LEFT_ALONE, "frozen", "no scale", "shared", "layer frozen"])
def test_scales_that_are_left_alone(case: str) -> None:
    model = nn.Sequential(Block(JOINED["sum"]), nn.Linear(6, 3))
    block, options = model[0], {"branch_gain": 0.25, **LEFT_ALONE.get(case, {})}
    if case == "frozen":
        block.bn2.weight.requires_grad_(False)
    if case == "no scale":
        block.bn2 = nn.BatchNorm1d(6, affine=False)
    if case == "shared":  # with a normalization that layers have been solved behind
        block.bn1.weight = block.bn2.weight
    if case == "layer frozen":
        block.b.requires_grad_(False)
    report = sylvinit.initialize_(model, torch.randn(50, 6), code="pca", **options)
    left = [
        value for name, value in model.state_dict().items() if "bn" in name and "weight" in name
    ]
    assert all(bool((value == 1).all()) for value in left)
    planned = case == "dry run"
    assert any("residual branch" in str(layer.notes) for layer in report.layers) == planned
    quiet = planned or case == "the default"
    assert any("branch_gain has no effect" in text for text in report.warnings) != quiet


def test_which_preset_has_a_gain_and_that_none_warns() -> None:
    x = torch.randn(50, 6)
    for preset in sylvinit.options.PRESETS:
        model = nn.Sequential(Block(JOINED["sum"]), Block(JOINED["sum"]), nn.Linear(6, 3))
        report = sylvinit.initialize_(model, x, preset=preset)
        gain = pytest.approx(2**-0.5) if preset == "frozen" else 1.0
        assert [scales(model)[f"{i}.bn2"] for i in (0, 1)] == [gain, gain]
        assert report.settings["branch_gain"] == ("depth" if preset == "frozen" else "none")
    plain = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    assert not any(
        "branch_gain" in text for text in sylvinit.initialize_(plain, x, preset="best").warnings
    )


def test_a_new_head_leaves_them_alone() -> None:
    model, labels = nn.Sequential(Block(JOINED["sum"]), nn.Linear(6, 3)), torch.arange(50) % 3
    report = sylvinit.initialize_head_(model, (torch.randn(50, 6), labels))
    assert scales(model) == {"0.bn1": 1, "0.bn2": 1}
    assert report.settings["branch_gain"] == "none"


def test_a_failed_call_puts_scales_back() -> None:
    model = nn.Sequential(Block(JOINED["sum"]), nn.Linear(6, 3))
    nn.init.constant_(model[0].bn2.weight, 0.7)
    before = copy.deepcopy(model.state_dict())

    class Broken(sylvinit.codes.PCA):
        def fit(self, stats: object, k: int, seed: int) -> sylvinit.codes.Latent:
            assert model[0].bn2.weight.tolist() == [0.25] * 6
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        sylvinit.initialize_(model, torch.randn(50, 6), code={"1": Broken()}, branch_gain=0.25)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
