"""Weights that several calls or modules share, siblings, parametrizations, and attention."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from equation_checks import (
    CLASSES,
    CLOSE,
    batches,
    check_head,
    check_layer,
    check_rows,
    inputs_of,
    labels,
    samples,
)
from helpers import assert_near, chosen_rows, layer_patches, scores
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sylvinit


def network(make: Any, *shape: int) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    module, x = make().double(), samples(*shape)
    head = nn.Linear(module(x).flatten(1).shape[1], CLASSES).double()
    return nn.Sequential(module, nn.Tanh(), nn.Flatten(), head), x


class Siamese(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.second = nn.Linear(6, 4) if tied else self.first
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joined = torch.cat((self.first(a).mean(1), self.second(b).mean(1)), dim=1)
        return self.head(joined.tanh())


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("option", ["all", 2])
@pytest.mark.parametrize("tied", [False, True])
def test_calls_of_one_weight_are_summed(tied: bool, option: int | str, storage: Any) -> None:
    model = Siamese(tied).double()
    a, b = samples(5, 6), samples(3, 6, seed=2).square()
    report = sylvinit.initialize_(
        model, batches(a, b), patches=option, storage=storage, progress=False, preset="paper"
    )
    one, _ = chosen_rows(layer_patches(model.first, a), "first", option)
    name, call = ("second", 0) if tied else ("first", 1)
    two, _ = chosen_rows(layer_patches(model.second, b), name, option, call=call)
    columns = np.concatenate((one, two), axis=2)
    check_layer(model.first, columns, np.array([]), "pca", 10.0, report["first"])
    if tied:
        assert model.second.weight is model.first.weight
        assert "shares its weight with first" in report["second"].reason
        check_layer(model.second, columns, np.array([]), "pca", 10.0)
    features = inputs_of(model, model.head, a, b)[0]
    check_head(model.head, features.T.numpy(), labels().numpy(), 10.0)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(9, 4) for _ in range(3))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat((self.q(x), self.k(x), self.v(x)), dim=1).tanh())


@pytest.mark.parametrize("siblings", ["split", "same"])
def test_siblings(siblings: Any) -> None:
    model, x = Branches().double(), samples(9)
    report = sylvinit.initialize_(
        model, batches(x), siblings=siblings, preset="paper", progress=False
    )
    columns, y = x.T.numpy(), labels().numpy()
    every = scores("pca", columns, y, 9)
    for index, name in enumerate("qkv"):
        # v is left with the last component: the other three rows are mixtures of it.
        part = every[4 * index : 4 * index + 4] if siblings == "split" else every[:4]
        module = getattr(model, name)
        check_rows(module.weight.detach().numpy(), module.bias, columns, part, 10.0)
        told = any("shares its input" in note for note in report[name].notes)
        assert told == (siblings == "split" and index > 0)


# ------------------------------------------------------------------------------ tied by memory


class TiedByMemory(nn.Module):
    """Two layers, or a layer and an embedding, whose parameters lie in the same memory."""

    def __init__(self, first: nn.Module, *, transposed: bool = False) -> None:
        super().__init__()
        self.first, self.second = first, nn.Linear(7, 7)
        self.head = nn.Linear(7, CLASSES)
        data = first.weight.data  # type: ignore[union-attr, operator]
        self.second.weight.data = data.mT if transposed else data

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.first, nn.Embedding):
            x = x.abs().long().clamp(max=6)[:, 0]
        return self.head(self.second(self.first(x).relu()).relu())


def test_layers_tied_by_memory_are_one_weight() -> None:
    x = samples(7)
    tied, shared = TiedByMemory(nn.Linear(7, 7).double()), TiedByMemory(nn.Linear(7, 7).double())
    for model in (tied.double(), shared.double()):
        model.load_state_dict(tied.state_dict())
    shared.second.weight = shared.first.weight
    tied.second.weight.data = tied.first.weight.data
    for model in (tied, shared):
        report = sylvinit.initialize_(model, batches(x), preset="best", progress=False)
        assert "shares its weight with first" in report["second"].reason
    for name, value in shared.state_dict().items():
        assert torch.equal(tied.state_dict()[name], value)


@pytest.mark.parametrize("first", ["embedding", "transposed"])
def test_memory_that_is_used_in_another_way_is_left_alone(first: str) -> None:
    transposed = first == "transposed"
    model = TiedByMemory(
        nn.Linear(7, 7) if transposed else nn.Embedding(7, 7), transposed=transposed
    )
    before = model.first.weight.detach().clone()
    report = sylvinit.initialize_(
        model.float(), batches(samples(7).float()), preset="best", progress=False
    )
    assert torch.equal(model.first.weight, before)
    assert "its weight is tied to" in report["second"].reason


def test_layers_tied_by_memory_are_restored() -> None:
    model = TiedByMemory(nn.Linear(7, 7)).double()
    model.second.weight.data = model.first.weight.data
    before = model.first.weight.detach().clone()

    def fail(*args: object) -> Tensor:
        raise RuntimeError("the forward fails")

    model.head.register_forward_pre_hook(
        lambda module, args: None if len(args[0]) == 2 else fail(), prepend=False
    )
    with pytest.raises(RuntimeError, match="the forward fails"):
        sylvinit.initialize_(model, batches(samples(7)), preset="best", progress=False)
    assert torch.equal(model.first.weight, before)
    assert torch.equal(model.second.weight, before)


# --------------------------------------------------------------------------------- parametrized


def test_weight_norm() -> None:
    model, x = network(lambda: nn.Conv2d(3, 6, 3, padding=1), 3, 6, 7)
    parametrizations.weight_norm(model[0])
    parametrizations.weight_norm(model[3])
    report = sylvinit.initialize_(
        model, batches(x), code="lda", patches="all", preset="paper", progress=False
    )
    columns, owner = chosen_rows(layer_patches(model[0], x), "0", "all")
    check_layer(model[0], columns, labels().numpy()[owner], "lda", 10.0, report["0"])
    check_head(model[3], inputs_of(model, model[3], x)[0].T.numpy(), labels().numpy(), 10.0)


@pytest.mark.parametrize(
    "parametrize", [parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrization_that_cannot_hold_the_solution_is_skipped(parametrize: Any) -> None:
    model, x = network(lambda: nn.Linear(7, 4), 7)
    parametrize(model[0])
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    report = sylvinit.initialize_(model, batches(x), preset="best", progress=False)
    assert report["0"].status == "skipped"
    assert "parametrization" in report["0"].reason
    after = model[0].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    check_head(model[3], inputs_of(model, model[3], x)[0].T.numpy(), labels().numpy(), 10.0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norm() -> None:
    model, x = network(lambda: nn.Linear(7, 4), 7)
    nn.utils.weight_norm(model[0])
    report = sylvinit.initialize_(model, batches(x), patches="all", preset="paper", progress=False)
    columns, owner = chosen_rows(layer_patches(model[0], x), "0", "all")
    check_layer(model[0], columns, labels().numpy()[owner], "pca", 10.0, report["0"])
    check_head(model[3], inputs_of(model, model[3], x)[0].T.numpy(), labels().numpy(), 10.0)


# -------------------------------------------------------------------------------------- attention


class Attention(nn.Module):
    """Attention of one sequence to others; everything outside is batch first."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, **options)
        for bias in (self.attention.in_proj_bias, self.attention.out_proj.bias):
            if bias is not None:
                nn.init.normal_(bias)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        given = [q, q if k is None else k, q if v is None else v]
        if not self.attention.batch_first:
            # One tensor stays one tensor, as it would in a network without this transposition.
            turned = {id(x): x.transpose(0, 1) for x in given}
            given = [turned[id(x)] for x in given]
        y, _ = self.attention(*given)
        return self.head(y.mean(1 if self.attention.batch_first else 0))


def projections(module: nn.MultiheadAttention) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Weight and bias of q, k and v."""
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return [
        (w.detach().numpy(), None if b is None else b.detach().numpy())
        for w, b in zip(weights, biases, strict=True)
    ]


def attended(module: nn.MultiheadAttention, *inputs: Tensor) -> np.ndarray:
    """What the heads hand to the output projection, (samples, queries, features), by loops."""
    q, k, v = (
        x.numpy() @ w.T + (0 if b is None else b)
        for x, (w, b) in zip(inputs, projections(module), strict=True)
    )
    for extra in (module.bias_k, module.bias_v):
        if extra is not None:
            row = np.broadcast_to(extra.detach().numpy(), (len(k), 1, k.shape[2]))
            k, v = (
                (np.append(k, row, 1), v) if extra is module.bias_k else (k, np.append(v, row, 1))
            )
    if module.add_zero_attn:
        k, v = (np.append(x, np.zeros((len(x), 1, x.shape[2])), 1) for x in (k, v))
    out, width = np.zeros_like(q), q.shape[2] // module.num_heads
    for sample, query, head in product(range(len(q)), range(q.shape[1]), range(module.num_heads)):
        part = slice(head * width, (head + 1) * width)
        affinity = np.exp(k[sample, :, part] @ q[sample, query, part] / width**0.5)
        out[sample, query, part] = affinity / affinity.sum() @ v[sample, :, part]
    return out


def check_attention(model: Attention, inputs: tuple[Tensor, ...], option: int | str) -> None:
    """All four projections, each with the components of its input from the first on."""
    module = model.attention
    for letter, x, (weight, bias) in zip("qkv", inputs, projections(module), strict=True):
        columns, _ = chosen_rows(x.numpy()[None], f"attention.{letter}_proj", option)
        s = scores("pca", columns[0], np.array([]), 6)
        check_rows(weight, None if bias is None else torch.tensor(bias), columns[0], s, 10.0)
    rows = attended(module, *inputs)
    columns, _ = chosen_rows(rows[None], "attention.out_proj", option)
    check_layer(module.out_proj, columns, np.array([]), "pca", 10.0)
    features = inputs_of(model, model.head, *inputs)[0]
    check_head(model.head, features.T.numpy(), labels().numpy(), 10.0)


VARIANTS: dict[str, dict[str, Any]] = {
    "batch-first": {"batch_first": True},
    "time-first": {},
    "no-bias": {"batch_first": True, "bias": False},
    "add-bias-kv": {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
    "dropout": {"batch_first": True, "dropout": 0.5},
    "separate-weights": {"batch_first": True, "kdim": 5, "vdim": 4},
    "separate-weights-time-first": {"kdim": 7, "vdim": 9, "bias": False},
}


@pytest.mark.parametrize("option", ["all", 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention(variant: str, option: int | str) -> None:
    torch.manual_seed(0)
    options = VARIANTS[variant]
    model = Attention(**options).double()
    sizes = (6, options.get("kdim", 6), options.get("vdim", 6))
    inputs = tuple(samples(4 if d == 0 else 5, size, seed=d) for d, size in enumerate(sizes))
    report = sylvinit.initialize_(
        model, batches(*inputs), patches=option, preset="paper", progress=False
    )
    check_attention(model, inputs, option)
    kinds = {layer.kind: layer.status for layer in report.layers}
    assert [kinds[f"MultiheadAttention.{part}"] for part in ("q", "k", "v", "out")] == [
        "solved"
    ] * 4


@pytest.mark.parametrize("siblings", ["same", "split"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_self_attention_shares_one_input(batch_first: bool, siblings: Any) -> None:
    torch.manual_seed(0)
    model = Attention(batch_first=batch_first).double()
    x = samples(5, 6)
    report = sylvinit.initialize_(
        model, batches(x), patches="all", siblings=siblings, progress=False, preset="paper"
    )
    if siblings == "same":
        check_attention(model, (x, x, x), "all")
        (q, _), (k, _), (v, _) = projections(model.attention)
        assert_near(k, q, CLOSE)
        assert_near(v, q, CLOSE)
        return
    # q takes all six components; k and v are orthogonal mixtures of the same six solutions.
    (q, q_bias), *others = projections(model.attention)
    columns, _ = chosen_rows(x.numpy()[None], "attention.q_proj", "all")
    s = scores("pca", columns[0], np.array([]), 6)
    check_rows(q, torch.tensor(q_bias), columns[0], s, 10.0)
    for letter, (weight, bias) in zip("kv", others, strict=True):
        mixture = np.linalg.solve(q.T, weight.T).T
        assert_near(mixture @ mixture.T, np.eye(6), CLOSE)
        check_rows(weight, torch.tensor(bias), columns[0], mixture @ s, 10.0)
        assert any("mixtures" in note for note in report[f"attention.{letter}_proj"].notes)
    assert np.abs(others[0][0] - others[1][0]).max() > 0.1
