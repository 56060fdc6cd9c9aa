"""A layer's solution: closed forms, fewer rows than features, dead groups, how rows are filled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from equation_checks import DEFECT, Affine
from helpers import (
    assert_near,
    chosen_rows,
    discriminants,
    equation,
    layer_patches,
    minimum_norm_solution,
    one_hot,
    principal_axes,
    relative_defect,
    scores,
    unexplained,
    weight_matrix,
)
from torch import nn

import sylvinit
from sylvinit.codes import ICA, PCA, Code, KMeans, Latent, get_code
from sylvinit.moments.statistics import LayerStatistics

# Of the largest entry (or of 1), in float64: two routes to the same weight. The worst seen is 8e-12
# for a singular system in its Kronecker form, whose condition number is 1e5, and 5e-13 otherwise.
CLOSE = 1e-10


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.laplace(size=(n, d)) @ generator.normal(size=(d, d)) + np.arange(d) / 2


def name(code: Any) -> str:
    return getattr(code, "name", str(code))


def solved(
    x: np.ndarray, outputs: int, code: Any, y: np.ndarray | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray, sylvinit.LayerReport]:
    """Weight and bias of one hidden Linear layer, and its report."""
    model = nn.Sequential(nn.Linear(x.shape[1], outputs), nn.Linear(outputs, 9)).double()
    inputs = torch.from_numpy(x)
    data = inputs if y is None else (inputs, torch.from_numpy(y))
    report = sylvinit.initialize_(
        model, data, preset="paper", code={"0": code}, head_code="pca", progress=False, **options
    )
    return model[0].weight.detach().numpy(), model[0].bias.detach().numpy(), report["0"]


@dataclass(frozen=True)
class Recorded:
    """Another code whose encoder is written down, by default in the coordinates of the input."""

    code: Code
    encoders: list[np.ndarray] = field(default_factory=list)
    reducible: bool = False

    @property
    def name(self) -> str:
        return "recorded"

    @property
    def needs_labels(self) -> bool:
        return self.code.needs_labels

    @property
    def reservoir(self) -> int:
        return self.code.reservoir

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        latent = self.code.fit(stats, k, seed)
        assert latent.encoder is not None
        self.encoders.append(latent.encoder.numpy())
        return latent


# ------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("n", [60, 5])
@pytest.mark.parametrize("lam", [0.01, 10.0, 1e4])
def test_uncentred_pca_returns_the_projection(lam: float, n: int) -> None:
    x = rows(n, 8)
    w, b, _ = solved(x, 4, PCA(center=False), lam=lam)
    assert_near(w, principal_axes(x.T, 4, center=False), CLOSE)
    assert_near(b, np.zeros(4), CLOSE)


@pytest.mark.parametrize("n", [60, 6])
@pytest.mark.parametrize("lam", [0.01, 10.0, 1e4])
def test_centered_pca_has_its_closed_form(lam: float, n: int) -> None:
    x = rows(n, 8)
    mean, covariance = x.mean(axis=0), np.cov(x.T, bias=True)
    p = principal_axes(x.T, 4)
    expected = np.empty_like(p)
    for i, row in enumerate(p):
        k = (row @ covariance @ row) * np.eye(8) + lam * covariance
        pull = np.linalg.solve(k, mean)
        expected[i] = row - lam * (row @ mean) / (1 + lam * mean @ pull) * pull
    w, b, report = solved(x, 4, "pca", lam=lam)
    assert_near(w, expected, CLOSE)
    assert_near(b, -w @ mean, CLOSE)  # the scores have mean zero
    assert report.code == "pca"


def test_pca_of_centered_rows_is_the_projection_of_either_kind() -> None:
    x = rows(50, 6)
    x -= x.mean(axis=0)
    w, b, _ = solved(x, 3, "pca")
    assert_near(w, principal_axes(x.T, 3), CLOSE)
    assert_near(b, np.zeros(3), CLOSE)


# ----------------------------------------------------------------------- fewer rows than features


@pytest.mark.parametrize("code", ["pca", "lda"])
@pytest.mark.parametrize("repeat", [1, 2])
def test_dual_gives_the_minimum_norm_solution_of_the_full_system(code: str, repeat: int) -> None:
    x = np.tile(rows(10, 24), (repeat, 1))  # repeated rows: the span is smaller than their number
    y = np.tile(np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1]), repeat)
    recorded = Recorded(get_code(code), reducible=True)
    w, b, _ = solved(x, 4, recorded, y)
    assert recorded.encoders[0].shape[2] == 10 * repeat  # in the span of the rows, not in 24
    s = scores(code, x.T, y, 4)
    a, lam_b, q = equation(s, x.T, 10.0)
    assert relative_defect(a, lam_b, q, w) < DEFECT
    assert_near(w, minimum_norm_solution(a, lam_b, q), CLOSE)
    assert_near(b, s.mean(axis=1) - w @ x.mean(axis=0), CLOSE)
    # No part of a row lies outside the span of the data.
    assert_near(w @ np.linalg.pinv(x) @ x, w, CLOSE)


def test_full_and_dual_routes_agree() -> None:
    x = rows(9, 20)
    codes = [Recorded(PCA(), reducible=True), Recorded(PCA())]
    dual, full = (solved(x, 4, code)[0] for code in codes)
    assert [code.encoders[0].shape[2] for code in codes] == [9, 20]
    assert_near(full, dual, CLOSE)


def test_singular_system_takes_its_minimum_norm_solution() -> None:
    generator = np.random.default_rng(4)
    x = rows(40, 3) @ generator.normal(size=(3, 7))  # rank 3: B and A of rank 3 are both singular
    w, _, report = solved(x, 5, Affine())
    encoder, center = Affine.draw(1, 5, 7)
    s = encoder[0] @ (x.T - center[0][:, None])
    a, b, q = equation(s, x.T, 10.0)
    assert relative_defect(a, b, q, w) < DEFECT
    assert_near(w, minimum_norm_solution(a, b, q), CLOSE)
    # A has rank 4 (the offset of the code adds one) of 5, B rank 3 of 7.
    assert any(note.startswith("4 near-singular pairs") for note in report.notes)


# --------------------------------------------------------------------------- k-means and ICA


@pytest.mark.parametrize("option", ["all", 5])
@pytest.mark.parametrize("code", [ICA(), KMeans(), KMeans(reservoir=20)], ids=name)
def test_equation_of_codes_from_a_reservoir(code: Code, option: int | str) -> None:
    torch.manual_seed(0)
    recorded = Recorded(code)
    conv = nn.Conv2d(4, 6, 2, groups=2).double()
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(6 * 16, 3).double())
    x = torch.from_numpy(rows(20, 100)).reshape(20, 4, 5, 5)
    data = [(x[:7], torch.arange(7) % 3), (x[7:], torch.arange(13) % 3)]
    sylvinit.initialize_(model, data, preset="paper", code=recorded, patches=option, progress=False)
    columns, _ = chosen_rows(layer_patches(conv, x), "0", option)
    for group, part in enumerate(columns):
        mean = part.mean(axis=1, keepdims=True)
        s = recorded.encoders[0][group] @ (part - (0 if isinstance(code, KMeans) else mean))
        w = weight_matrix(conv)[group]
        assert relative_defect(*equation(s, part, 10.0), w) < DEFECT
        bias = conv.bias.detach().numpy().reshape(2, 3)[group]
        assert_near(bias, s.mean(axis=1) - w @ part.mean(axis=1), CLOSE)


# ----------------------------------------------------------------------------------- fill rules


def test_more_outputs_than_rank_are_orthogonal_mixtures() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 64, 3).double()
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(64, 9).double())
    x = torch.from_numpy(rows(60, 27)).reshape(60, 3, 3, 3)
    report = sylvinit.initialize_(model, x, preset="paper", seed=4, progress=False)
    assert report["0"].filled == 64 - 27
    assert "37 outputs filled with orthogonal mixtures" in report["0"].notes
    w, columns = weight_matrix(conv)[0], x.reshape(60, 27).numpy().T
    s = scores("pca", columns, np.array([]), 27)
    assert relative_defect(*equation(s, columns, 10.0), w[:27]) < DEFECT
    bias = conv.bias.detach().numpy()
    for part in (slice(27, 54), slice(54, 64)):
        mixture = np.linalg.lstsq(w[:27].T, w[part].T, rcond=None)[0].T
        size = len(mixture)
        assert_near(mixture @ mixture.T, np.eye(size), CLOSE)
        assert_near(bias[part], mixture @ s.mean(axis=1) - w[part] @ columns.mean(axis=1), CLOSE)
    # A complete mixture solves the rotated equation, and is not merely a permutation.
    mixture = np.linalg.lstsq(w[:27].T, w[27:54].T, rcond=None)[0].T
    assert relative_defect(*equation(mixture @ s, columns, 10.0), w[27:54]) < DEFECT
    assert np.abs(mixture).max() < 0.9


def test_mixtures_come_from_the_seed() -> None:
    x = rows(40, 3)
    (one, _, _), (same, _, _), (other, _, _) = (solved(x, 5, "pca", seed=s) for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.array_equal(one[:3], other[:3])
    assert np.abs(one[3:] - other[3:]).max() > 0.01


def test_lda_is_filled_with_principal_components_of_the_rest() -> None:
    y = np.arange(60) % 3
    x = rows(60, 7) + np.random.default_rng(1).normal(size=(3, 7))[y]
    columns = x.T
    w, _, report = solved(x, 9, "lda", y)
    directions = discriminants(columns, y, 9)
    lda = directions @ (columns - columns.mean(axis=1, keepdims=True))
    rest = unexplained(columns, lda)
    assert np.linalg.matrix_rank(rest) == 5
    pca = principal_axes(rest, 5) @ rest
    correlation = np.corrcoef(np.concatenate((lda, pca)))[:2, 2:]
    assert_near(correlation, np.zeros((2, 5)), CLOSE)  # the oracle is what it should be
    s = np.concatenate((lda, pca))
    assert relative_defect(*equation(s, columns, 10.0), w[:7]) < DEFECT
    mixture = np.linalg.lstsq(w[:7].T, w[7:].T, rcond=None)[0].T
    assert_near(mixture @ mixture.T, np.eye(2), CLOSE)
    assert report.filled == 5 + 2
    assert report.rank == 7
    assert report.notes[:2] == [
        "5 outputs filled with principal components of the rest",
        "2 outputs filled with orthogonal mixtures",
    ]


def test_onehot_in_a_hidden_layer_is_filled_with_components_of_the_rest() -> None:
    y = np.arange(60) % 3
    x = rows(60, 6) + np.random.default_rng(1).normal(size=(3, 6))[y]
    columns, targets = x.T, one_hot(y, 3)
    w, b, _ = solved(x, 5, "onehot", y)
    deviation = columns - columns.mean(axis=1, keepdims=True)
    s = np.concatenate((targets, principal_axes(unexplained(columns, targets), 2) @ deviation))
    assert relative_defect(*equation(s, columns, 10.0), w) < DEFECT
    assert_near(b, s.mean(axis=1) - w @ columns.mean(axis=1), CLOSE)


# ----------------------------------------------------------------------------- groups, dead inputs


def grouped(x: torch.Tensor, **options: Any) -> tuple[nn.Conv1d, nn.Conv1d, Any]:
    """A convolution with three groups, the same one as it was before, and its report."""
    torch.manual_seed(0)
    conv, before = (nn.Conv1d(3, 12, 3, groups=3).double() for _ in range(2))
    before.load_state_dict(conv.state_dict())
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(12 * 6, 2).double())
    report = sylvinit.initialize_(
        model, x, preset="paper", patches="all", progress=False, **options
    )
    return conv, before, report["0"]


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("code", ["pca", PCA(center=False), KMeans(), ICA(), Affine()], ids=name)
def test_groups_whose_input_never_varies_are_left_alone(code: Any, value: float) -> None:
    x = torch.from_numpy(rows(20, 24)).reshape(20, 3, 8)
    x[:, 1] = value
    conv, before, report = grouped(x, code={"0": code})
    assert torch.equal(conv.weight[4:8], before.weight[4:8])
    assert torch.equal(conv.bias[4:8], before.bias[4:8])
    assert "3 of 9 never vary" in report.remarks["dead inputs"]
    if code != "pca":
        assert bool((conv.weight != before.weight)[[0, 1, 2, 3, 8, 9, 10, 11]].all())
        return
    columns, _ = chosen_rows(layer_patches(conv, x), "0", "all")
    for group in (0, 2):
        s = scores("pca", columns[group], np.array([]), 4)
        w = weight_matrix(conv)[group]
        assert relative_defect(*equation(s, columns[group], 10.0), w[:3]) < DEFECT
        mixture = np.linalg.lstsq(w[:3].T, w[3:].T, rcond=None)[0].T
        assert_near(mixture @ mixture.T, np.eye(1), CLOSE)


def test_groups_of_different_rank() -> None:
    x = torch.from_numpy(rows(20, 24)).reshape(20, 3, 8)
    x[:, 1, 1:] = x[:, 1, :1]  # constant along the axis: three equal taps, rank 1
    conv, _, report = grouped(x)
    columns, _ = chosen_rows(layer_patches(conv, x), "0", "all")
    for group, rank in enumerate((3, 1, 3)):
        s = scores("pca", columns[group], np.array([]), 4)
        assert len(s) == rank
        w = weight_matrix(conv)[group]
        assert relative_defect(*equation(s, columns[group], 10.0), w[:rank]) < DEFECT
        mixture = np.linalg.lstsq(w[:rank].T, w[rank:].T, rcond=None)[0].T
        assert_near(np.abs(mixture).sum(axis=1) if rank == 1 else mixture @ mixture.T, 1.0, CLOSE)
    assert report.filled == 3


def test_input_that_never_varies_is_skipped_with_a_reason() -> None:
    x = torch.full((6, 3, 8), 0.3, dtype=torch.float64)
    conv, before, report = grouped(x)
    assert report.status == "skipped"
    assert "never vary" in report.reason
    assert torch.equal(conv.weight, before.weight)


@pytest.mark.parametrize("n", [3, 7, 30])
def test_rows_that_never_vary_have_rank_zero(n: int) -> None:
    x = np.tile(rows(1, 24), (n, 1))
    _, _, report = solved(x, 4, "pca")
    assert report.status == "skipped"
    assert report.rank == 0


def test_single_dead_inputs_get_no_weight() -> None:
    x = rows(40, 6)
    x[:, 2] = 0
    w, _, report = solved(x, 4, "pca")
    assert_near(w[:, 2], np.zeros(4), CLOSE)
    assert "1 of 6 never vary" in report.remarks["dead inputs"]
