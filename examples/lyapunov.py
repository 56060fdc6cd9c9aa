"""Gramians of linear systems, and feedback designed by derivatives of them.

The system dx = A x dt + B dw is stable if all eigenvalues of A have negative real part. Its
controllability Gramian P, the stationary covariance of x, solves the Lyapunov equation

    A P + P A^T = -B B^T,

a Sylvester equation. With feedback u = K y, y = C x, the mean cost x^T x + u^T u is

    J(K) = tr(P) + tr(K C P C^T K^T),    (A + B K C) P + P (A + B K C)^T = -B B^T.

If all of x is measured (C = I), the best K follows from a Riccati equation, which is the check
here. If only a part of x is measured no such formula is known; derivatives work all the same.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.linalg
import torch

import sylvinit

STATES, INPUTS, OUTPUTS = 6, 2, 3


def gramian(a: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """P of A P + P A^T = -noise."""
    return sylvinit.solve_sylvester(a, a.mT, -noise)


def is_stable(a: torch.Tensor) -> bool:
    return bool(torch.linalg.eigvals(a).real.max() < 0)


def closed_loop(a, b, c, k):
    return a + b @ k @ c


def cost(a, b, c, k):
    p = gramian(closed_loop(a, b, c, k), b @ b.mT)
    return p.trace() + (k @ c @ p @ c.mT @ k.mT).trace()


def design(a, b, c, steps=50):
    """Newton's method from K = 0; steps that cost more or lose stability are halved."""
    k = torch.zeros(b.shape[1], c.shape[0], dtype=a.dtype)

    def of(k):
        return cost(a, b, c, k)

    costs = [of(k).item()]
    for _ in range(steps):
        gradient = torch.func.grad(of)(k).flatten()
        hessian = torch.func.hessian(of)(k).view(k.numel(), k.numel())
        values, vectors = torch.linalg.eigh(hessian)  # not convex: go downhill everywhere
        step = vectors @ ((vectors.mT @ gradient) / values.abs().clamp(min=1e-6))
        if gradient @ step < 1e-12 * costs[-1]:
            return k, costs
        for rate in 0.5 ** torch.arange(40):
            trial = k - rate * step.view_as(k)
            if is_stable(closed_loop(a, b, c, trial)) and of(trial) < costs[-1]:
                break
        k = trial
        costs.append(of(k).item())
    raise RuntimeError("no minimum found")


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(STATES, STATES, dtype=torch.float64, generator=generator)
    a -= (torch.linalg.eigvals(a).real.max() + 0.1) * torch.eye(STATES)
    b = torch.randn(STATES, INPUTS, dtype=torch.float64, generator=generator)

    p = gramian(a, b @ b.mT)
    expected = scipy.linalg.solve_continuous_lyapunov(a.numpy(), -(b @ b.mT).numpy())
    expected = torch.from_numpy(expected)
    error = float((p - expected).norm() / expected.norm())
    least = float(torch.linalg.eigvalsh((p + p.mT) / 2)[0])
    print(f"Gramian: relative difference from SciPy {error:.0e}, least eigenvalue {least:.2g}")
    assert error < 1e-12
    assert least > 0  # (A, B) is controllable

    everything = torch.eye(STATES, dtype=torch.float64)
    k, costs = design(a, b, everything)
    riccati = scipy.linalg.solve_continuous_are(
        a.numpy(), b.numpy(), np.eye(STATES), np.eye(INPUTS)
    )
    best = float(np.trace(b.numpy().T @ riccati @ b.numpy()))
    print(f"state feedback:  cost {costs[0]:.4f} -> {costs[-1]:.4f} in {len(costs) - 1} steps")
    print(f"  by Riccati:    cost {best:.4f}")
    assert abs(costs[-1] - best) < 1e-10 * best
    assert np.allclose(k.numpy(), -b.numpy().T @ riccati, atol=1e-6)

    part = everything[:OUTPUTS]
    k, costs = design(a, b, part)
    print(f"output feedback: cost {costs[0]:.4f} -> {costs[-1]:.4f} in {len(costs) - 1} steps")
    assert is_stable(closed_loop(a, b, part, k))
    assert all(after < before for before, after in pairwise(costs))
    assert best < costs[-1] < 0.9 * costs[0]


if __name__ == "__main__":
    main()
