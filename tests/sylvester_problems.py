"""Problems A X + X B = Q and oracles for them in NumPy and SciPy, without code of sylvinit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import scipy.linalg
import torch

from sylvinit.sylvester import lapack

Array = np.ndarray

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
WIDE_DTYPES = (torch.float64, torch.complex128)
ids = {"ids": lambda value: str(value).removeprefix("torch.")}


@contextmanager
def without_compiled_module() -> Iterator[None]:
    """SciPy and torch do the work, as after an installation without a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lapack, "AVAILABLE", False)
        yield


def solver(compiled: bool):
    """A context in which solve_sylvester runs with or without the compiled module."""
    return nullcontext() if compiled else without_compiled_module()


# An argument ``compiled`` for solver().
with_and_without = pytest.mark.parametrize(
    "compiled",
    [True, False] if lapack.AVAILABLE else [False],
    ids=lambda compiled: "compiled" if compiled else "fallback",
)


def eps_of(x: torch.Tensor) -> float:
    return torch.finfo(x.dtype).eps


def tensor(x: Array, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(dtype)


# ---------------------------------------------------------------------------------------- matrices


def normal(rng: np.random.Generator, *shape: int, complex_: bool = False) -> Array:
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


def unitary(rng: np.random.Generator, n: int, complex_: bool = False) -> Array:
    return np.linalg.qr(normal(rng, n, n, complex_=complex_))[0]


def hermitian(rng: np.random.Generator, values: Array, complex_: bool = False) -> Array:
    """A Hermitian matrix with these eigenvalues, Hermitian to the bit."""
    u = unitary(rng, len(values), complex_) if len(values) > 1 else np.eye(1)
    a = (u * np.asarray(values)) @ u.conj().T
    return (a + a.conj().T) / 2


def real_schur(rng: np.random.Generator, values: Array, noise: float = 1.0) -> Array:
    """A real quasi-triangular matrix; a complex value stands for itself and its conjugate."""
    blocks = []
    for value in np.asarray(values):
        if np.imag(value) == 0:
            blocks.append(np.array([[np.real(value)]]))
        else:  # the off-diagonal entries differ in size, as those of LAPACK do
            re, im = np.real(value), np.imag(value)
            blocks.append(np.array([[re, 2 * im], [-im / 2, re]]))
    t = scipy.linalg.block_diag(*blocks)
    start = 0
    for block in blocks:
        end = start + len(block)
        t[start:end, end:] = noise * normal(rng, end - start, len(t) - end)
        start = end
    return t


def rotated(rng: np.random.Generator, t: Array) -> Array:
    u = unitary(rng, len(t), np.iscomplexobj(t)) if len(t) > 1 else np.eye(1)
    return u @ t @ u.conj().T


def well_separated(
    rng: np.random.Generator, structure: str, batch: tuple[int, ...], k: int, d: int, complex_: bool
) -> tuple[Array, Array]:
    """Batches of A and B of the structure with |a_i + b_j| of about 1 or more, norms of about 3.

    "gen": real matrices have complex pairs. "sym": the spectrum of A lies on both sides of B's.
    """

    def each(n: int, make: Callable[[], Array]) -> Array:
        flat = [make() for _ in range(int(np.prod(batch)))]
        dtype = np.complex128 if complex_ else np.float64
        return np.array(flat, dtype=dtype).reshape(*batch, n, n)

    def general(n: int) -> Array:
        # Eigenvalues of a random matrix fill a disk of radius 1 (2 ** 0.5 where complex).
        noise = normal(rng, n, n, complex_=complex_) / max(n, 4) ** 0.5
        return 2.5 * np.eye(n) + noise

    if structure in ("gen", "auto"):
        return each(k, lambda: general(k)), each(d, lambda: general(d))
    low = 0.5 if structure == "pos" else -1.0

    def outer() -> Array:
        values = rng.uniform(2, 3, k)
        if structure == "sym":
            values = values * rng.choice([-1, 1], k)
        return hermitian(rng, values, complex_)

    return each(k, outer), each(d, lambda: hermitian(rng, rng.uniform(low, 1, d), complex_))


# ----------------------------------------------------------------------------------------- oracles


def wide(x: torch.Tensor) -> Array:
    """The same values in double precision."""
    x = x.detach().resolve_conj().resolve_neg()
    return x.to(torch.complex128 if x.is_complex() else torch.float64).numpy()


def kronecker_system(a: Array, b: Array) -> Array:
    """The matrix of X -> A X + X B for the entries of X in row-major order."""
    k, d = len(a), len(b)
    return np.kron(a, np.eye(d)) + np.kron(np.eye(k), b.T)


def each_equation(
    solve: Callable[[Array, Array, Array], Array], a: Array, b: Array, q: Array
) -> Array:
    """Solve every equation of batches that broadcast."""
    k, d = q.shape[-2:]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2], q.shape[:-2])
    a, b, q = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b, q))
    x = np.empty((*batch, k, d), dtype=np.result_type(a, b, q))
    for at in np.ndindex(*batch):
        x[at] = solve(a[at], b[at], q[at])
    return x


def kronecker_solution(a: Array, b: Array, q: Array) -> Array:
    return each_equation(
        lambda a, b, q: np.linalg.solve(kronecker_system(a, b), q.ravel()).reshape(q.shape), a, b, q
    )


def scipy_solution(a: Array, b: Array, q: Array) -> Array:
    return each_equation(scipy.linalg.solve_sylvester, a, b, q)


def relative_error(x: torch.Tensor | Array, expected: Array) -> float:
    """The largest of a batch, in Frobenius norms."""
    found = wide(x) if isinstance(x, torch.Tensor) else x
    assert found.shape == expected.shape
    if not expected.size:
        return 0.0
    size = np.linalg.norm(expected, axis=(-2, -1))
    error = np.linalg.norm(found - expected, axis=(-2, -1))
    return float((error / np.where(size > 0, size, 1)).max())


def residual(a: Array, b: Array, q: Array, x: Array) -> float:
    """|A X + X B - Q| / ((|A| + |B|) |X| + |Q|) of one equation, in Frobenius norms."""
    norm = np.linalg.norm
    size = (norm(a) + norm(b)) * norm(x) + norm(q)
    return float(norm(a @ x + x @ b - q) / size) if size else 0.0
