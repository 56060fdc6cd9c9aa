"""The output variance of a stack of layers: table 1 of the second paper, as it follows.

One channel, filters of k x k taps of variance v, ReLU between layers, no bias. The paper's table
gives the powers k^(2 l) and k^l; its own equations 14 to 16 give k^4 and k^2 for every layer. Its
count of layers is off by one (from y_1 to y_l there are l - 1 steps), and case (C), said to be
analogous, is not: behind the first layer the inputs overlap, so they are correlated.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["equal", "independent"]


def propagated_variance(
    kernel: int, layers: int, *, inputs: Kind, weights: Kind, weight_variance: float
) -> float:
    """Var[y_l] of a stack of l convolutions, expected over weights and inputs of variance 1.

    "Correlated Initialization for Correlated Data", table 1, cases A (inputs and weights equal
    within a filter), B (inputs equal, weights independent), C (the other way round) and D (both
    independent). With n = k^2 and v the variance of a weight:

        A  Var[y_1] = n^2 v,  Var[y_l] = Var[y_1] (n^2 v / 2)^(l - 1)    (eqs. 13, 14)
        B  Var[y_1] = n v,    Var[y_l] = Var[y_1] (n v / 2)^(l - 1)      (eqs. 15, 16)
        D  as B                                                          (He et al. 2015)
        C  Var[y_1] = n v,    Var[y_l] = v^l 2^(2 - l) sum_st b(s) b(t) K(s - t) for l >= 2

    where b is the box of k x k ones convolved with itself l - 2 times, and K(s - t) =
    E[relu(g_s) relu(g_t)] of the moving sums g of the white input: with rho their correlation,
    the product of (1 - |lag| / k) over both axes,

        K = n (sqrt(1 - rho^2) + rho (pi - arccos(rho))) / (2 pi).

    Since b sums to n^(l - 1), C grows like A, by n^2 v / 2 in every layer, up to a factor between
    1 / pi and 1 for what the first layer leaves of the correlation. Beyond float64 it is inf.

    Args:
        kernel: k.
        layers: l, at least 1.
        inputs: "equal" pixels, or "independent" ones, N(0, 1) in either case.
        weights: of one filter: all "equal", or "independent", N(0, v) in either case.
        weight_variance: v, positive.
    """
    v, n = weight_variance, kernel * kernel
    first, growth = n * v, n * v / 2
    if weights == "equal":
        growth *= n
        first *= n if inputs == "equal" else _overlap(kernel, layers)
    try:
        return first * growth ** (layers - 1)
    except OverflowError:
        return math.inf


def _overlap(kernel: int, layers: int) -> float:
    """What case C has of n v (n^2 v / 2)^(l - 1): the mean of 2 K / n over b(s) b(t)."""
    if layers == 1:
        return 1.0
    box = share = torch.full((kernel,), 1 / kernel, dtype=torch.float64)
    for _ in range(layers - 2):
        box = _convolve(box, share)
    pairs = _convolve(box, box)  # how often two positions of one axis have a lag
    reach = len(box) - 1
    lag = torch.arange(-reach, reach + 1, dtype=torch.float64).abs()
    axis = (1 - lag / kernel).clamp(min=0)
    rho = axis[:, None] * axis[None, :]
    arc = (1 - rho.square()).clamp(min=0).sqrt() + rho * (math.pi - torch.arccos(rho))
    return float((pairs[:, None] * pairs[None, :] * arc).sum()) / math.pi


def _convolve(a: Tensor, b: Tensor) -> Tensor:
    return F.conv1d(a[None, None], b.flip(0)[None, None], padding=len(b) - 1)[0, 0]


def simulated_variance(
    kernel: int,
    layers: int,
    *,
    inputs: Kind,
    weights: Kind,
    weight_variance: float,
    draws: int,
    generator: torch.Generator,
) -> tuple[float, float]:
    """The same by drawing networks: the mean of y_l^2, and its standard error.

    Args:
        kernel, layers, inputs, weights, weight_variance: as in propagated_variance.
        draws: networks, each with an input of its own; at least 2. The tails are heavy (a product
            of 2 l - 1 random factors): a standard error of 1 % takes 10^5 to 10^6 for three layers.
        generator: of the random numbers, on the CPU.
    """
    deviation = math.sqrt(weight_variance)
    total = square = 0.0
    chunk = 20_000
    for begin in range(0, draws, chunk):
        count = min(chunk, draws - begin)
        y = _networks(count, kernel, layers, inputs, weights, deviation, generator) ** 2
        total += float(y.sum())
        square += float(y.square().sum())
    mean = total / draws
    return mean, math.sqrt(max(square / draws - mean**2, 0.0) / (draws - 1))


def _networks(
    count: int,
    kernel: int,
    layers: int,
    inputs: Kind,
    weights: Kind,
    deviation: float,
    generator: torch.Generator,
) -> Tensor:
    """One output pixel of every network, (count,)."""
    side = layers * (kernel - 1) + 1
    shape = (1, 1) if inputs == "equal" else (side, side)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    x = normal(count, *shape).expand(count, side, side)
    for layer in range(layers):
        taps = (1, 1) if weights == "equal" else (kernel, kernel)
        w = normal(count, 1, *taps) * deviation
        w = w.expand(count, 1, kernel, kernel)
        # A group for each network: all of them at once.
        y = F.conv2d(x[None], w.contiguous(), groups=count)[0]
        x = y.relu() if layer < layers - 1 else y
    return x[:, 0, 0].double()
