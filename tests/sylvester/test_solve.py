"""solve_sylvester against independent solutions: shapes, dtypes, layouts, batches."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sylvester_problems import (
    DTYPES,
    eps_of,
    ids,
    kronecker_solution,
    normal,
    real_schur,
    relative_error,
    rotated,
    scipy_solution,
    solver,
    tensor,
    well_separated,
    wide,
    with_and_without,
)

import sylvinit

STRUCTURES = ("auto", "gen", "sym", "pos")
# Largest relative error where |A| + |B| is at most 20 times the separation of the spectra, for the
# data as rounded to their dtype: rounding of the result in single precision (measured 4e-8), a few
# roundings times that condition number in double precision (measured 7e-15).
TOLERANCE = {
    torch.float32: 1.2e-7,
    torch.complex64: 1.2e-7,
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
}


def strided(x: torch.Tensor) -> torch.Tensor:
    storage = torch.full(
        (*x.shape[:-2], 2 * x.shape[-2], 3 * x.shape[-1]), torch.nan, dtype=x.dtype
    )
    storage[..., ::2, ::3] = x
    return storage[..., ::2, ::3]


def offset(x: torch.Tensor) -> torch.Tensor:
    storage = torch.cat((torch.full((3,), torch.nan, dtype=x.dtype), x.flatten()))
    return storage[3:].view(x.shape)


def batch_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim((-2, -1), (0, 1)).contiguous().movedim((0, 1), (-2, -1))


# Views with the same values and another layout in memory.
LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "strided": strided,
    "offset": offset,
    "batch last": batch_last,
    "lazily conjugated": lambda x: torch.conj_physical(x).conj(),
    "lazy adjoint": lambda x: torch.conj_physical(x.mT).contiguous().mH,
    "lazily negated": lambda x: torch._neg_view((-x).contiguous()),
    "imaginary part": lambda x: x if x.is_complex() else torch.complex(x, -x).conj().imag,
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
}


def check(a: torch.Tensor, b: torch.Tensor, q: torch.Tensor, assume: str) -> torch.Tensor:
    """Solve, and compare with the Kronecker system or, above 80 unknowns, with SciPy."""
    before = [wide(x).tobytes() for x in (a, b, q)]
    random = torch.get_rng_state()
    x = sylvinit.solve_sylvester(a, b, q, assume_a=assume)
    assert [wide(x).tobytes() for x in (a, b, q)] == before
    assert torch.equal(torch.get_rng_state(), random)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2], q.shape[:-2])
    assert x.shape == (*batch, *q.shape[-2:])
    assert (x.dtype, x.device) == (q.dtype, q.device)
    assert not x.requires_grad
    assert x.is_contiguous()
    assert not x.is_conj()
    oracle = kronecker_solution if a.shape[-1] * b.shape[-1] <= 80 else scipy_solution
    expected = oracle(wide(a), wide(b), wide(q))
    assert relative_error(x, expected) <= TOLERANCE[q.dtype]
    return x


@with_and_without
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 12),
    d=st.integers(1, 12),
    batches=hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, min_side=1, max_side=3),
    dtype=st.sampled_from(DTYPES),
    assume=st.sampled_from(STRUCTURES),
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 3),
)
def test_equals_the_kronecker_system(compiled, seed, k, d, batches, dtype, assume, layouts) -> None:
    rng = np.random.default_rng(seed)
    structure = rng.choice(["gen", "sym", "pos"]) if assume == "auto" else assume
    shape_a, shape_b, shape_q = batches.input_shapes
    a, _ = well_separated(rng, structure, shape_a, k, d, dtype.is_complex)
    _, b = well_separated(rng, structure, shape_b, k, d, dtype.is_complex)
    q = normal(rng, *shape_q, k, d, complex_=dtype.is_complex)
    operands = [LAYOUTS[name](tensor(x, dtype)) for name, x in zip(layouts, (a, b, q), strict=True)]
    with solver(compiled):
        check(*operands, assume)


@with_and_without
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize(
    ("k", "d"), [(1, 33), (33, 1), (33, 34), (2, 70), (70, 31), (65, 64), (66, 90)]
)
def test_sizes_on_both_sides_of_the_blocks(compiled, dtype, k, d) -> None:
    rng = np.random.default_rng(k + d)
    for assume in ("gen", "sym", "pos"):
        a, b = well_separated(rng, assume, (2,), k, d, dtype.is_complex)
        q = normal(rng, 2, k, d, complex_=dtype.is_complex)
        with solver(compiled):
            check(*(tensor(x, dtype) for x in (a, b, q)), assume)


@with_and_without
@pytest.mark.parametrize("lead", range(2), ids=["blocks from 0", "blocks from 1"])
@pytest.mark.parametrize(("k", "d"), [(33, 33), (40, 70), (70, 40), (66, 67), (130, 5), (5, 131)])
def test_complex_pairs_lie_across_every_split(compiled, k, d, lead) -> None:
    """Quasi-triangular matrices whose 2 x 2 blocks begin at even, then at odd rows."""
    rng = np.random.default_rng(k * d)

    def matrix(n: int) -> np.ndarray:
        pairs = rng.uniform(1, 2, n // 2 + 1) + 1j * rng.uniform(0.3, 1, n // 2 + 1)
        values = np.concatenate((rng.uniform(1, 2, lead), pairs))
        return real_schur(rng, values, noise=0.3 / n**0.5)[:n, :n]  # may cut the last block

    a, b = matrix(k), matrix(d)
    q = normal(rng, k, d)
    with solver(compiled):
        for left, right in ((a, b), (a.T, b.T), (rotated(rng, a), rotated(rng, b))):
            check(*(tensor(x, torch.float64) for x in (left, right, q)), "gen")


@with_and_without
@pytest.mark.parametrize("assume", STRUCTURES)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_known_solution(compiled, assume, dtype) -> None:
    rng = np.random.default_rng(3)
    for k, d in ((3, 3), (4, 7), (7, 4), (20, 50)):
        a, b = (tensor(x, dtype) for x in well_separated(rng, assume, (), k, d, dtype.is_complex))
        x = tensor(normal(rng, k, d, complex_=dtype.is_complex), dtype)
        with solver(compiled):
            found = sylvinit.solve_sylvester(a, b, a @ x + x @ b, assume_a=assume)
        # Q is rounded in the dtype; |A| + |B| is up to 50 times the separation; measured 15 eps.
        assert relative_error(found, wide(x)) <= 100 * eps_of(x)


@with_and_without
@pytest.mark.parametrize("assume", STRUCTURES)
@pytest.mark.parametrize(
    ("k", "d", "batches"),
    [
        (0, 3, ((), (), ())),
        (3, 0, ((), (), ())),
        (0, 0, ((), (), ())),
        (0, 3, ((2,), (), (2,))),
        (3, 0, ((1,), (4, 1), (2,))),
        (2, 3, ((0,), (0,), (0,))),
        (3, 2, ((0,), (0,), (0,))),
        (2, 3, ((), (), (0,))),
        (2, 3, ((0,), (), ())),
        (2, 3, ((), (0,), ())),
        (2, 3, ((2, 1), (0,), (1, 1))),
        (2, 3, ((5, 0, 1), (2,), ())),
        (0, 0, ((0,), (0,), (0,))),
    ],
)
def test_empty(compiled, assume, k, d, batches) -> None:
    dtype = torch.complex64
    shapes = (k, k), (d, d), (k, d)
    a, b, q = (
        torch.ones((*batch, *shape), dtype=dtype)
        for batch, shape in zip(batches, shapes, strict=True)
    )
    if assume == "gen":
        a, b = a.triu() + a, b.triu() + b
    with solver(compiled):
        x = sylvinit.solve_sylvester(a, b, q, assume_a=assume)
    assert x.shape == (*np.broadcast_shapes(*batches), k, d)
    assert x.dtype == dtype
    residual = sylvinit.sylvester_residual(a, b, q, x)
    assert residual.shape == x.shape[:-2]
    assert residual.sum() == 0


@with_and_without
@pytest.mark.parametrize("assume", STRUCTURES)
def test_shared_matrices_in_large_batches(compiled, assume) -> None:
    rng = np.random.default_rng(5)
    for k, d in ((5, 9), (9, 5)):
        a, b = (tensor(x, torch.float64) for x in well_separated(rng, assume, (12,), k, d, False))
        q = tensor(normal(rng, 12, k, d), torch.float64)
        with solver(compiled):
            check(a[0], b, q, assume)
            check(a, b[0], q, assume)
            check(a, b, q[0], assume)
            check(a[0].expand(12, k, k), b[:1].expand(12, d, d), q, assume)
            check(a[:4, None], b[:3], q[0], assume)
            check(a[0], b[0], q, assume)
            check(a[::2], b[::2], q.flip(0)[::2], assume)


def test_diagonal_matrices() -> None:
    """X_ij = Q_ij / (a_i + b_j), to the last bit or two."""
    rng = np.random.default_rng(6)
    values_a, values_b, q = rng.uniform(1, 9, 6), rng.uniform(1, 9, 8), normal(rng, 6, 8)
    a, b = torch.from_numpy(np.diag(values_a)), torch.from_numpy(np.diag(values_b))
    expected = q / (values_a[:, None] + values_b)
    for assume in STRUCTURES:
        x = sylvinit.solve_sylvester(a, b, torch.from_numpy(q), assume_a=assume)
        np.testing.assert_allclose(x, expected, rtol=8 * np.finfo(float).eps)


def test_zero_right_side_gives_exact_zero() -> None:
    rng = np.random.default_rng(7)
    for assume in STRUCTURES:
        a, b = (torch.from_numpy(x) for x in well_separated(rng, assume, (), 5, 7, False))
        x = sylvinit.solve_sylvester(a, b, torch.zeros(5, 7, dtype=a.dtype), assume_a=assume)
        assert torch.equal(x, torch.zeros_like(x))
        assert sylvinit.sylvester_residual(a, b, torch.zeros_like(x), x) == 0


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_residual_is_its_definition(dtype) -> None:
    rng = np.random.default_rng(8)
    a, b, q, x = (
        tensor(normal(rng, *shape, complex_=dtype.is_complex), dtype)
        for shape in ((3, 1, 4, 4), (2, 5, 5), (4, 5), (3, 2, 4, 5))
    )
    found = sylvinit.sylvester_residual(a, b, q, x)
    assert found.dtype == torch.float64
    assert found.shape == (3, 2)
    norm = np.linalg.norm
    for i, j in np.ndindex(3, 2):
        a_, b_, q_, x_ = wide(a[i, 0]), wide(b[j]), wide(q), wide(x[i, j])
        size = (norm(a_) + norm(b_)) * norm(x_) + norm(q_)
        expected = norm(a_ @ x_ + x_ @ b_ - q_) / size
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-13)
    assert sylvinit.sylvester_residual(a * 0, b * 0, q * 0, x * 0).abs().max() == 0


def test_residual_of_a_solution_is_rounding() -> None:
    rng = np.random.default_rng(9)
    for dtype in DTYPES:
        a, b = (tensor(x, dtype) for x in well_separated(rng, "gen", (3,), 6, 8, dtype.is_complex))
        q = tensor(normal(rng, 3, 6, 8, complex_=dtype.is_complex), dtype)
        x = sylvinit.solve_sylvester(a, b, q)
        # Twice the worst measured, 2.51 eps (on an AMD EPYC; below 2 on an Intel Xeon).
        assert sylvinit.sylvester_residual(a, b, q, x).max() <= 5.1 * eps_of(q)


def test_under_no_grad_and_inference_mode() -> None:
    rng = np.random.default_rng(10)
    for assume in STRUCTURES:
        a, b = (torch.from_numpy(x) for x in well_separated(rng, assume, (), 4, 6, False))
        q = torch.from_numpy(normal(rng, 4, 6))
        expected = sylvinit.solve_sylvester(a, b, q, assume_a=assume)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                found = sylvinit.solve_sylvester(
                    a.clone().requires_grad_(), b, q.clone(), assume_a=assume
                )
            assert not found.requires_grad
            assert torch.equal(found, expected)


@with_and_without
@pytest.mark.parametrize("complex_ones", ["a", "b", "q", "aq", "ab"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **ids)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_real_matrices_beside_complex_ones(compiled, complex_ones, dtype, structure) -> None:
    rng = np.random.default_rng(5)
    a, b = well_separated(rng, structure, (), 3, 4, False)
    other_a, other_b = well_separated(rng, structure, (), 3, 4, True)
    operands = {"a": a, "b": b, "q": normal(rng, 3, 4)}
    operands |= {
        name: {"a": other_a, "b": other_b, "q": normal(rng, 3, 4, complex_=True)}[name]
        for name in complex_ones
    }
    wider = torch.complex64 if dtype == torch.float32 else torch.complex128
    given = {
        name: tensor(x, wider if name in complex_ones else dtype) for name, x in operands.items()
    }
    with solver(compiled):
        x = sylvinit.solve_sylvester(**given, assume_a=structure)
    assert x.dtype == wider
    expected = kronecker_solution(*(wide(given[name]) for name in "abq"))
    assert relative_error(x, expected) <= TOLERANCE[wider]
    assert sylvinit.sylvester_residual(**given, x=x) <= 10 * torch.finfo(dtype).eps


def test_the_derivative_for_a_real_matrix_beside_complex_ones_is_real() -> None:
    rng = np.random.default_rng(6)
    a, b = (tensor(x, torch.float64) for x in well_separated(rng, "gen", (), 3, 2, False))
    q = tensor(normal(rng, 3, 2, complex_=True), torch.complex128)
    operands = tuple(x.requires_grad_() for x in (a, b, q))
    assert torch.autograd.gradcheck(sylvinit.solve_sylvester, operands)
