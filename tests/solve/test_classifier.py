"""Heads of the code "logistic": what they are, and what becomes of what cannot be fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from classifier_problems import classes_of
from torch import nn

import sylvinit
from sylvinit.solve.gaussian_classes import RIDGES, fit_gaussian
from sylvinit.solve.logistic_steps import refine_logistic


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_float32_heads_of_features_with_a_mean(offset: float) -> None:
    """What all classes have in common is far larger than what tells them apart."""
    x, labels = (torch.from_numpy(a) for a in classes_of(300, 5, 8, 0))
    x = (x + offset).float()  # in float32 from here on: what that rounds is not the question
    heads = []
    for dtype in (torch.float64, torch.float32):
        model = nn.Sequential(nn.Linear(8, 5)).to(dtype)
        sylvinit.initialize_head_(model, (x.to(dtype), labels), head_code="logistic")
        heads.append(torch.cat((model[0].weight, model[0].bias[:, None]), dim=1).detach().double())
    rows = torch.cat((x.double(), torch.ones(len(x), 1, dtype=torch.float64)), dim=1)
    probabilities = [torch.softmax(rows @ head.mT, dim=1) for head in heads]
    difference = float((probabilities[0] - probabilities[1]).abs().max())
    # Over three seeds seen 1.1e-7, 6e-7 and 5.1e-5; 0.04 at 1000 if the mean is not taken off.
    assert difference < 2e-7 * (1 + offset)
    assert float(heads[1].mean(dim=0).abs().max()) < 1e-7 * float(heads[1].abs().max())


Call = tuple[tuple[torch.Tensor, ...], dict[str, Any]]


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the steps behind a head were called with."""
    calls: list[Call] = []

    def spy(*given: torch.Tensor, **more: Any) -> Any:
        calls.append((given, more))
        return refine_logistic(*given, **more)

    monkeypatch.setattr("sylvinit.solve.classifier.refine_logistic", spy)
    return calls


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_steps_have_the_precision_and_the_covariance_of_the_data(
    dtype: torch.dtype, precision: torch.dtype, steps_taken: list[Call]
) -> None:
    x, labels = (torch.from_numpy(a) for a in classes_of(200, 5, 8, 0))
    model = nn.Sequential(nn.Linear(8, 5)).to(dtype)
    sylvinit.initialize_head_(model, (x.to(dtype), labels), head_code="logistic")
    (((rows, *_), more),) = steps_taken
    assert more["precision"] == precision
    values, vectors = more["spectrum"]
    covariance = torch.cov(rows.mT, correction=0)
    # Entries of about 2; seen 10 eps.
    torch.testing.assert_close(
        vectors * values @ vectors.mT, covariance, rtol=0, atol=20 * torch.finfo(precision).eps
    )


def test_of_many_rows_the_coordinates_are_those_of_the_sample(steps_taken: list[Call]) -> None:
    """The covariance of all rows is at hand, and another one than that of the sample."""
    x, labels = (torch.from_numpy(a) for a in classes_of(600, 3, 4, 0))
    model = nn.Sequential(nn.Linear(4, 3)).double()
    code = sylvinit.codes.Logistic(reservoir=60)
    report = sylvinit.initialize_head_(model, (x, labels), head_code=code)
    assert any("random sample of 60" in note for note in report.layers[0].notes)
    (((sample, of_sample, *_), _),) = steps_taken
    start = fit_gaussian(sample, of_sample, 3)
    weight, bias = refine_logistic(sample, of_sample, start.weight, start.bias)
    # Seen 0; with the covariance of all rows 5e-3.
    torch.testing.assert_close(model[0].weight.detach(), weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(model[0].bias.detach(), bias, rtol=0, atol=1e-12)


def test_degenerate_rows() -> None:
    """Single rows, classes that are absent or a point, constant rows."""
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [4.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 2, 2])
    found = fit_gaussian(x, labels, 4)
    weight, bias = refine_logistic(x, labels, found.weight, found.bias)
    for w, b in ((found.weight, found.bias), (weight, bias)):
        assert bool(w.isfinite().all() and b.isfinite().all())
        assert (x @ w.mT + b).argmax(dim=1).tolist() == [0, 0, 2, 2]
    single = fit_gaussian(x[:3], torch.tensor([0, 1, 2]), 3)
    assert single.ridge == RIDGES[-1]
    assert bool(single.weight.isfinite().all())
    constant = torch.ones(6, 3, dtype=torch.float64)
    found = fit_gaussian(constant, torch.arange(6) % 2, 2)
    weight, bias = refine_logistic(constant, torch.arange(6) % 2, found.weight, found.bias)
    assert bool(weight.isfinite().all() and bias.isfinite().all())


def test_head_of_a_network() -> None:
    """The last layer holds what the two functions give for its input; lam has no part in it."""
    x, labels = classes_of(60, 3, 5, 1)
    data = (torch.from_numpy(x), torch.from_numpy(labels))
    model = nn.Sequential(nn.Linear(5, 4)).double()
    report = sylvinit.initialize_head_(model, data, head_code="logistic")
    start = fit_gaussian(*data, 3)
    weight, bias = refine_logistic(*data, start.weight, start.bias)
    # The rows come in another order. Seen 2e-15.
    torch.testing.assert_close(model[0].weight.detach()[:3], weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(model[0].bias.detach()[:3], bias, rtol=0, atol=1e-10)
    layer = report.layers[0]
    assert layer.code == "logistic"
    assert any("leave-one-out" in note for note in layer.notes)
    assert layer.to_dict()["residual"] is None
    assert layer.to_dict()["lam"] is None
    assert any("lam has no part in it" in note for note in layer.notes)
    planned = sylvinit.initialize_head_(model, data, head_code="logistic", dry_run=True)
    assert planned.to_dict()["layers"][0]["lam"] is None
    assert report.settings["lam"] == 10.0
    other = nn.Sequential(nn.Linear(5, 4)).double()
    sylvinit.initialize_head_(other, data, head_code="logistic", lam=0.1)
    torch.testing.assert_close(other[0].weight, model[0].weight, rtol=0, atol=0)


def test_absent_class_in_the_middle() -> None:
    x, labels = classes_of(40, 3, 5, 2)
    labels = np.where(labels == 1, 3, labels)
    model = nn.Sequential(nn.Linear(5, 4)).double()
    data = (torch.from_numpy(x), torch.from_numpy(labels))
    with pytest.warns(sylvinit.SylvinitWarning, match="3 of 4"):
        sylvinit.initialize_head_(model, data, head_code="logistic")
    # Far from the data, too.
    assert not bool((model(100 * torch.randn(1000, 5).double()).argmax(dim=1) == 1).any())
    predicted = model(data[0]).argmax(dim=1)
    assert float((predicted == data[1]).double().mean()) > 0.6


@pytest.mark.parametrize(
    ("distance", "widths", "expected"),
    [(1, (1.0, 1.0), "largest"), (1, (1.0, 0.5), None), (10, (1.0, 0.5), "smallest")],
)
def test_a_ridge_at_the_end_of_the_grid_is_noted(
    distance: int, widths: tuple[float, float], expected: str | None
) -> None:
    """Of round classes, which want a round covariance; of oval ones; and of ones far apart."""
    labels = np.arange(60) % 2
    x = np.random.default_rng(0).normal(size=(60, 2)) + distance * labels[:, None]
    data = (torch.from_numpy(x * widths), torch.from_numpy(labels))
    end = {"smallest": RIDGES[0], "largest": RIDGES[-1]}
    assert (fit_gaussian(*data, 2).ridge in end.values()) == (expected is not None)
    model = nn.Sequential(nn.Linear(2, 2)).double()
    notes = sylvinit.initialize_head_(model, data, head_code="logistic").layers[0].notes
    found = [note for note in notes if "of those tried" in note]
    if expected is None:
        assert not found
    else:
        assert fit_gaussian(*data, 2).ridge == end[expected]
        assert found == [f"the ridge is the {expected} of those tried: the best may lie beyond"]


def test_a_ridge_that_nothing_decides_is_noted() -> None:
    model = nn.Sequential(nn.Linear(2, 3)).double()
    data = (torch.randn(3, 2, dtype=torch.float64), torch.arange(3))
    notes = sylvinit.initialize_head_(model, data, head_code="logistic").layers[0].notes
    assert any("no class has two rows" in note for note in notes)


class Grouped(nn.Module):
    """A head whose outputs are in two groups, each with features of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 4, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x[:, :, None])[:, :, 0]


WHERE = {
    "no bias": "no bias:",
    "frozen bias": "no bias that may be written:",
    "groups": "an equation for each group:",
    "hidden layer": "not the head:",
}


@pytest.mark.parametrize("case", WHERE)
def test_elsewhere_it_is_the_one_hot_code(case: str) -> None:
    x, labels = classes_of(60, 3, 6, 3)
    data = (torch.from_numpy(x), torch.from_numpy(labels))

    def solved(code: str) -> tuple[torch.Tensor, sylvinit.LayerReport]:
        torch.manual_seed(0)
        if case == "hidden layer":
            model = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3)).double()
            report = sylvinit.initialize_(model, data, code=code)
            return model[0].weight.detach(), report.layers[0]
        head = nn.Linear(6, 3, bias=case != "no bias")
        model = nn.Sequential(Grouped() if case == "groups" else head).double()
        if case == "frozen bias":
            head.bias.requires_grad_(False)
        report = sylvinit.initialize_head_(model, data, head_code=code, lam=3.0)
        return next(model.parameters()).detach(), report.layers[0]

    (weight, report), (expected, plain) = solved("logistic"), solved("onehot")
    torch.testing.assert_close(weight, expected, rtol=0, atol=0)
    assert report.code == "logistic"
    assert report.lam == plain.lam == (10.0 if case == "hidden layer" else 3.0)
    note = f"{WHERE[case]} the one-hot equation is solved instead"
    assert note in report.notes
    assert not any("one-hot" in other for other in plain.notes)


@pytest.mark.parametrize("bias", [True, False])
def test_what_becomes_of_outputs_without_a_class(bias: bool) -> None:
    x, labels = classes_of(40, 3, 5, 2)
    model = nn.Sequential(nn.Linear(5, 4, bias=bias)).double()
    rest = "never win" if bias else "are zero"
    data = (torch.from_numpy(x), torch.from_numpy(labels))
    with pytest.warns(sylvinit.SylvinitWarning, match=f"3 of 4; .* {rest}"):
        sylvinit.initialize_head_(model, data, head_code="logistic")
    assert bool(model[0].weight[3].any()) == bias


def test_leave_one_out_is_fooled_by_views_of_one_sample() -> None:
    # As docs/mathematics.md says: the other view gives the left-out row away.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 10
    centers = 0.6 * torch.randn(10, 64, generator=generator, dtype=torch.float64)
    x = centers[labels] + torch.randn(100, 64, generator=generator, dtype=torch.float64)
    views = [x + 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2)]
    alone = fit_gaussian(views[0], labels, 10).ridge
    both = fit_gaussian(torch.cat(views), labels.repeat(2), 10).ridge
    mean = fit_gaussian((views[0] + views[1]) / 2, labels, 10).ridge
    assert both < alone / 2
    assert mean > both


def test_of_fewer_rows_than_features_the_start_counts_by_rows() -> None:
    """The classifier is that of the rows' coordinates in an orthonormal basis of their span."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(30) % 3
    x = torch.randn(30, 50, generator=generator, dtype=torch.float64)
    x[torch.arange(30), labels] += 2
    basis = torch.linalg.qr(x.mT)[0]
    rows = x @ basis
    start = fit_gaussian(rows, labels, 3)
    model = nn.Sequential(nn.Linear(50, 3, dtype=torch.float64))
    sylvinit.initialize_head_(model, (x, labels), head_code="logistic")
    scores = model(x).detach()

    def gap(tau: float) -> float:
        weight, bias = refine_logistic(rows, labels, start.weight, start.bias, strength=tau / 30)
        expected = rows @ weight.mT + bias
        return float((scores - expected).abs().max() / expected.abs().max())

    assert gap(15.0) < 1e-12  # seen 2e-15
    assert gap(25.0) > 1e-3  # half of the features; seen 0.03
