"""Steps of majorize-minimize towards the maximum of the likelihood, against SciPy's optimum."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from classifier_problems import Array, classes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sylvinit.solve.gaussian_classes import fit_gaussian
from sylvinit.solve.logistic_steps import refine_logistic

few = settings(max_examples=settings.default.max_examples // 5)


@few
@given(st.integers(20, 60), st.integers(2, 4), st.integers(1, 4), st.integers(0, 100))
def test_many_steps_reach_the_minimum(n: int, classes: int, d: int, seed: int) -> None:
    """The optimum over scores f = V_0 z + U z of the objective in the module's docstring."""
    x, labels = classes_of(n, classes, d, seed)
    generator = np.random.default_rng(seed)
    weight, bias = generator.normal(size=(classes, d)), generator.normal(size=classes)
    centered = x - x.mean(axis=0)
    values, basis = np.linalg.eigh(centered.T @ centered / len(x))
    values = values + 0.1 * values.mean()
    z = np.concatenate((centered @ (basis / np.sqrt(values)), np.ones((len(x), 1))), axis=1)
    before = x @ weight.T + bias

    def objective(flat: Array, tau: float = 5.0) -> float:
        u = flat.reshape(classes, d + 1)
        f = before + z @ u.T
        log = np.log(np.exp(f - f.max(axis=1, keepdims=True)).sum(axis=1)) + f.max(axis=1)
        return float((log - f[np.arange(len(x)), labels]).sum() + tau / 2 * (u**2).sum())

    best = scipy.optimize.minimize(objective, np.zeros(classes * (d + 1)), tol=1e-12)
    new = refine_logistic(
        *(torch.from_numpy(a) for a in (x, labels, weight, bias)), strength=5.0 / d, steps=400
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
            x, labels, start.weight, start.bias, strength=0.1 / 5, steps=steps
        )
        losses.append(float(torch.nn.functional.cross_entropy(x @ weight.mT + bias, labels)))
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("n", "classes", "d"), [(100, 10, 7), (1000, 10, 5), (300, 40, 7)])
def test_steps_in_float32_and_with_a_spectrum_at_hand(n: int, classes: int, d: int) -> None:
    x, labels = (torch.from_numpy(a) for a in classes_of(n, classes, d, 0))
    start = fit_gaussian(x, labels, classes)
    centered = x - x.mean(dim=0)
    spectrum = torch.linalg.eigh(centered.mT @ centered / len(x))
    expected = refine_logistic(x, labels, start.weight, start.bias)
    assert not torch.allclose(expected[0], start.weight, rtol=1e-3, atol=1e-3)  # it has moved
    # Seen 0 and 3.1e-8 of the largest entry, over five seeds.
    for tolerance, found in (
        (1e-12, refine_logistic(x, labels, start.weight, start.bias, spectrum=spectrum)),
        (2e-7, refine_logistic(x, labels, start.weight, start.bias, precision=torch.float32)),
    ):
        for new, old in zip(found, expected, strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=tolerance * float(old.abs().max()))
            assert new.dtype == torch.float64
