"""Which layers are drawn: selections with per-layer matrices, subclasses; matrices that cancel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sylvinit import (
    correlated_init_,
    correlated_normal_,
    filter_correlation,
    initialize_,
    input_correlation,
    priors,
)
from sylvinit.errors import CorrelationError, ModelError, OptionError, SylvinitWarning


class Conv2dSame(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 3))


@pytest.mark.parametrize("how", ["frozen", "excluded", "tied"])
def test_matrices_of_all_layers_go_with_a_selection_of_them(how: str) -> None:
    model = net()
    options: dict[str, Any] = {}
    corr = filter_correlation(model, per_layer=True)
    assert list(corr) == ["0", "2", "3"]
    if how == "frozen":
        model[2].weight.requires_grad_(False)
    elif how == "excluded":
        options["exclude"] = "2"
    else:
        model.append(nn.Conv2d(6, 4, 3))
        model[4].weight = model[3].weight
        corr["4"] = corr["3"]
    report = correlated_init_(model, corr, **options)
    left = "4" if how == "tied" else "2"
    assert report[left].status == "skipped"
    assert [layer.name for layer in report.layers if layer.code == "correlated"] == [
        name for name in corr if name != left
    ]


def test_a_list_goes_by_the_depth_among_all_convolutions() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4)))
    model[0].weight.requires_grad_(False)
    means = [0.1, 0.2, 0.3, 0.4]
    matrices = [torch.full((9, 9), mean).double().fill_diagonal_(1) for mean in means]
    report = correlated_init_(model, matrices)
    notes = [report[str(index)].notes for index in (1, 2, 3)]
    assert notes == [[f"mean correlation of its taps {mean:.3f}"] for mean in means[1:]]


class Factorized(nn.Conv2d):
    """A convolution without a weight of its own, or with one of another shape."""

    def __init__(self, gone: bool) -> None:
        super().__init__(4, 4, 3)
        if gone:
            del self.weight
        else:
            self.weight = nn.Parameter(torch.zeros(2, 4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("gone", [False, True])
def test_subclasses_with_other_weights_are_left_alone(gone: bool) -> None:
    model = nn.Sequential(Factorized(gone), nn.Conv2d(4, 4, 3))
    report = correlated_init_(model)
    assert [layer.name for layer in report.layers] == ["1"]
    assert gone or not bool(model[0].weight.any())
    assert filter_correlation(model).layers[-1] == "1"


def test_a_matrix_for_a_layer_without_spatial_filters() -> None:
    model = net().append(nn.Linear(4, 2))
    with pytest.raises(OptionError, match="the pattern '4' matches no layer; names are 0, 2, 3"):
        correlated_init_(model, {"4": priors.load("resnet10-cifar10")})


def test_subclasses_are_drawn_like_their_base() -> None:
    model = nn.Sequential(Conv2dSame(3, 8, 3), nn.Conv2d(8, 8, 3))
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    report = correlated_init_(model, generator=torch.Generator().manual_seed(1))
    correlated_init_(plain, generator=torch.Generator().manual_seed(1))
    assert [(layer.kind, layer.code) for layer in report.layers] == [
        ("Conv2dSame", "correlated"),
        ("Conv2d", "correlated"),
    ]
    assert torch.equal(model[0].weight, plain[0].weight)
    assert torch.equal(model[1].weight, plain[1].weight)


def test_inputs_of_subclasses_are_not_guessed() -> None:
    model = nn.Sequential(Conv2dSame(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert list(input_correlation(model, torch.randn(4, 3, 8, 8))) == ["1"]


def test_lazy_models_are_refused_as_they_are() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ModelError, match="0 is lazy"):
        input_correlation(model, torch.randn(4, 3, 8, 8))
    assert isinstance(model[0], nn.LazyConv2d)


def oscillation(samples: int = 64) -> Tensor:
    """Rows of period two with a random sign and a little noise: neighbors are opposite."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randn(samples, 1, 1, generator=generator).sign()
    wave = torch.tensor([1.0, -1.0]).repeat(16)
    return sign * wave + 0.1 * torch.randn(samples, 1, 32, generator=generator)


def test_taps_that_nearly_cancel() -> None:
    """Four taps in antiphase: sum of R = 4 + 2 r (-3 + 2 - 1), almost 0 as r goes to 1."""
    model = nn.Sequential(nn.Conv1d(1, 200, 4))
    corr = input_correlation(model, oscillation())
    total = float(corr["0"].sum())
    assert 0 < total < 0.1
    with pytest.warns(SylvinitWarning, match="nearly cancel") as caught:
        report = correlated_init_(model, corr, generator=torch.Generator().manual_seed(0))
    assert f"{4 / total:.3g} times Kaiming's variance" in str(caught[0].message)
    assert len(report.warnings) == 1
    assert report["0"].notes == report.warnings
    # 800 normal weights: the relative error of a variance is sqrt(2 / n), n at least the 200
    # independent ones, 0.1; four of those.
    assert float(model[0].weight.var()) == pytest.approx(2 / total, rel=0.4)
    with pytest.warns(SylvinitWarning, match="nearly cancel"):
        correlated_normal_(model[0].weight, corr["0"])


def test_taps_that_cancel_as_a_code() -> None:
    """Rows of the code have unit length, so that the sum of R does not matter."""
    wave = torch.tensor([1.0, -1.0]).repeat(16)
    data = torch.randn(64, 1, 1, generator=torch.Generator().manual_seed(0)) * wave
    model = nn.Sequential(nn.Conv1d(1, 3, 4), nn.Flatten(), nn.Linear(87, 2))
    corr = input_correlation(model, data)
    with pytest.raises(CorrelationError, match=r"\(eq\. 17\)"):
        correlated_init_(model, corr)
    with pytest.warns(SylvinitWarning, match="rank < d_out"):
        report = initialize_(model, data, code="correlated", head_code="pca")
    assert report["0"].status == "solved"


@pytest.mark.parametrize("key", ["net", "params_ema", "model_state_dict", "state_dict"])
def test_state_dicts_within_checkpoints(key: str) -> None:
    model = net()
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    checkpoint = {"epoch": 3, "optimizer": {"lr": 0.1}, key: {**wrapped, "mask": mask}}
    checkpoint["mean"] = torch.zeros(1, 3, 1, 1)
    found = filter_correlation(checkpoint)
    assert found.layers == ("0", "2", "3")
    assert torch.equal(found, filter_correlation(model))


def test_checkpoints_of_several_networks() -> None:
    state = net().state_dict()
    with pytest.raises(ModelError, match="several networks: netG, netD; pass one"):
        filter_correlation({"netG": state, "netD": state})
