"""Oracles and problems for the tests of derivatives and transforms of the Sylvester solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sylvinit import solve_sylvester

Function = Callable[..., Tensor]

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def kronecker_solve(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """X of A X + X B = Q from its Kronecker system; differentiable, batch dimensions broadcast."""
    k, d = a.shape[-1], b.shape[-1]
    eye_k, eye_d = (torch.eye(n, dtype=a.dtype) for n in (k, d))
    left = torch.einsum("...ij,pq->...ipjq", a, eye_d)
    right = torch.einsum("ij,...qp->...ipjq", eye_k, b)
    system = (left + right).reshape(*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), k * d, -1)
    x = torch.linalg.solve(system, q.reshape(*q.shape[:-2], k * d, 1))
    return x.reshape(*x.shape[:-2], k, d)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same ones (rounded) for every dtype of a kind."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=wide, generator=generator).to(dtype)


def hermitian(t: Tensor) -> Tensor:
    """(t + t^H) / 2, Hermitian to the bit."""
    return (t + t.mH) / 2


def matrix(structure: str, t: Tensor, shift: float) -> Tensor:
    """A matrix as ``assume_a=structure`` wants it, from any square t.

    Entries of t are expected to be about 1 / sqrt(n); then eigenvalues lie within about 2 of
    ``shift`` ("pos": between 0.5 and about 5, whatever the shift).
    """
    eye = torch.eye(t.shape[-1], dtype=t.dtype)
    if structure == "gen":
        return t + shift * eye
    if structure == "pos":
        return hermitian(t @ t.mH) + 0.5 * eye
    return hermitian(t) + shift * eye


def loss(x: Tensor) -> Tensor:
    """Real, not linear in x, and different in every entry of a matrix."""
    shape = x.shape[-2:]
    weights = torch.arange(1, shape.numel() + 1, dtype=x.real.dtype).cos().reshape(shape)
    if x.is_complex():
        weights = weights * (1 + 0.5j)
    return (x * weights).real.sum() + x.abs().pow(2).sum()


def parameters(
    k: int,
    d: int,
    dtype: torch.dtype = torch.float64,
    batches: Sequence[tuple[int, ...]] = ((), (), ()),
    seed: int = 0,
) -> list[Tensor]:
    """What :func:`matrix` makes A and B from, and Q; one batch shape each."""
    batch_a, batch_b, batch_q = batches
    return [
        random(*batch_a, k, k, dtype=dtype, seed=seed) / k**0.5,
        random(*batch_b, d, d, dtype=dtype, seed=seed + 1) / d**0.5,
        random(*batch_q, k, d, dtype=dtype, seed=seed + 2),
    ]


def equation_of(structure: str, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """A with eigenvalues around -2 and B with eigenvalues around 7 ("pos": both positive)."""
    return matrix(structure, t, -2.0), matrix(structure, s, 7.0)


def near(found: Any, expected: Tensor, tolerance: float) -> None:
    """No entry is off by more than ``tolerance`` of the largest one (or of 1 if that is larger)."""
    assert found.shape == expected.shape
    size = max(1.0, float(expected.detach().abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(
        found.detach(), expected.detach().to(found.dtype), rtol=0, atol=tolerance * size
    )


def solution(structure: str) -> Function:
    """X as a function of what A and B are made from, and Q."""

    def function(t: Tensor, s: Tensor, q: Tensor) -> Tensor:
        a, b = equation_of(structure, t, s)
        return solve_sylvester(a, b, q, assume_a=structure)

    return function


def oracle(structure: str) -> Function:
    """The same from the Kronecker system."""

    def function(t: Tensor, s: Tensor, q: Tensor) -> Tensor:
        return kronecker_solve(*equation_of(structure, t, s), q)

    return function


def loss_of(function: Function) -> Function:
    """The loss of what the function returns."""
    return lambda *inputs: loss(function(*inputs))
