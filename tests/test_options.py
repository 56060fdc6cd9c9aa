"""Options of the drivers, the progress bar and the log."""

from __future__ import annotations

import inspect
import io
import logging
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from driver_helpers import (
    CLASSES,
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
from sylvinit.codes import PCA
from sylvinit.errors import OptionError, OptionTypeError
from sylvinit.options import Options

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


# --------------------------------------------------------------------------------------- signatures


def test_every_keyword_is_an_option_and_the_other_way_round() -> None:
    keywords = [
        name
        for name, item in inspect.signature(sylvinit.initialize_).parameters.items()
        if item.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    ours = ["head_only", "gated", "kept", "keeps_head", "patches_given"]
    assert [item.name for item in fields(Options)] == [*keywords, *ours]
    report = sylvinit.initialize_(
        mlp(), ROWS, preset="best", dry_run=True, lam=torch.tensor(2.0), head_code="pca"
    )
    assert list(report.settings) == keywords
    assert report.settings["lam"] == 2.0


@pytest.mark.parametrize("lam", [np.float32(2.0), np.int64(2), torch.tensor([2])])
def test_numbers_of_other_libraries(lam: Any) -> None:
    assert (
        sylvinit.initialize_(mlp(), (ROWS, Y), preset="best", dry_run=True, lam=lam)["0"].lam == 2.0
    )


@pytest.mark.parametrize("gain", ["half", float("nan"), float("inf"), 1e300, 10**400])
def test_gains_out_of_their_domain(gain: object) -> None:
    with pytest.raises(OptionError, match=r"branch_gain must be .*, or 'depth', 'none' or None"):
        sylvinit.initialize_(nn.Linear(2, 2), torch.randn(4, 2), preset="best", branch_gain=gain)


@pytest.mark.parametrize("gain", [[1.0], True])
def test_gains_of_the_wrong_type(gain: object) -> None:
    with pytest.raises(OptionTypeError, match="branch_gain must be a number, or 'depth'"):
        sylvinit.initialize_(nn.Linear(2, 2), torch.randn(4, 2), preset="best", branch_gain=gain)


# -------------------------------------------------------------------------------------------- names


def test_include_and_exclude() -> None:
    model = small_net()
    norm = [f"bn1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    with unchanged(model, written=("conv1.weight", "conv1.bias", *norm)):
        report = sylvinit.initialize_(model, (X, Y), include=["conv*", "bn*"], exclude="*2")
    assert report["fc"].reason == "not selected by include and exclude"
    assert report["bn2"].reason == "not selected by include and exclude"
    with unchanged(model, written=("fc.weight", "fc.bias")):
        sylvinit.initialize_(model, (X, Y), include="fc", lam=3.0)


def test_patterns_reach_the_parts_of_an_attention() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(x, x, x)[0].mean(dim=1))

    model = Attention()
    old = model.mix.in_proj_weight.detach().clone()
    report = sylvinit.initialize_(
        model, ROWS.reshape(30, 3, 4), include="mix.[kv]_proj", lam={"mix.k_proj": 2.0}
    )
    assert [(layer.name, layer.lam) for layer in report.solved] == [
        ("mix.k_proj", 2.0),
        ("mix.v_proj", 10.0),
    ]
    changed = [bits(a) != bits(b) for a, b in zip(old, model.mix.in_proj_weight, strict=True)]
    assert changed == [False] * 4 + [True] * 8


def test_code_and_lam_by_name() -> None:
    """The first pattern that matches decides; layers without one use PCA and 10."""
    model = mlp()
    code = {"2": "lda", "*": PCA(center=False)}
    report = sylvinit.initialize_(model, (ROWS, Y), code=code, lam={"[02]": 1.5})
    assert [layer.code for layer in report.layers] == ["pca-uncentred", "lda", "onehot"]
    assert [layer.lam for layer in report.layers] == [1.5, 1.5, 10.0]
    assert report["2"].filled == 6 - (CLASSES - 1)
    single = initialized(mlp(), (ROWS, Y), code=PCA(center=False), lam=1.5)
    assert bits(single["0.weight"]) == bits(model[0].weight)
    plain = sylvinit.initialize_(mlp(), (ROWS, Y), code={"0": "ica"})
    assert [layer.code for layer in plain.layers] == ["ica", "pca", "onehot"]


def test_the_head() -> None:
    model = mlp()
    report = sylvinit.initialize_(model, (ROWS, Y), preset="best", head="2")
    assert report.head == "2"
    assert [layer.code for layer in report.layers] == ["pca", "onehot", "pca"]
    report = sylvinit.initialize_head_(model, (ROWS, Y))
    assert report.head == "4"
    assert [layer.name for layer in report.solved] == ["4"]
    assert report["0"].reason == "not the head"
    report = sylvinit.initialize_head_(model, ROWS, head_code="pca")
    assert report["4"].code == "pca"


# ------------------------------------------------------------------------------- storage, siblings


@pytest.mark.parametrize("options", [{}, {"patches": "all"}, {"rescale": "variance"}], ids=str)
def test_recompute_gives_the_same(options: dict[str, Any]) -> None:
    model = small_net()
    memory, recompute = small_net(), small_net()
    first = sylvinit.initialize_(memory, (X, Y), microbatch=8, **{"preset": "best", **options})
    second = sylvinit.initialize_(
        recompute, (X, Y), microbatch=8, storage="recompute", **{"preset": "best", **options}
    )
    assert_identical(weights_of(memory), weights_of(recompute))
    for name, buffer in memory.named_buffers():
        assert bits(buffer) == bits(recompute.get_buffer(name))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert bits(model.conv1.weight) != bits(memory.conv1.weight)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 4), nn.Linear(12, 4)
        self.c = nn.Linear(12, 4)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        other = x.flip(1)  # not the same input
        return self.head(torch.cat((self.a(x), self.b(x), self.c(other)), dim=1))


def test_siblings_take_successive_components() -> None:
    model, x = Branches().double(), ROWS.double()
    code = PCA(center=False)  # the weight is then the encoder itself
    report = sylvinit.initialize_(model, (x, Y), code=code, preset="paper")
    vectors = torch.linalg.eigh(x.T @ x).eigenvectors
    top = vectors.flip(1).T[:8]
    written = torch.cat((model.a.weight, model.b.weight)).detach()
    overlap = (written @ top.T).abs()
    # Eigenvectors of 30 x 12 well-conditioned numbers, by two routines: eps / gap = 1e-13.
    assert torch.allclose(overlap, torch.eye(8, dtype=torch.float64), atol=1e-10)
    assert "takes components from 5 on" in " ".join(report["b"].notes)
    assert not any("takes components" in note for note in report["a"].notes + report["c"].notes)
    flipped = (model.c.weight.detach() @ top[:4].flip(1).T).abs()
    assert torch.allclose(flipped, torch.eye(4, dtype=torch.float64), atol=1e-10)


def test_siblings_may_be_the_same() -> None:
    model = Branches().double()
    report = sylvinit.initialize_(model, (ROWS.double(), Y), preset="best", siblings="same")
    assert torch.equal(model.a.weight, model.b.weight)
    assert torch.equal(model.a.bias, model.b.bias)
    assert not any("takes components" in note for note in report["b"].notes)


# ------------------------------------------------------------------------------------------ rescale


@pytest.mark.parametrize("code", ["pca", "kmeans"])  # the latter is not centered
@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_rescale_gives_unit_variance_around_zero(net: str, code: str) -> None:
    if net == "mlp":
        model, x = mlp().double(), ROWS.double()
        hidden = [model[0], model[2]]
    else:
        hidden = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, groups=2, bias=False)]
        model = nn.Sequential(hidden[0], nn.ReLU(), hidden[1], nn.ReLU(), nn.Flatten())
        model, x = model.append(nn.Linear(96, CLASSES)).double(), X.double()
    outputs: dict[nn.Module, Tensor] = {}
    report = sylvinit.initialize_(model, (x, Y), code=code, rescale="variance", patches="all")
    for layer in hidden:
        layer.register_forward_hook(lambda module, args, out: outputs.update({module: out}))
    model(x)
    for layer in hidden:
        out = outputs[layer].detach().movedim(1, 0).flatten(1)
        # Over the same rows that the moments have seen, computed directly: rounding only.
        ones = torch.ones(len(out), dtype=torch.float64)
        assert torch.allclose(out.std(dim=1, correction=0), ones, atol=1e-9)
        assert layer.bias is None or out.mean(dim=1).abs().max() < 1e-9
    assert [layer.std_after for layer in report.layers[:-1]] == pytest.approx([1, 1], abs=1e-12)
    plain = initialized(model, (x, Y), code=code, rescale="none", patches="all")
    first = next(iter(plain))
    assert not torch.allclose(plain[first], hidden[0].weight)


def test_the_last_layer_is_not_scaled() -> None:
    """Its code says what its outputs are to be, whether they are classes or not."""
    code = PCA(center=False)
    models = [mlp().double() for _ in range(2)]
    for model, rescale in zip(models, ("variance", "none"), strict=True):
        data = (ROWS.double(), Y)
        # Hidden layers alike, so that the last ones see the same.
        sylvinit.initialize_(model, data, include=["0", "2"])
        sylvinit.initialize_(model, data, include="4", head_code=code, rescale=rescale)
    assert torch.equal(models[0][4].weight, models[1][4].weight)
    assert torch.equal(models[0][4].bias, models[1][4].bias)


# ------------------------------------------------------------------------------- report and outputs


def test_no_progress_bar_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    sylvinit.initialize_(small_net(), (X, Y), preset="best")
    sylvinit.initialize_(small_net(), (X, Y), preset="best", progress=False)
    sylvinit.initialize_head_(small_net(), (X, Y))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("progress", "shown"), [(None, True), (True, True), (False, False)])
def test_the_progress_bar(
    progress: bool | None, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    sylvinit.initialize_(small_net(), (X, Y), preset="best", progress=progress)
    assert ("5/5" in terminal.getvalue()) == shown


def test_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="sylvinit"):
        sylvinit.initialize_(small_net(), (X, Y), preset="best")
    assert "initialized 3 layers" in caplog.text
    assert "conv1: solved" in caplog.text
