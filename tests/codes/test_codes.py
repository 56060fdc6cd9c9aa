"""Latent codes against NumPy, SciPy and scikit-learn, and through the public functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_near, discriminants, one_hot, principal_axes
from sklearn.decomposition import FastICA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

import sylvinit
from sylvinit.backends import choose
from sylvinit.codes import (
    ICA,
    LDA,
    PCA,
    Code,
    KMeans,
    Latent,
    Logistic,
    OneHot,
    SignPairs,
    fix_signs,
    get_code,
)
from sylvinit.codes import registry as code_registry
from sylvinit.errors import LabelError, OptionError, OptionTypeError
from sylvinit.moments.statistics import LayerStatistics, layer_statistics

# Eigenvectors of a 7 x 7 covariance whose relative gaps exceed 1e-3, from sums in two orders: the
# error is about eps / gap = 2e-13. The worst difference seen in these tests is 5e-13.
CLOSE = 1e-11


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows with a mean and a covariance that is far from round."""
    generator = np.random.default_rng(seed)
    return generator.laplace(size=(n, d)) @ generator.normal(size=(d, d)) + np.arange(d) / 2


def statistics(
    x: np.ndarray, labels: np.ndarray | None = None, *, reservoir: int = 0, reduce: bool = True
) -> LayerStatistics:
    """Statistics of rows (n, d) or (groups, n, d)."""
    x = x[None] if x.ndim == 2 else x
    classes = 0 if labels is None else int(labels.max()) + 1
    moments = sylvinit.PatchMoments(x.shape[2], groups=len(x), classes=classes, reservoir=reservoir)
    moments.update(torch.from_numpy(x), None if labels is None else torch.from_numpy(labels))
    return layer_statistics(moments, choose("auto", torch.device("cpu")), reduce=reduce)


def assert_moments(latent: Latent, group: int, s: np.ndarray, x: np.ndarray) -> None:
    """The latent's moments are those of scores (k, n) and columns (d, n)."""
    n = x.shape[1]
    assert_near(latent.full()[group].numpy(), s @ s.T / n, CLOSE)
    assert_near(latent.cross[group].numpy(), s @ x.T / n, CLOSE)
    assert_near(latent.mean[group].numpy(), s.mean(axis=1), CLOSE)


LABELS = np.arange(90) % 4


@pytest.mark.parametrize(
    ("code", "centerd"),
    [(PCA(), True), (PCA(center=False), False), (LDA(), True), (ICA(), True), (KMeans(), False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_moments_of_affine_codes_are_those_of_their_scores(code: Code, centerd: bool) -> None:
    x = np.stack((rows(90, 6), rows(90, 6, seed=1)))
    latent = code.fit(statistics(x, LABELS, reservoir=90), 5, seed=3)
    assert latent.encoder is not None
    for group, columns in enumerate(x.swapaxes(1, 2)):
        center = columns.mean(axis=1, keepdims=True) if centerd else 0.0
        assert_moments(latent, group, latent.encoder[group].numpy() @ (columns - center), columns)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("k", [1, 4, 7, 9])
def test_pca_is_numpys(k: int, center: bool) -> None:
    x = rows(50, 7)
    encoder = PCA(center).fit(statistics(x), k, seed=0).encoder
    expected = principal_axes(x.T, k, center)
    assert encoder is not None
    assert encoder.shape == (1, min(k, 7), 7)
    assert_near(encoder[0].numpy(), expected, CLOSE)


def test_pca_of_deficient_rows_stops_at_the_rank() -> None:
    x = rows(50, 3) @ np.random.default_rng(5).normal(size=(3, 8))
    encoder = PCA().fit(statistics(x), 6, seed=0).encoder
    assert encoder is not None
    assert_near(encoder[0, :3].numpy(), principal_axes(x.T, 6), CLOSE)
    assert not encoder[0, 3:].any()


def test_pca_of_fewer_rows_than_features_is_that_of_the_full_covariance() -> None:
    x = rows(9, 20)
    stats = statistics(x)
    assert stats.basis is not None
    assert stats.d == 9
    encoder = PCA().fit(stats, 12, seed=0).encoder
    assert encoder is not None
    found = stats.in_input_coordinates(encoder)[0].numpy()
    assert_near(found[:8], principal_axes(x.T, 12), CLOSE)
    assert not found[8:].any()  # n rows about their mean span n - 1 dimensions


@pytest.mark.parametrize("counts", [(40, 30, 20), (50, 5, 15, 20), (45, 45)])
def test_lda_is_scikit_learns(counts: tuple[int, ...]) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    shift = np.random.default_rng(2).normal(size=(len(counts), 7))
    x = rows(90, 7) + 2 * shift[y]
    stats = statistics(x, y)
    encoder = LDA().fit(stats, 6, seed=0).encoder
    assert encoder is not None
    found = encoder[0].numpy()
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(x, y).scalings_.T[: len(found)]
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    assert len(found) == len(counts) - 1
    assert_near(np.abs((found * reference).sum(axis=1)), np.ones(len(found)), CLOSE)
    assert_near(found, discriminants(x.T, y, 6), CLOSE)


def test_lda_ignores_absent_classes_and_directions_without_variance() -> None:
    y = np.array([0, 2, 4])[np.arange(60) % 3]  # of five classes, two are absent
    low = rows(60, 4) + np.random.default_rng(2).normal(size=(5, 4))[y]
    x = low @ np.random.default_rng(3).normal(size=(4, 9))
    encoder = LDA().fit(statistics(x, y), 8, seed=0).encoder
    assert encoder is not None
    assert_near(encoder[0].numpy(), discriminants(x.T, y, 8), CLOSE)


def test_lda_is_zero_where_the_class_means_agree() -> None:
    x = rows(40, 5)
    latent = LDA().fit(statistics(np.concatenate((x, x)), np.repeat([0, 1], 40)), 3, seed=0)
    assert not latent.second_moment.any()


def test_ica_is_fast_ica_on_the_reservoir() -> None:
    x = rows(80, 5)
    stats = statistics(x, reservoir=80)
    assert stats.reservoir is not None
    encoder = ICA().fit(stats, 4, seed=11).encoder
    assert encoder is not None
    reference = FastICA(4, whiten="unit-variance", max_iter=200, random_state=11)
    reference.fit(stats.reservoir[0].numpy())
    signs = np.sign((encoder[0].numpy() * reference.components_).sum(axis=1, keepdims=True))
    assert_near(encoder[0].numpy(), signs * reference.components_, CLOSE)
    assert torch.equal(ICA().fit(stats, 4, seed=11).encoder, encoder)
    assert not torch.equal(ICA().fit(stats, 4, seed=12).encoder, encoder)


def test_ica_recovers_independent_sources() -> None:
    generator = np.random.default_rng(0)
    sources = generator.uniform(-1, 1, size=(3000, 3))
    x = sources @ generator.normal(size=(3, 5)) + 4.0
    encoder = ICA().fit(statistics(x, reservoir=3000), 5, seed=0).encoder
    assert encoder is not None
    assert not encoder[0, 3:].any()  # the rank is 3
    found = x @ encoder[0, :3].numpy().T
    # Statistical error of 3000 samples is about 1 / sqrt(3000) = 0.02 in each of the mixing angles.
    match = np.abs(np.corrcoef(found.T, sources.T)[:3, 3:])
    assert (match.max(axis=0) > 0.99).all()
    # Unit variance on the sample, which here is everything.
    assert_near(found.var(axis=0), np.ones(3), CLOSE)


def test_kmeans_finds_the_centers_and_reproduces_them() -> None:
    generator = np.random.default_rng(0)
    centers = 20 * generator.normal(size=(4, 6))
    y = np.arange(100) % 4
    x = centers[y] + generator.normal(size=(100, 6))
    stats = statistics(x, reservoir=100)
    encoder = KMeans().fit(stats, 4, seed=1).encoder
    assert encoder is not None
    means = np.stack([x[y == c].mean(axis=0) for c in range(4)])
    nearest = [np.abs(means - row).sum(axis=1).argmin() for row in encoder[0].numpy()]
    assert sorted(nearest) == [0, 1, 2, 3]
    assert_near(encoder[0].numpy(), means[nearest], CLOSE)
    assert torch.equal(KMeans().fit(stats, 4, seed=1).encoder, encoder)


def test_kmeans_has_no_more_centers_than_distinct_rows() -> None:
    x = np.tile(rows(3, 4), (10, 1))
    encoder = KMeans().fit(statistics(x, reservoir=30), 5, seed=0).encoder
    assert encoder is not None
    assert encoder[0].any(dim=1).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("k", [4, 6])
def test_onehot_moments_are_those_of_the_labels(k: int) -> None:
    x = rows(90, 5)
    latent = OneHot().fit(statistics(x, LABELS), k, seed=0)
    assert latent.encoder is None
    assert_moments(latent, 0, one_hot(LABELS, 4), x.T)


def test_onehot_of_groups_spreads_the_classes_over_them() -> None:
    x = np.stack((rows(90, 5), rows(90, 5, seed=1), rows(90, 5, seed=2)))
    latent = OneHot().fit(statistics(x, LABELS), 2, seed=0)
    targets = np.concatenate((one_hot(LABELS, 4), np.zeros((2, 90))))
    for group, columns in enumerate(x.swapaxes(1, 2)):
        assert_moments(latent, group, targets[2 * group : 2 * group + 2], columns)


def test_sign_rule() -> None:
    stats = statistics(rows(30, 4))
    given = torch.tensor([[1.0, -3, 2, 0], [-2, 2, 1, 0], [2, -2, 0, 0], [0, 0, -1, 1 + 1e-9]])
    expected = torch.tensor([[-1.0, 3, -2, 0], [2, -2, -1, 0], [2, -2, 0, 0], [0, 0, 1, -1 - 1e-9]])
    assert torch.equal(fix_signs(stats, given[None])[0], expected)


def test_sign_rule_holds_in_the_coordinates_of_the_input() -> None:
    x = rows(5, 12)
    stats = statistics(x)
    encoder = PCA().fit(stats, 4, seed=0).encoder
    assert encoder is not None
    found = stats.in_input_coordinates(encoder)[0]
    largest = found.abs().argmax(dim=1, keepdim=True)
    assert bool((found.gather(1, largest) > 0).all())


# ------------------------------------------------------------------------------ registry and errors


def test_registry() -> None:
    assert sylvinit.available_codes() == [
        "correlated",
        "discriminant",
        "ica",
        "kmeans",
        "lda",
        "logistic",
        "onehot",
        "pca",
        "ridge",
        "targets",
    ]
    for name in sylvinit.available_codes():
        assert isinstance(get_code(name), Code)
        assert get_code(name).name == name
    own = KMeans(reservoir=10)
    assert get_code(own) is own
    with pytest.raises(OptionError, match=r"one of \['correlated', .* got 'pac'"):
        get_code("pac")
    with pytest.raises(OptionTypeError, match="needs_labels"):
        get_code(3)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="registered already"):
        sylvinit.register_code("pca", PCA)


def test_pairs_by_name_and_of_what_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("correlated", "discriminant", "ica", "kmeans", "lda", "pca"):
        assert get_code(f"{name}-pairs") == SignPairs(get_code(name))
    for code in (OneHot(), Logistic()):
        with pytest.raises(OptionError, match=f"sign pairs .* got '{code.name}', .* no class"):
            SignPairs(code)
        with pytest.raises(OptionError, match=f"got '{code.name}'"):
            get_code(f"{code.name}-pairs")
    with pytest.raises(OptionError, match="not be in pairs itself, got 'pca-pairs'"):
        SignPairs(SignPairs(PCA()))
    with pytest.raises(OptionError, match="got 'pca-pairs-pairs'"):
        get_code("pca-pairs-pairs")
    with pytest.raises(OptionTypeError, match=r"must be a Code, got 'pca'; .*get_code"):
        SignPairs("pca")  # type: ignore[arg-type]
    monkeypatch.setattr(code_registry, "_CODES", dict(code_registry._CODES))
    sylvinit.register_code("doubled", lambda: SignPairs(PCA()))
    with pytest.raises(OptionError, match="not be in pairs itself"):
        get_code("doubled-pairs")


@pytest.mark.parametrize("name", ["onehot-pairs", "logistic-pairs"])
def test_a_classifier_has_no_pairs(name: str) -> None:
    model, data = model_and_data()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(
        OptionError, match=r"head_code must be 'auto' or a code: .*no class or target"
    ):
        sylvinit.initialize_(model, data, preset="best", head_code=name)
    with pytest.raises(OptionError, match="head_code"):
        sylvinit.initialize_head_(model, data, head_code=name)
    with pytest.raises(OptionError, match="no class or target"):
        sylvinit.initialize_(model, data, code=name)
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("code", [LDA(), OneHot(), ICA(), KMeans()], ids=lambda code: code.name)
def test_codes_without_what_they_need(code: Code) -> None:
    with pytest.raises(ValueError, match=r"class statistics|reservoir"):
        code.fit(statistics(rows(20, 3)), 2, seed=0)


def model_and_data() -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, (torch.from_numpy(rows(30, 6)), torch.arange(30) % 3)


@pytest.mark.parametrize("code", ["lda", "onehot"])
def test_labels_are_asked_for(code: str) -> None:
    model, (x, _) = model_and_data()
    with pytest.raises(LabelError, match="labels"):
        sylvinit.initialize_(model, x, code=code, progress=False)


def test_codes_by_name_pattern() -> None:
    model, data = model_and_data()
    model.insert(2, nn.Linear(4, 4).double())
    report = sylvinit.initialize_(model, data, code={"0": "lda", "2": KMeans()}, progress=False)
    assert [layer.code for layer in report.solved] == ["lda", "kmeans", "onehot"]
    with pytest.raises(OptionError, match="'7' matches no"):
        sylvinit.initialize_(model, data, code={"7": "lda"}, progress=False)


class Superclasses:
    """A code of the user's own that is not a function of x: two targets made of four classes."""

    name, needs_labels, reservoir, reducible = "superclasses", True, 0, True

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        assert stats.class_counts is not None
        assert stats.class_means is not None
        share = stats.class_counts / stats.n
        targets = torch.tensor([[1.0, 1, -1, -1], [0, 2, 0, 3]], dtype=torch.float64)[:k]
        weighted = targets * share
        return Latent(
            (weighted @ targets.T)[None],
            weighted @ stats.class_means,
            weighted.sum(dim=1)[None],
            None,
        )


@pytest.mark.parametrize("by_name", [False, True])
def test_users_own_code(by_name: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, _) = model_and_data()
    code: Any = Superclasses()
    if by_name:
        monkeypatch.setattr(code_registry, "_CODES", dict(code_registry._CODES))
        sylvinit.register_code("superclasses", Superclasses)
        code = "superclasses"
    y = torch.arange(30) % 4
    report = sylvinit.initialize_(
        model, (x, y), preset="paper", code={"0": code}, head_code="pca", progress=False
    )
    assert report["0"].code == "superclasses"
    s = np.array([[1.0, 1, -1, -1], [0, 2, 0, 3]]) @ one_hot(y.numpy(), 4)
    columns = x.T.numpy()
    # Both targets and the two components that fill up the four outputs solve one equation.
    deviation = columns - columns.mean(axis=1, keepdims=True)
    centerd = s - s.mean(axis=1, keepdims=True)
    fitted = np.linalg.lstsq(centerd.T, deviation.T, rcond=None)[0].T @ centerd
    filled = np.concatenate((s, principal_axes(deviation - fitted, 2) @ deviation))
    a, q = filled @ filled.T / 30, 11 * filled @ columns.T / 30
    w = model[0].weight.detach().numpy()
    assert_near(a @ w + 10 * w @ (columns @ columns.T) / 30, q, CLOSE)


def test_a_second_moment_that_is_symmetric_up_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a float32 product S S^T can be. Moments differ by 5e-8, weights (measured) by 3.2e-8."""
    (first, data), (second, _) = model_and_data(), model_and_data()
    second.load_state_dict(first.state_dict())
    sylvinit.initialize_(first, data, code={"0": PCA()}, progress=False)
    fit = PCA.fit

    def rounded(self: PCA, stats: LayerStatistics, k: int, seed: int) -> Latent:
        found = fit(self, stats, k, seed)
        size = 1e-7 * found.second_moment.abs().amax()
        moment = found.second_moment + size * torch.ones(k, k).triu(1)
        return Latent(moment, found.cross, found.mean, found.encoder)

    monkeypatch.setattr(PCA, "fit", rounded)
    sylvinit.initialize_(second, data, code={"0": PCA()}, progress=False)
    assert_near(second[0].weight.detach(), first[0].weight.detach().numpy(), 1e-6)
