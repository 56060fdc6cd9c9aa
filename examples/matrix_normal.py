"""Maximum likelihood for a noisy matrix-normal signal, by gradients through the solver.

Y (n x m) = Z + noise; the rows of Z are correlated by K, its columns by R, and the noise has
variance s^2:

    cov(vec Y) = K (x) R + s^2 I    (row by row, nm x nm; never formed).

With the solution V of K V R + s^2 V = Y, which is the Sylvester equation

    K V + V (s^2 R^-1) = Y R^-1,

the log likelihood is -1/2 [tr(Y^T V) + sum_ij log(k_i r_j + s^2) + nm log 2 pi], where k and r are
the eigenvalues of K and R. Here K is a squared exponential kernel in space and R is an AR(1)
correlation in time, whose inverse is tridiagonal.
"""

from __future__ import annotations

import math

import torch

import sylvinit

NAMES = ("variance", "length", "rho", "noise")
TRUTH = (2.0, 1.5, 0.8, 0.5)  # of the simulated data; noise is the standard deviation s
PLACES, TIMES, DATA_SETS = 20, 40, 8


def covariances(parameters: torch.Tensor, n: int, m: int):
    """K (..., n, n), R and R^-1 (..., m, m) and s^2 (...); parameters (..., 4), unconstrained."""
    log_variance, log_length, rho, log_noise = parameters[..., None, None].unbind(-3)
    rho = rho.tanh()
    place = torch.linspace(0, 10, n, dtype=parameters.dtype)
    distance = (place[:, None] - place) / log_length.exp()
    k = log_variance.exp() * torch.exp(-0.5 * distance**2)
    time = torch.arange(m, dtype=parameters.dtype)
    r = rho ** (time[:, None] - time).abs()
    ends = torch.zeros(m, dtype=parameters.dtype)
    ends[0] = ends[-1] = 1
    beside = torch.ones(m - 1, dtype=parameters.dtype).diag(1)
    inverse = torch.diag(ends) + torch.diag(1 - ends) * (1 + rho**2)
    inverse = (inverse - rho * (beside + beside.mT)) / (1 - rho**2)
    return k, r, inverse, (2 * log_noise).exp()[..., 0, 0]


def log_likelihood(y: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    n, m = y.shape[-2:]
    k, r, r_inverse, s2 = covariances(parameters, n, m)
    v = sylvinit.solve_sylvester(k, s2[..., None, None] * r_inverse, y @ r_inverse, assume_a="pos")
    fit = (y * v).sum(dim=(-2, -1))
    values_k, values_r = torch.linalg.eigvalsh(k), torch.linalg.eigvalsh(r)
    products = values_k.clamp(min=0)[..., :, None] * values_r[..., None, :]
    log_det = torch.log(products + s2[..., None, None]).sum(dim=(-2, -1))
    return -0.5 * (fit + log_det + n * m * math.log(2 * math.pi))


def dense_log_likelihood(y: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    n, m = y.shape
    k, r, _, s2 = covariances(parameters, n, m)
    covariance = torch.kron(k, r) + s2 * torch.eye(n * m, dtype=y.dtype)
    center = torch.zeros(n * m, dtype=y.dtype)
    return torch.distributions.MultivariateNormal(center, covariance).log_prob(y.flatten())


def simulate(parameters: torch.Tensor, n: int, m: int, count: int, generator) -> torch.Tensor:
    k, r, _, s2 = covariances(parameters, n, m)
    white, noise = torch.randn(2, count, n, m, dtype=parameters.dtype, generator=generator)
    values, vectors = torch.linalg.eigh(k)
    root = vectors * values.clamp(min=0).sqrt()
    return root @ white @ torch.linalg.cholesky(r).mT + s2.sqrt() * noise


def fit(y: torch.Tensor) -> torch.Tensor:
    """Maximum likelihood for each matrix of a batch, all at once: (count, 4) unconstrained."""
    parameters = torch.zeros(len(y), 4, dtype=y.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=40, history_size=32, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -log_likelihood(y, parameters).sum() / y[0].numel()
        value.backward()
        return value

    optimizer.step(loss)
    loss()
    assert parameters.grad.abs().max() < 1e-3, "not at a maximum"
    return parameters.detach()


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    variance, length, rho, noise = torch.tensor(TRUTH, dtype=torch.float64)
    truth = torch.stack((variance.log(), length.log(), rho.atanh(), noise.log()))
    y = simulate(truth, 10, 12, 1, generator)[0]
    at = truth.clone().requires_grad_()
    ours, dense = log_likelihood(y, at), dense_log_likelihood(y, at)
    gradients = [torch.autograd.grad(value, at)[0] for value in (ours, dense)]
    print(f"log likelihood {ours:.10f}, from the 120 x 120 covariance {dense:.10f}")
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)

    found = fit(simulate(truth, PLACES, TIMES, DATA_SETS, generator))
    mean, error = found.mean(dim=0), found.std(dim=0) / math.sqrt(DATA_SETS)
    log_variance, log_length, rho, log_noise = found.T
    found = torch.stack((log_variance.exp(), log_length.exp(), rho.tanh(), log_noise.exp()))
    print(f"{DATA_SETS} data sets of {PLACES} x {TIMES}, each fitted:")
    for name, true, estimates in zip(NAMES, TRUTH, found, strict=True):
        center, spread = estimates.mean(), estimates.std()
        print(f"  {name:8s} true {true:.3f}, estimated {center:.3f} ± {spread:.3f}")
    assert ((mean - truth).abs() < 4 * error).all()


if __name__ == "__main__":
    main()
