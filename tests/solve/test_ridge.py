"""Ridge heads against explicit ridge regressions and their leave-one-out errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sylvinit
from sylvinit.solve.ridge import RIDGES


def table(n: int, d: int, outputs: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.logspace(0, -2, d) + 3
    y = (x - 3) @ rng.normal(size=(d, outputs)) * np.logspace(0, 3, outputs) + 7
    return x, y + noise * y.std(axis=0) * rng.normal(size=y.shape)


def by_hand(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Weight, bias and ridge of least leave-one-out error, every row really left out."""
    n, d = x.shape
    centered, mean = x - x.mean(axis=0), y.mean()
    values = np.linalg.eigvalsh(centered.T @ centered / n)
    level = values.sum() / min(d, n - 1)
    best = (np.inf, np.zeros(d), 0.0)
    for ridge in RIDGES:
        damping = ridge * level * np.eye(d)
        inverse = np.linalg.inv(centered.T @ centered / n + damping)
        weight = inverse @ centered.T @ (y - mean) / n
        errors = []
        for i in range(n):
            kept = np.arange(n) != i
            # As with all rows, sums are divided by n: the ridge is worth as much.
            z, t = x[kept] - x[kept].mean(axis=0), y[kept] - y[kept].mean()
            left = np.linalg.solve(z.T @ z / n + damping, z.T @ t / n)
            errors.append(y[i] - y[kept].mean() - (x[i] - x[kept].mean(axis=0)) @ left)
        best = min(best, (float(np.mean(np.square(errors))), weight, ridge), key=lambda o: o[0])
    return best[1], float(mean - best[1] @ x.mean(axis=0)), best[2]


@pytest.mark.parametrize(("n", "d"), [(200, 6), (30, 6), (12, 10)])
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_the_ridge_of_least_leave_one_out_error(n: int, d: int, noise: float) -> None:
    x, y = table(n, d, 3, noise, n + d)
    model = nn.Linear(d, 3).double()
    report = sylvinit.initialize_head_(
        model, (torch.from_numpy(x), torch.from_numpy(y)), head_code="ridge"
    )
    for j in range(3):
        weight, bias, _ = by_hand(x, y[:, j])
        # The condition of the damped covariance is at most 1e4 / 1e-10 and its inverse is applied
        # twice by hand: 1e-16 * 1e6 for the ridges that win here (above 1e-4 of the mean).
        scale = np.abs(weight).max()
        np.testing.assert_allclose(model.weight[j].detach(), weight, atol=1e-8 * scale, rtol=0)
        assert model.bias[j].item() == pytest.approx(bias, abs=1e-8 * max(1, abs(bias)))
    assert "leave-one-out" in report.layers[-1].notes[0]


def test_units_do_not_matter() -> None:
    x, y = (torch.from_numpy(a) for a in table(100, 5, 1, 0.3, 0))
    found = []
    for scale, shift in ((1.0, 0.0), (1e-6, 5.0), (1e5, -3e5)):
        model = nn.Linear(5, 1).double()
        sylvinit.initialize_head_(model, (x, y * scale + shift), head_code="ridge")
        found.append((model(x).detach() - shift) / scale)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-8)


def test_fewer_rows_than_features() -> None:
    x, y = (torch.from_numpy(a) for a in table(20, 60, 2, 0.3, 1))
    model = nn.Linear(60, 2).double()
    sylvinit.initialize_head_(model, (x, y), head_code="ridge")
    for j in range(2):
        weight, _, _ = by_hand(x.numpy(), y[:, j].numpy())
        # By hand a matrix of condition 1e10 (the smallest ridge) is inverted: 1e-16 * 1e10.
        np.testing.assert_allclose(
            model.weight[j].detach(), weight, atol=1e-4 * np.abs(weight).max(), rtol=0
        )


def test_targets_of_pure_noise_take_the_largest_ridge_or_say_so() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(30, 1).double()
    sylvinit.initialize_head_(model, (x, y), head_code="ridge")
    new = torch.randn(1000, 30, generator=generator, dtype=torch.float64)
    assert float(model(new).detach().std()) < 0.6  # least squares without a ridge: about 1.7


def test_a_single_row_gives_its_target() -> None:
    model = nn.Linear(3, 2).double()
    x, y = torch.ones(1, 3).double(), torch.tensor([[4.0, -1.0]]).double()
    sylvinit.initialize_head_(model, (x, y), head_code="ridge")
    torch.testing.assert_close(model(x).detach(), y)
