"""Adapters: low-rank layers beside frozen ones, the last of which starts at zero."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from driver_helpers import CLASSES, images, unchanged
from helpers import layer_patches, principal_axes
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import ModelError, SylvinitWarning
from sylvinit.model.obstacles import ADDED_ZEROS

RANK = 4
EVA: dict[str, Any] = {
    "preset": "best",
    "code": "pca",
    "lam": 1e-8,
    "patches": "all",
    "siblings": "same",
    "include": "*lora_A*",
}
X, Y = images(40)


class Adapted(nn.Module):
    """A frozen layer and what is added to its output, made of layers down and up from rank 4."""

    def __init__(self, base: nn.Module, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A, self.lora_B = down, up
        nn.init.zeros_(up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        y += 0.5 * self.lora_B(self.lora_A(x))
        return y


def _linear(inputs: int, outputs: int) -> Adapted:
    down, up = nn.Linear(inputs, RANK, bias=False), nn.Linear(RANK, outputs, bias=False)
    return Adapted(nn.Linear(inputs, outputs), down, up)


def _convolution(inputs: int, outputs: int) -> Adapted:
    down = nn.Conv2d(inputs, RANK, 3, padding=1, bias=False)
    up = nn.Conv2d(RANK, outputs, 1, bias=False)
    return Adapted(nn.Conv2d(inputs, outputs, 3, padding=1), down, up)


def _network() -> nn.Sequential:
    """A convolution and a linear layer with adapters, and a head to be trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(
            _convolution(3, 8),
            nn.ReLU(),
            nn.Flatten(),
            _linear(288, 10),
            nn.ReLU(),
            nn.Linear(10, CLASSES),
        )


def _warned(model: nn.Module, **options: Any) -> tuple[sylvinit.Report, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = sylvinit.initialize_(model, (X, Y), microbatch=10, **{"preset": "best", **options})
    texts = [str(w.message) for w in caught if w.category is SylvinitWarning]
    return report, [text for text in texts if text.startswith(ADDED_ZEROS.kind)]


def test_the_last_layers_of_adapters_stay_zero() -> None:
    model = _network()
    expected = model[:5](X)
    written = ("0.lora_A.weight", "3.lora_A.weight", "5.weight", "5.bias")
    with unchanged(model, written=written):
        report, texts = _warned(model)
    assert len(texts) == 1
    assert "0.lora_B (Conv2d), 3.lora_B (Linear);" in texts[0]
    assert "include=" in texts[0]
    assert report["3.lora_B"].status == "skipped"
    assert "left at zero" in report["3.lora_B"].reason
    assert torch.equal(model[:5](X), expected)


@pytest.mark.parametrize("include", ["*lora_B*", ["0.lora_B", "3.lora_B"], "3.lora_B"])
def test_they_are_solved_where_they_alone_are_asked_for(include: Any) -> None:
    model = _network()
    report, texts = _warned(model, include=include)
    assert texts == []
    solved = [layer.name for layer in report.solved]
    assert solved == [
        name for name in ("0.lora_B", "3.lora_B") if name in include or "*" in include
    ]
    assert all(bool(model.get_submodule(name).weight.any()) for name in solved)


@pytest.mark.parametrize("include", ["*lora*", "*", ["*lora_B*", "5"]])
def test_they_are_not_where_more_is_asked_for(include: Any) -> None:
    model = _network()
    _, texts = _warned(model, include=include)
    assert len(texts) == 1
    assert not any(bool(model[index].lora_B.weight.any()) for index in (0, 3))


def test_other_weights_than_zero_are_solved() -> None:
    model = _network()
    nn.init.normal_(model[0].lora_B.weight)
    report, texts = _warned(model)
    assert report["0.lora_B"].status == "solved"
    assert "3.lora_B" in texts[0]
    assert "0.lora_B" not in texts[0]


class ZeroConvolution(nn.Module):
    """A copy of a block, whose output joins that of the block by way of a layer of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.copy = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.join, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, CLASSES)
        nn.init.zeros_(self.join.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.add(self.join(self.copy(x).relu()), self.block(x))
        return self.head(x.relu().mean(dim=(2, 3)))


class ZeroHead(ZeroConvolution):
    """Its classifier's scores are added to others, its bias is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(CLASSES))
        nn.init.normal_(self.join.weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


def test_a_zero_convolution_stays_and_a_zero_head_does_not() -> None:
    model = ZeroConvolution()
    report, texts = _warned(model)
    assert "join (Conv2d);" in texts[0]
    assert not bool(model.join.weight.any())
    assert report["head"].status == "solved"
    report, texts = _warned(ZeroHead())
    assert (texts, report["head"].status) == ([], "solved")


def test_an_adapter_of_the_head() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 10), nn.ReLU(), _linear(10, CLASSES))
    with unchanged(model), pytest.raises(ModelError, match=r"head 3\.lora_B .* left at zero"):
        sylvinit.initialize_head_(model, (X, Y))
    report = sylvinit.initialize_head_(model, (X, Y), head="3.lora_B")
    assert [layer.name for layer in report.solved] == ["3.lora_B"]


# ------------------------------------------------------------- principal components of the inputs


def _projector(rows: Any) -> np.ndarray:
    q, _ = np.linalg.qr(np.asarray(rows, dtype=np.float64).reshape(len(rows), -1).T)
    return q @ q.T


def test_the_recipe_takes_principal_components_of_the_input() -> None:
    model = _network()
    written = ("0.lora_A.weight", "3.lora_A.weight")
    with unchanged(model, written=written):
        sylvinit.initialize_(model, (X, Y), **{"preset": "best", **EVA})
    for module, given in ((model[0].lora_A, X), (model[3].lora_A, model[:3](X).detach())):
        x = layer_patches(module, given.double())
        expected = principal_axes(x.reshape(-1, x.shape[-1]).T, RANK)
        difference = _projector(module.weight.detach()) - _projector(expected)
        # float32 moments of 40 x 36 patches and of 40 rows.
        assert np.linalg.norm(difference) <= 1e-4


def test_what_lam_does_to_the_components() -> None:
    """Row i is p_i minus lam (p_i . mu) / (1 + lam mu^T K^-1 mu) K^-1 mu, K = a_i + lam Sigma."""
    rows = X.flatten(1)[:, :12].double() + 1
    centered = rows - rows.mean(dim=0)
    _, values, axes = torch.linalg.svd(centered, full_matrices=False)
    for lam in (1e-8, 1.0):
        layer = nn.Linear(12, RANK, bias=False).double()
        sylvinit.initialize_(
            layer, rows, preset="best", code="pca", head_code="pca", lam=lam, patches="all"
        )
        mean, spread = rows.mean(dim=0), centered.T @ centered / len(rows)
        expected = []
        for axis, value in zip(axes[:RANK], values[:RANK] ** 2 / len(rows), strict=True):
            shifted = torch.linalg.solve(value * torch.eye(12).double() + lam * spread, mean)
            expected.append(axis - lam * (axis @ mean) / (1 + lam * mean @ shifted) * shifted)
        difference = _projector(layer.weight.detach()) - _projector(torch.stack(expected))
        assert np.linalg.norm(difference) <= 1e-10
        away = np.linalg.norm(_projector(layer.weight.detach()) - _projector(axes[:RANK]))
        assert (away > 1e-2) == (lam == 1.0)


class Attention(nn.Module):
    """Two projections of one input, and one of what they make."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.embed = nn.Linear(12, 24)
            self.q, self.v, self.out = (nn.Linear(24, 24) for _ in range(3))
            self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        return self.head(x + self.out(torch.tanh(self.q(x)) * self.v(x)))


def _peft_model(model: nn.Module, names: list[str], **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=RANK, target_modules=names, lora_dropout=0.1, **options)
    return peft.get_peft_model(model, config)


ROWS = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    12, 12, generator=torch.Generator().manual_seed(1)
)


@pytest.mark.parametrize(
    ("make", "names", "x"),
    [(Attention, ["q", "v", "out"], ROWS[:40]), (ZeroConvolution, ["block", "copy"], X)],
)
def test_peft_models_start_as_their_base(
    make: Callable[[], nn.Module], names: list[str], x: Tensor
) -> None:
    base = make().eval()
    expected = base(x)
    model = _peft_model(base, names)
    with pytest.warns(
        SylvinitWarning, match=re.escape(f"base_model.model.{names[0]}.lora_B.default")
    ):
        report = sylvinit.initialize_(model, (x, Y), preset="best")
    downs = [layer for layer in report.solved if "lora_A" in layer.name]
    assert len(downs) == len(report.solved) == len(names)
    for name, parameter in model.named_parameters():
        assert "lora_B" not in name or not bool(parameter.any())
    assert torch.equal(model.eval()(x), expected)


@pytest.mark.filterwarnings("ignore:lora with eva")
def test_the_recipe_gives_the_subspaces_of_eva(monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    incremental = pytest.importorskip("peft.utils.incremental_pca").IncrementalPCA
    names = ["q", "v", "out"]
    eva = peft.EvaConfig(rho=1.0)  # the same rank for all
    models = [
        _peft_model(Attention(), names, init_lora_weights="eva", eva_config=eva) for _ in range(2)
    ]
    sylvinit.initialize_(models[0], ROWS, **{"preset": "best", **EVA})
    # EVA's own decomposition is randomized; its whole set is one batch here.
    monkeypatch.setattr(incremental, "_svd_fn_lowrank", incremental._svd_fn_full)
    peft.tuners.lora.eva.initialize_lora_eva_weights(
        models[1],
        [ROWS],
        forward_fn=lambda model, x: model(x),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    ours, theirs = (dict(model.named_parameters()) for model in models)
    downs = [name for name in ours if "lora_A" in name]
    assert len(downs) == len(names)
    for name in downs:
        found, expected = (_projector(x[name].detach()) for x in (ours, theirs))
        # Two float32 computations of the same directions, whose eigenvalues are well apart.
        assert np.linalg.norm(found - expected) <= 1e-4
