"""Batches of small symmetric equations, which are solved side by side, against SciPy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sylvester_problems import (
    eps_of,
    ids,
    normal,
    relative_error,
    scipy_solution,
    tensor,
    well_separated,
    wide,
    without_compiled_module,
)

import sylvinit
from sylvinit.errors import AccuracyWarning, MatrixError, SingularEquationError
from sylvinit.sylvester import lapack

pytestmark = pytest.mark.skipif(not lapack.AVAILABLE, reason="no compiled module")

REALS = (torch.float32, torch.float64)


def equations(structure, count, k, d, dtype, seed=0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    a, b = well_separated(rng, structure, (count,), k, d, False)
    return [tensor(x, dtype) for x in (a, b, normal(rng, count, k, d))]


@given(
    st.sampled_from(("sym", "pos")),
    st.sampled_from(("auto", None)),
    st.integers(1, 19),
    st.sampled_from([1, 2, 5, 9, 32, 33, 48, 49]),
    st.sampled_from([1, 3, 9, 33, 50]),
    st.sampled_from(REALS),
    st.integers(0, 2**32 - 1),
)
def test_residual_and_solution(structure, assume, count, k, d, dtype, seed) -> None:
    count = min(count, 3) if max(k, d) > 9 else count
    a, b, q = equations(structure, count, k, d, dtype, seed)
    if dtype == torch.float32:  # rounding has kept them symmetric: both triangles are the same
        assert torch.equal(a, a.mT)
    x = sylvinit.solve_sylvester(a, b, q, assume_a=assume or structure)
    assert x.dtype == dtype
    # Far below what is handed out at all (1e-12 and 1e-5). Separations are 0.2 of the norms and
    # more, so errors are a few times that.
    bound = 1e-14 if dtype == torch.float64 else 4 * eps_of(q)
    assert float(sylvinit.sylvester_residual(a, b, q, x).max()) <= bound
    assert relative_error(x, scipy_solution(wide(a), wide(b), wide(q))) <= 50 * bound


@pytest.mark.parametrize("dtype", REALS, **ids)
@pytest.mark.parametrize("structure", ["sym", "pos"])
def test_auto_is_what_is_asked_for_by_name(structure, dtype) -> None:
    a, b, q = equations(structure, 6, 7, 9, dtype)
    expected = sylvinit.solve_sylvester(a, b, q, assume_a=structure)
    assert torch.equal(sylvinit.solve_sylvester(a, b, q), expected)


@pytest.mark.parametrize("name", ["a", "b", "q"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", REALS, **ids)
def test_not_finite_is_refused_by_name(name, value, dtype) -> None:
    operands = dict(zip("abq", equations("pos", 10, 4, 5, dtype), strict=True))
    operands[name][7, 2, 2] = value
    for assume in ("auto", "pos"):
        with pytest.raises(MatrixError, match=f"{name} must be finite"):
            sylvinit.solve_sylvester(**operands, assume_a=assume)


def test_one_unsymmetric_matrix_makes_the_batch_general() -> None:
    a, b, q = equations("pos", 10, 4, 5, torch.float64)
    a[6, 0, 1] += 0.1
    x = sylvinit.solve_sylvester(a, b, q)
    assert relative_error(x, scipy_solution(wide(a), wide(b), wide(q))) <= 1e-13


def test_errors_name_the_entry_of_the_batch() -> None:
    a, b, q = equations("sym", 10, 4, 4, torch.float64)
    b[7] = -a[7]
    parts = [x.unflatten(0, (2, 5)) for x in (a, b, q)]
    with pytest.raises(SingularEquationError, match=r"batch entry \(1, 2\)"):
        sylvinit.solve_sylvester(*parts)
    a, b, q = equations("pos", 10, 4, 4, torch.float64)
    a[8] -= 2.6 * torch.eye(4, dtype=torch.float64)
    with pytest.raises(MatrixError, match=r"a must be positive semi-definite .*entry \(8,\)"):
        sylvinit.solve_sylvester(a, b, q, assume_a="pos")


def test_spectra_that_nearly_meet_are_warned_of_within_a_batch() -> None:
    a, b, q = equations("pos", 9, 3, 3, torch.float64)
    a[4], b[4] = torch.diag(torch.tensor([1e-9, 1.0, 2.0])), torch.diag(torch.tensor([0.0, 1, 2]))
    for assume in ("auto", "pos"):
        with pytest.warns(AccuracyWarning, match=r"batch entry \(4,\).* = 2.5e-10"):
            x = sylvinit.solve_sylvester(a, b, q, assume_a=assume)
        assert float(sylvinit.sylvester_residual(a, b, q, x).max()) <= 1e-14


@pytest.mark.parametrize("dtype", REALS, **ids)
def test_zero_rule_holds_for_single_entries(dtype) -> None:
    """Two of nine equations are semi-definite: their dropped pairs are zero, the rest is solved."""
    a, b, q = equations("pos", 9, 4, 6, dtype)
    for i in (2, 8):
        a[i] = torch.diag(torch.tensor([0.0, 0, 1, 2]))
        b[i] = torch.diag(torch.tensor([0.0, 0, 0, 1, 2, 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sylvinit.solve_sylvester(a, b, q, assume_a="pos")
    assert x[2, :2, :3].abs().max() <= eps_of(q)
    with without_compiled_module():
        expected = sylvinit.solve_sylvester(a, b, q, assume_a="pos")
    assert relative_error(x, wide(expected)) <= 20 * eps_of(q)


def test_float32_solution_beyond_its_range_is_refused() -> None:
    a = torch.full((5, 1, 1), 1e-30)
    q = torch.full((5, 1, 1), 1e30)
    with pytest.raises(sylvinit.errors.SolverError, match=r"too large for torch\.float32"):
        sylvinit.solve_sylvester(a, a, q)


def test_operands_are_left_alone_and_parameters_are_taken() -> None:
    a, b, q = equations("pos", 6, 5, 7, torch.float64)
    before = [x.clone() for x in (a, b, q)]
    with torch.no_grad():
        x = sylvinit.solve_sylvester(torch.nn.Parameter(a), b, torch.nn.Parameter(q))
    assert type(x) is torch.Tensor
    assert not x.requires_grad
    assert all(torch.equal(*pair) for pair in zip((a, b, q), before, strict=True))


@pytest.mark.parametrize("dtype", REALS, **ids)
def test_derivatives_are_those_of_the_same_solution(dtype) -> None:
    """grad Q solves the adjoint equation A Y + Y B = G."""
    a, b, q = equations("pos", 6, 5, 7, dtype)
    plain = sylvinit.solve_sylvester(a, b, q)
    q.requires_grad_()
    x = sylvinit.solve_sylvester(a, b, q)
    assert relative_error(x, wide(plain)) <= 20 * eps_of(q)
    (gradient,) = torch.autograd.grad(x.sum(), q)
    expected = scipy_solution(wide(a), wide(b), np.ones(q.shape))
    assert relative_error(gradient, expected) <= 50 * eps_of(q)
