r"""The single filter of Theorem 3.1: gradient descent on samples symmetric about the optimum.

A filter w of p weights is trained to y = w* . X with w* = (1, 0, ..., 0), where the prediction is
max(w . X, 0) and the loss (y - max(w . X, 0))^2. The 2^p samples are

    X = (1 + a_0, a_1, ..., a_{p-1}),   a_i in {-d_i, d_i},

all combinations of signs, with distances d_i in [0, 1]. Gradient descent with the rate \lambda is

    w <- w - \lambda / |S| \sum_X \nabla_w f(X, w),                                              (1)
    \nabla_w f(X, w) = -2 ((w* - w) . X) X if w . X > 0, else 0.                                 (2)

While all samples are active (w . X > 0), the mean of -\nabla is 2 M (w* - w) with

    M = mean of X X^T = diag(1 + d_0^2, d_1^2, ..., d_{p-1}^2):

an entry off the diagonal averages a product with some a_j, j > 0, that is independent of the other
factor and has the mean zero. Hence

    w_0 <- w_0 + 2 \lambda (1 + d_0^2) (1 - w_0),                                                (3)
    w_i <- w_i - 2 \lambda d_i^2 w_i                  for i > 0,

each coordinate on its own, which closed_form gives. The paper's equation (4) reads instead

    w_i <- w_i - 2 \lambda (2 (w*_0 - w_0) d_i + w_i d_i^2) w_i,                                 (4)

which printed follows. It is not what gradient descent does: in its derivation, equation
(9), the terms in w*_0 - w_0 have opposite signs on the two halves of the samples, a_i = d_i and
a_i = -d_i, and cancel, but are added up; and the factor w_i at the end has no origin there, -\nabla
being linear in w. What the paper concludes stands: w_0 moves at a rate of at least 2 \lambda, and
w_i at one that vanishes with d_i^2, so that noisy directions take long to be unlearned.

Assumption 1 of the theorem, samples with positive coordinates, contradicts assumption 2, which has
a_i = -d_i for i > 0. Nothing here needs it: what counts is that all samples are active, see
all_active.

Source: Schneider, "Correlated Initialization for Correlated Data", section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

Vector = Tensor | Sequence[float]


def samples(distances: Vector) -> Tensor:
    """X, (2^p, p): a row for every combination of signs, for distances d (p,) in [0, 1].

    In the order of ``itertools.product((-1, 1), repeat=p)``; assumption 2 of theorem 3.1.
    """
    d = _vector(distances)
    every_sign = torch.tensor(list(product((-1.0, 1.0), repeat=len(d))), dtype=torch.float64)
    x = every_sign * d
    x[:, 0] += 1
    return x


def all_active(weight: Vector, distances: Vector) -> bool:
    r"""Whether w . X > 0 for all samples X, assumption 4 of theorem 3.1.

    The least w . X is w_0 - \sum_i |w_i| d_i.
    """
    w = _vector(weight)
    return bool(w[0] > (w.abs() * _vector(distances)).sum())


def gradient_descent(start: Vector, distances: Vector, *, rate: float, steps: int) -> Tensor:
    """Gradient descent on all samples, equations (1) and (2), with inactive samples left out.

    Returns:
        w before the first and after every step, (steps + 1, p) in float64.
    """
    x, w = samples(distances), _vector(start)
    target = x[:, 0]  # w* . X
    path = [w]
    for _ in range(steps):
        output = x @ w
        error = torch.where(output > 0, target - output, 0.0)
        w = w + (2 * rate / len(x)) * (error @ x)
        path.append(w)
    return torch.stack(path)


def closed_form(start: Vector, distances: Vector, *, rate: float, steps: int) -> Tensor:
    r"""The same as long as all samples are active, one coordinate at a time.

    After k steps w*_i - w_i is (1 - 2 \lambda m_i)^k times what it was at the beginning, with
    m_0 = 1 + d_0^2 and m_i = d_i^2 for i > 0: equation (3), and what has to stand in place of (4).
    """
    d, w = _vector(distances), _vector(start)
    optimum, moments = torch.zeros_like(d), d.square()
    optimum[0], moments[0] = 1, 1 + d[0].square()
    powers = torch.arange(steps + 1, dtype=torch.float64)[:, None]
    return optimum - (1 - 2 * rate * moments) ** powers * (optimum - w)


def printed(start: Vector, distances: Vector, *, rate: float, steps: int) -> Tensor:
    """Equations (3) and (4) as they are printed, for comparison; see the module about (4)."""
    d, w = _vector(distances), _vector(start)
    path = [w]
    for _ in range(steps):
        gap = 1 - w[0]
        following = w - 2 * rate * (2 * gap * d + w * d.square()) * w
        following[0] = w[0] + 2 * rate * (1 + d[0].square()) * gap
        w = following
        path.append(w)
    return torch.stack(path)


def _vector(value: Vector) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
