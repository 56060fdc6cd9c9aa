"""The Gaussian classifier against refits without each row, the logistic one against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sylvinit
from sylvinit.classifier import fit_gaussian, refine_logistic
from sylvinit.classifier.discriminant import RIDGES

Array = np.ndarray


def classes_of(n: int, classes: int, d: int, seed: int) -> tuple[Array, Array]:
    """Rows of overlapping classes, each with at least two."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate((np.arange(2 * classes) % classes, generator.integers(0, classes, n)))
    centres = generator.normal(size=(classes, d))
    return centres[labels] + generator.normal(size=(len(labels), d)), labels


def gaussian_scores(x: Array, labels: Array, at: Array, ridge: float, nu: float, t: float) -> Array:
    """Scores at one point by the definition: a loop over classes, a plain inverse."""
    classes = np.unique(labels)
    means = [x[labels == c].mean(axis=0) for c in classes]
    s = sum(
        (x[labels == c] - m).T @ (x[labels == c] - m) for c, m in zip(classes, means, strict=True)
    )
    inverse = np.linalg.inv(s / nu + ridge * t * np.eye(x.shape[1]))
    return np.array([-(1 + ridge) / 2 * (at - m) @ inverse @ (at - m) for m in means])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(2, 4), st.integers(1, 6), st.integers(0, 100))
def test_leave_one_out_is_that_of_refits(n: int, classes: int, d: int, seed: int) -> None:
    x, labels = classes_of(n, classes, d, seed)
    means = np.stack([x[labels == c].mean(axis=0) for c in range(classes)])
    inside = x - means[labels]
    nu = len(x) - classes
    t = np.trace(inside.T @ inside) / nu / d
    share = np.log(np.bincount(labels) / len(x))
    losses = []
    for ridge in RIDGES:
        total = 0.0
        for i in range(len(x)):
            rest = np.arange(len(x)) != i
            f = gaussian_scores(x[rest], labels[rest], x[i], ridge, nu, t) + share
            total += np.log(np.exp(f - f.max()).sum()) + f.max() - f[labels[i]]
        losses.append(total / len(x))
    found = fit_gaussian(torch.from_numpy(x), torch.from_numpy(labels), classes)
    # Relative to the inverse of the smallest ridge the round-off is about 1e-12; seen 3e-12.
    np.testing.assert_allclose(found.loss, min(losses), rtol=1e-9, atol=1e-12)
    assert losses[RIDGES.index(found.ridge)] == pytest.approx(min(losses), rel=1e-9, abs=1e-12)
    f = np.stack([gaussian_scores(x, labels, row, found.ridge, nu, t) for row in x]) + share
    scores = (torch.from_numpy(x) @ found.weight.mT + found.bias).numpy()
    # Up to what is the same for all classes.
    np.testing.assert_allclose(
        scores - scores[:, :1], f - f[:, :1], rtol=1e-8, atol=1e-8 * np.abs(f).max()
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(20, 60), st.integers(2, 4), st.integers(1, 4), st.integers(0, 100))
def test_many_steps_reach_the_minimum(n: int, classes: int, d: int, seed: int) -> None:
    """The optimum over scores f = V_0 z + U z of the objective in the module's docstring."""
    x, labels = classes_of(n, classes, d, seed)
    generator = np.random.default_rng(seed)
    weight, bias = generator.normal(size=(classes, d)), generator.normal(size=classes)
    centred = x - x.mean(axis=0)
    values, basis = np.linalg.eigh(centred.T @ centred / len(x))
    values = values + 0.1 * values.mean()
    z = np.concatenate((centred @ (basis / np.sqrt(values)), np.ones((len(x), 1))), axis=1)
    before = x @ weight.T + bias

    def objective(flat: Array, tau: float = 5.0) -> float:
        u = flat.reshape(classes, d + 1)
        f = before + z @ u.T
        log = np.log(np.exp(f - f.max(axis=1, keepdims=True)).sum(axis=1)) + f.max(axis=1)
        return float((log - f[np.arange(len(x)), labels]).sum() + tau / 2 * (u**2).sum())

    best = scipy.optimize.minimize(objective, np.zeros(classes * (d + 1)), tol=1e-12)
    new = refine_logistic(
        *(torch.from_numpy(a) for a in (x, labels, weight, bias)), strength=5.0, steps=400
    )
    found = (torch.from_numpy(x) @ new[0].mT + new[1]).numpy() - before
    expected = z @ best.x.reshape(classes, d + 1).T
    # SciPy's gradients by differences end at about 1e-6 of the optimum.
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1, np.abs(expected).max()))


def test_steps_lower_the_loss_and_none_change_nothing() -> None:
    x, labels = (torch.from_numpy(a) for a in classes_of(200, 3, 5, 0))
    start = fit_gaussian(x, labels, 3)
    same = refine_logistic(x, labels, start.weight, start.bias, steps=0)
    torch.testing.assert_close(same[0], start.weight)
    torch.testing.assert_close(same[1], start.bias)
    losses = []
    for steps in (0, 1, 5, 20):
        weight, bias = refine_logistic(
            x, labels, start.weight, start.bias, strength=0.1, steps=steps
        )
        losses.append(float(torch.nn.functional.cross_entropy(x @ weight.mT + bias, labels)))
    assert losses == sorted(losses, reverse=True)


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


@pytest.mark.parametrize("case", ["no bias", "hidden layer"])
def test_elsewhere_it_is_the_one_hot_code(case: str) -> None:
    x, labels = classes_of(60, 3, 5, 3)
    data = (torch.from_numpy(x), torch.from_numpy(labels))

    def solved(code: str) -> torch.Tensor:
        torch.manual_seed(0)
        if case == "no bias":
            model = nn.Sequential(nn.Linear(5, 3, bias=False)).double()
            sylvinit.initialize_head_(model, data, head_code=code)
        else:
            model = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)).double()
            sylvinit.initialize_(model, data, code=code)
        return model[0].weight.detach()

    torch.testing.assert_close(solved("logistic"), solved("onehot"), rtol=0, atol=0)
