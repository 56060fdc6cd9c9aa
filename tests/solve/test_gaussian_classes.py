"""Gaussian classes whose ridge has the least leave-one-out loss, against refits by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier_problems import Array, classes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sylvinit.solve.gaussian_classes import RIDGES, fit_gaussian

few = settings(max_examples=settings.default.max_examples // 5)

LEFT_OUT = 1000  # rows that are left out at most


def gaussian_scores(x: Array, labels: Array, at: Array, ridge: float, nu: float, t: float) -> Array:
    """Scores at one point by the definition: a loop over classes, a plain inverse."""
    classes = np.unique(labels)
    means = [x[labels == c].mean(axis=0) for c in classes]
    s = sum(
        (x[labels == c] - m).T @ (x[labels == c] - m) for c, m in zip(classes, means, strict=True)
    )
    inverse = np.linalg.inv(s / nu + ridge * t * np.eye(x.shape[1]))
    return np.array([-(1 + ridge) / 2 * (at - m) @ inverse @ (at - m) for m in means])


def leave_one_out(x: Array, labels: Array, at: Array, ridge: float) -> float:
    """Mean cross-entropy of the rows ``at``, each by a refit without it; p_c and t are kept."""
    classes, labels = np.unique(labels, return_inverse=True)
    means = np.stack([x[labels == c].mean(axis=0) for c in range(len(classes))])
    inside = x - means[labels]
    nu = len(x) - len(classes)
    t = np.trace(inside.T @ inside) / nu / x.shape[1]
    share = np.log(np.bincount(labels) / len(x))
    total = 0.0
    for i in at:
        rest = np.arange(len(x)) != i
        f = gaussian_scores(x[rest], labels[rest], x[i], ridge, nu, t) + share
        total += np.log(np.exp(f - f.max()).sum()) + f.max() - f[labels[i]]
    return total / len(at)


@few
@given(st.integers(0, 12), st.integers(2, 4), st.integers(1, 6), st.integers(0, 100))
def test_leave_one_out_is_that_of_refits(n: int, classes: int, d: int, seed: int) -> None:
    x, labels = classes_of(n, classes, d, seed)
    means = np.stack([x[labels == c].mean(axis=0) for c in range(classes)])
    inside = x - means[labels]
    nu = len(x) - classes
    t = np.trace(inside.T @ inside) / nu / d
    share = np.log(np.bincount(labels) / len(x))
    losses = [leave_one_out(x, labels, np.arange(len(x)), ridge) for ridge in RIDGES]
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


def every_nth_by_class(labels: Array) -> list[int]:
    """Of the rows class by class, cut into 1,000 parts, the one in the middle of each part."""
    rows = [i for c in sorted(set(labels.tolist())) for i in np.flatnonzero(labels == c).tolist()]
    return [rows[int((part + 0.5) * len(rows) / LEFT_OUT)] for part in range(LEFT_OUT)]


ORDERS = ["random", "sorted", "in turns"]


def many_rows(n: int, order: str) -> tuple[Array, Array]:
    """Four classes, of which two are hard to tell apart and one is wide, and one without rows."""
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, 4], size=n, p=[0.4, 0.3, 0.2, 0.1])
    if order == "sorted":
        labels.sort()
    elif order == "in turns":
        labels = np.array([0, 1, 2, 4])[np.arange(n) % 4]
    centers = np.array([[0, 0, 0], [0.5, 0, 0], [3, 0, 1], [9, 9, 9], [0, 4, 0]])
    scale = np.array([1.0, 1, 3, 1, 1])[labels][:, None]
    return centers[labels] + scale * generator.normal(size=(n, 3)), labels


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1001, 1999, 4000])
def test_of_many_rows_some_of_every_class_are_left_out(n: int, order: str) -> None:
    x, labels = many_rows(n, order)
    at = every_nth_by_class(labels)
    assert len(set(at)) == LEFT_OUT
    # The classes have their shares, in whole rows.
    shares = np.bincount(labels[at]) - LEFT_OUT * np.bincount(labels) / n
    assert np.abs(shares).max() <= 1
    ridges = (1e-2, 1.0)
    losses = [leave_one_out(x, labels, np.array(at), ridge) for ridge in ridges]
    rows = (torch.from_numpy(x), torch.from_numpy(labels), 5)
    for ridge, loss in zip(ridges, losses, strict=True):
        assert fit_gaussian(*rows, (ridge,)).loss == pytest.approx(loss, rel=1e-9)  # seen 2e-15
    found = fit_gaussian(*rows, ridges)
    assert found.loss == pytest.approx(min(losses), rel=1e-9)
    assert found.ridge == ridges[int(np.argmin(losses))]


def test_the_first_rows_of_sorted_data_would_say_something_else() -> None:
    """The oracle above tells the choice of rows: those of one class alone have another loss."""
    x, labels = many_rows(4000, "sorted")
    found = fit_gaussian(torch.from_numpy(x), torch.from_numpy(labels), 5, (1.0,))
    assert abs(leave_one_out(x, labels, np.arange(LEFT_OUT), 1.0) / found.loss - 1) > 0.1
