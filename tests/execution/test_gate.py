"""Preset "auto": the candidates, the choice, and what is written."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from driver_helpers import assert_identical, initialized, unchanged, weights_of
from gate_helpers import Fixed, Normalized, auto, chosen, noisy_classes
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import NonFiniteError
from sylvinit.execution import units
from sylvinit.moments.row_sample import SampledRows
from sylvinit.solve.held_out import HeldOut


def test_its_own_start_is_kept_where_it_does_better() -> None:
    data, model = noisy_classes(loud="noise"), Fixed(reads_signal=True)
    body = copy.deepcopy(model.body.state_dict())
    report = auto(model, data)
    assert chosen(report) == "own"
    own, best = report.candidates
    assert own.name == "own"
    assert best.name == "best"
    assert own.accuracy > 0.95 > 0.5 > best.accuracy
    assert own.error < best.error
    assert_identical(dict(model.body.state_dict()), dict(body))
    assert report["body"].status == "skipped"
    assert "own start" in report["body"].reason
    assert report["head"].status == "solved"
    assert report.head == "head"
    predicted = model(data[0]).argmax(dim=1)
    assert float((predicted == data[1]).double().mean()) > 0.95
    assert "start: own, by the held-out error of a head (own 0.0" in str(report)


def test_best_is_written_where_it_does_better() -> None:
    data, model = noisy_classes(loud="signal"), Fixed(reads_signal=False)
    expected = initialized(copy.deepcopy(model), data, preset="best")
    report = auto(model, data)
    assert chosen(report) == "best"
    own, best = report.candidates
    assert best.error < own.error
    assert best.standard_error > 0
    assert math.isnan(own.standard_error)
    assert report.settings["preset"] == "auto"
    assert_identical(weights_of(model), expected)


def scripted(monkeypatch: pytest.MonkeyPatch, **found: tuple[float, float]) -> None:
    """Let "own" and "best" have such an error and spread.

    Errors of samples are a half of the mean above and below it in turns for "own", the other way
    round for "best": of 100 samples, one standard error of the difference is a tenth of their mean.
    """
    left = list(found)
    sign = torch.where(torch.arange(100) % 2 == 0, 0.5, -0.5)

    def score(rows: SampledRows) -> HeldOut:
        name = left.pop(0)
        error, spread = found[name]
        errors = error * (1 + (-1 if name == "best" else 1) * sign).double()
        return HeldOut(rows.samples.unique(), errors, 0.5, spread)

    monkeypatch.setattr(units, "held_out", score)


@pytest.mark.parametrize(
    ("own", "best", "expected"),
    [
        ((0.5, 3.0), (0.5, 3.0), "best"),
        ((0.5, 3.0), (0.55, 3.0), "best"),  # 0.9 standard errors behind
        ((0.5, 3.0), (0.6, 3.0), "own"),  # 1.8
        ((0.5, 3.0), (0.51, 7.0), "best"),
        ((0.5, 3.0), (0.46, 8.0), "own"),  # 0.8 ahead, over more than 2.5 times as many directions
        ((0.5, 3.0), (0.4, 8.0), "best"),  # 2.2
    ],
)
def test_the_rule(
    own: tuple[float, float],
    best: tuple[float, float],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, model = noisy_classes(loud="noise", n=100), Fixed(reads_signal=True)
    scripted(monkeypatch, own=own, best=best)
    report = auto(model, data)
    assert chosen(report) == expected
    # The standard deviation of n - 1 in the difference, sign by sign.
    error = (own[0] + best[0]) / 2 / math.sqrt(99)
    assert report.candidates[1].standard_error == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize(
    ("own", "best", "window", "norm", "expected"),
    [
        ((0.6, 3.0), (0.7, 7.0), 3, None, "own"),  # 1.5 standard errors behind
        ((0.6, 3.0), (0.7, 8.0), 3, None, "best"),  # over more than 2.5 times as many directions
        ((0.6, 3.0), (0.9, 60.0), 3, None, "best"),
        ((0.45, 3.0), (0.7, 8.0), 3, None, "own"),  # as a network that was trained
        ((0.6, 3.0), (0.7, 8.0), 3, nn.BatchNorm2d(6), "own"),
        ((0.6, 3.0), (0.7, 8.0), 3, nn.BatchNorm2d(6, track_running_stats=False), "own"),
        ((0.6, 3.0), (0.7, 8.0), 1, None, "own"),
    ],
)
@pytest.mark.parametrize("calibrate", [True, False])
def test_directions_of_networks_that_read_windows(
    own: tuple[float, float],
    best: tuple[float, float],
    window: int,
    norm: nn.Module | None,
    expected: str,
    calibrate: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, window)
    model = nn.Sequential(first, norm or nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    x, y = torch.randn(100, 3, 4, 4), torch.arange(100) % 4
    model.eval()(x)
    tracked = isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats and calibrate
    found = {"own": own, **({"calibrated": (0.9, 3.0)} if tracked else {}), "best": best}
    scripted(monkeypatch, **found)
    report = auto(model, (x, y), calibrate_norm=calibrate)
    assert chosen(report) == expected
    assert ("read in windows" in str(report)) == (expected == "best")


@pytest.mark.parametrize("winner", ["own", "own, calibrated", "best"])
def test_everything_is_as_the_chosen_candidate_has_it(
    winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, data = Normalized(), noisy_classes(loud="signal")
    names = ["own", "own, calibrated", "best"]
    errors = iter([0.1 if name == winner else 0.9 for name in names])

    def score(rows: SampledRows) -> HeldOut:
        owners = rows.samples.unique()
        return HeldOut(owners, torch.full((len(owners),), next(errors)).double(), 0.5, 3.0)

    monkeypatch.setattr(units, "held_out", score)
    found = copy.deepcopy(model)
    report = auto(found, data)
    assert [candidate.name for candidate in report.candidates] == names
    assert chosen(report) == winner
    expected = copy.deepcopy(model)
    if winner == "own":
        sylvinit.initialize_head_(expected, data)
    else:
        include = ["norm", "head"] if winner == "own, calibrated" else None
        sylvinit.initialize_(expected, data, preset="best", include=include)
    assert_identical(dict(found.state_dict()), dict(expected.state_dict()))


def test_norms_that_are_not_to_be_calibrated_are_not() -> None:
    torch.manual_seed(0)
    model = Normalized()
    report = auto(model, noisy_classes(loud="signal"), calibrate_norm=False)
    assert [candidate.name for candidate in report.candidates] == ["own", "best"]
    assert not bool(model.norm.running_mean.any())


@pytest.mark.parametrize(
    "options",
    [{"code": "pca"}, {"include": "*"}, {"exclude": "nothing*"}, {"rescale": "none"}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_asked_for_is_not_questioned(options: dict[str, Any]) -> None:
    data, model = noisy_classes(loud="noise"), Fixed(reads_signal=True)
    if "exclude" in options:
        options = {"exclude": "head"}
    expected = initialized(copy.deepcopy(model), data, preset="best", **options)
    report = auto(model, data, **options)
    assert report.candidates == []
    assert_identical(weights_of(model), expected)


def test_the_choice_is_the_same_twice_and_for_any_microbatch() -> None:
    torch.manual_seed(0)
    model, data = Normalized().double(), noisy_classes(loud="signal")
    data = (data[0].double(), data[1])
    runs = []
    for microbatch in (200, 64, 64):
        same = copy.deepcopy(model)
        report = auto(same, data, microbatch=microbatch)
        runs.append((same.state_dict(), [vars(x) for x in report.candidates]))
    assert runs[1][1] == runs[2][1]
    assert_identical(dict(runs[1][0]), dict(runs[2][0]))
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        assert one["chosen"] == other["chosen"]
        assert one["error"] == pytest.approx(other["error"], rel=1e-9)


def test_data_that_can_be_read_once() -> None:
    data, model = noisy_classes(loud="signal"), Fixed(reads_signal=False)
    once = zip(data[0].split(50), data[1].split(50), strict=True)
    assert chosen(auto(model, iter(once))) == "best"


def test_a_dry_run_lists_the_candidates_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Normalized()
    with unchanged(model):
        report = auto(model, noisy_classes(loud="signal"), dry_run=True)
    assert [x.name for x in report.candidates] == ["own", "own, calibrated", "best"]
    assert not any(x.chosen for x in report.candidates)
    assert "would be chosen of: own; own, calibrated; best" in str(report)
    assert {layer.status for layer in report.layers} == {"planned"}


def test_a_dry_run_has_the_gains_of_branches() -> None:
    class Residual(Normalized):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(12, 12)
            self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.norm(self.body(x)) + x).relu())

    report = auto(Residual(), noisy_classes(loud="signal"), dry_run=True, branch_gain=0.5)
    assert report["norm"].notes == ["ends a residual branch: scale 0.5"]


class Overflows(nn.Module):
    """Its own start is too large for any activation to be finite."""

    def __init__(self, scale: float, squares: int = 0) -> None:
        super().__init__()
        self.body = nn.Linear(12, 8)
        self.head = nn.Linear(8, 4)
        self.squares = squares
        with torch.no_grad():
            self.body.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        for _ in range(self.squares):
            y = y * y
        return self.head(y)


def test_a_candidate_that_is_not_finite_is_out() -> None:
    torch.manual_seed(0)
    model = Overflows(1e30, squares=1)
    report = auto(model, noisy_classes(loud="signal"))
    assert chosen(report) == "best"
    own = report.candidates[0]
    assert math.isnan(own.error)
    assert "head" in own.reason
    assert report.to_dict()["candidates"][0]["error"] is None


def test_where_all_fail_the_model_is_as_it_was() -> None:
    torch.manual_seed(0)
    model, data = Overflows(1.0, squares=9), noisy_classes(loud="noise")
    with unchanged(model), pytest.raises(NonFiniteError, match="head"):
        auto(model, (data[0] * 100, data[1]))


class Diverges(nn.Module):
    """A network whose own start is not finite in the input of its normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.body.weight.mul_(1e30)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(self.norm(y * y))


def test_a_candidate_that_failed_leaves_nothing_to_the_next() -> None:
    torch.manual_seed(0)
    model, data = Diverges(), noisy_classes(loud="signal")
    expected = copy.deepcopy(model)
    auto(expected, data, preset="best")
    assert chosen(auto(model, data)) == "best"
    assert_identical(dict(model.state_dict()), dict(expected.state_dict()))


class Residual(nn.Module):
    """A residual branch that ends in batch norm, and noise in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 12)
        self.branch = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.branch(x) + 0.1 * torch.randn_like(x)
        return self.head(x)


@pytest.mark.parametrize("storage", ["memory", "recompute"])
def test_best_is_what_the_preset_alone_writes(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a gain of branches, and random numbers that every candidate finds the same."""
    torch.manual_seed(0)
    model, data = Residual(), noisy_classes(loud="signal", n=100)
    scripted(monkeypatch, own=(0.5, 3.0), calibrated=(0.5, 3.0), best=(0.4, 3.0))
    options = {"branch_gain": 0.25, "storage": storage, "microbatch": 50}
    found, expected = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    assert chosen(auto(found, data, **options)) == "best"
    torch.manual_seed(1)
    auto(expected, data, preset="best", **options)
    assert_identical(dict(found.state_dict()), dict(expected.state_dict()))
    assert found.branch[1].weight.unique().tolist() == [0.25]


def test_samples_that_one_candidate_alone_has_rows_of() -> None:
    """A row_to_sample= that looks at the values may drop other rows each time."""
    data, model = noisy_classes(loud="signal"), Fixed(reads_signal=False)

    def positive(name: str, x: Tensor, samples: int) -> Tensor:
        keep = x[:, 0] > x[:, 0].median() if name == "head" else torch.ones(samples).bool()
        return torch.where(keep, torch.arange(samples), -1)

    report = auto(model, data, row_to_sample=positive)
    assert math.isfinite(report.candidates[-1].standard_error)
