"""sylvester_factor: one decomposition, many right sides, scales and shifts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers import minimum_norm_solution
from sylvester_helpers import (
    DTYPES,
    equation_of,
    hermitian,
    kronecker_solve,
    loss,
    near,
    parameters,
    random,
)
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

import sylvinit
from sylvinit import solve_sylvester, sylvester_factor
from sylvinit.errors import MatrixError, OptionError, OptionTypeError, SingularEquationError
from sylvinit.sylvester import lapack

F64, C128 = torch.float64, torch.complex128
STRUCTURES = ("gen", "sym", "pos", "auto")
# (scale, shift) for which the equations of `pair` are well conditioned.
WEIGHTS = ((1.0, 0.0), (0.5, 2), (3, 0.25), (0.125, 3.0))
# Against solve_sylvester or the Kronecker system (in the same precision), relative to the largest
# entry: a few eps of single precision (measured 2.4e-7); in double precision measured 1.4e-15.
TOLERANCE = {
    torch.float32: 5e-6,
    torch.complex64: 5e-6,
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
}


@pytest.fixture(params=["compiled", "python"])
def module(request, monkeypatch) -> str:
    """With and without the compiled module."""
    if request.param == "python":
        monkeypatch.setattr(lapack, "AVAILABLE", False)
    elif not lapack.AVAILABLE:
        pytest.skip(f"no compiled module: {lapack.REASON}")
    return request.param


def pair(structure: str, k: int, d: int, dtype: torch.dtype, batches=((), ())) -> list[Tensor]:
    """A and B with positive real parts of their eigenvalues ("sym" included)."""
    t, s, _ = parameters(k, d, dtype, (*batches, ()))
    if structure == "pos":
        return list(equation_of("pos", t, s))
    a, b = equation_of("sym" if structure == "sym" else "gen", t, s)
    return [a + 5 * torch.eye(k, dtype=dtype), b]


def combined(b: Tensor, scale: float | Tensor, shift: float | Tensor) -> Tensor:
    """scale B + shift I."""
    scale, shift = (torch.as_tensor(x, dtype=b.real.dtype) for x in (scale, shift))
    identity = torch.eye(b.shape[-1], dtype=b.dtype)
    return scale[..., None, None] * b + shift[..., None, None] * identity


# --------------------------------------------------------------------------------------- solutions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_solve(structure: str, dtype: torch.dtype, module: str) -> None:
    for k, d in ((3, 5), (5, 3), (4, 1), (1, 4), (2, 2)):
        a, b = pair(structure, k, d, dtype)
        factors = sylvester_factor(a, b, assume_a=structure)
        for seed, (scale, shift) in enumerate(WEIGHTS):
            q = random(k, d, dtype=dtype, seed=seed)
            x = factors.solve(q, scale=scale, shift=shift)
            assert x.dtype == dtype
            near(x, kronecker_solve(a, combined(b, scale, shift), q), TOLERANCE[dtype])
            same = solve_sylvester(a, combined(b, scale, shift), q, assume_a=structure)
            near(x, same, TOLERANCE[dtype])
            asked = torch.tensor(scale, dtype=a.real.dtype), torch.tensor(shift, dtype=a.real.dtype)
            assert torch.equal(factors.solve(q, scale=asked[0], shift=asked[1]), x)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_batches(structure: str, dtype: torch.dtype, module: str) -> None:
    cases = (
        ((), (), (), (4,), ()),  # a sweep over scale
        ((), (), (4,), (4,), (4,)),
        ((2, 1), (3,), (), (), (3,)),
        ((3,), (3,), (), (2, 1), ()),  # a and b with batches, q without
        ((), (), (3,), (), (2, 1)),
        ((1,), (), (5, 1, 1), (2, 1), (3,)),
    )
    for k, d in ((2, 4), (4, 2)):
        for batch_a, batch_b, batch_q, batch_scale, batch_shift in cases:
            a, b = pair(structure, k, d, dtype, (batch_a, batch_b))
            q = random(*batch_q, k, d, dtype=dtype)
            scale = random(*batch_scale, seed=1).abs() + 0.1
            shift = random(*batch_shift, seed=2).abs()
            factors = sylvester_factor(a, b, assume_a=structure)
            x = factors.solve(q, scale=scale, shift=shift)
            near(x, kronecker_solve(a, combined(b, scale, shift), q), 1e-12)
            assert factors.separation(scale=scale, shift=shift).shape == torch.broadcast_shapes(
                batch_a, batch_b, batch_scale, batch_shift
            )


@pytest.mark.parametrize("structure", ["sym", "pos"])
def test_matrices_of_the_size_of_a_layer(structure: str, module: str) -> None:
    a, b = pair(structure, 40, 90, F64)
    q = random(40, 90)
    for scale in (1e-3, 1e3):
        x = sylvester_factor(a, b, assume_a=structure).solve(q, scale=scale)
        assert sylvinit.sylvester_residual(a, scale * b, q, x) < 1e-15


@pytest.mark.parametrize("structure", ["gen", "sym", "pos"])
def test_single_precision_near_collisions(structure: str) -> None:
    """scale B rounds to float32: other matrices than those whose factors are at hand."""
    for seed, scale in enumerate([0.1, 1 / 3, 7.3] * 5):
        bases = [torch.linalg.qr(random(6, 6, seed=seed + i))[0] for i in (0, 50)]
        values = torch.linspace(1e-5, 1, 6, dtype=F64)
        a, b = (hermitian((u * values) @ u.T).float() for u in bases)
        b = (b / scale).contiguous()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sylvinit.errors.AccuracyWarning)
            x = sylvester_factor(a, b, assume_a=structure).solve(random(6, 6).float(), scale=scale)
            y = solve_sylvester(a, scale * b, random(6, 6).float(), assume_a=structure)
        near(x, y, 1e-3)  # (eps / 1e-5)^2 = 1.4e-4 after one refinement


def test_empty_equations(module: str) -> None:
    for structure in STRUCTURES:
        for k, d in ((0, 3), (3, 0), (0, 0)):
            a, b = torch.eye(k), torch.eye(d)
            x = sylvester_factor(a, b, assume_a=structure).solve(torch.zeros(k, d), scale=2.0)
            assert x.shape == (k, d)
        none = sylvester_factor(torch.ones(0, 2, 2), torch.eye(3), assume_a="gen")
        assert none.solve(torch.ones(2, 3), scale=2.0).shape == (0, 2, 3)


# -------------------------------------------------------------------------- spectra, separation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_eigenvalues_and_separation(structure: str, dtype: torch.dtype, module: str) -> None:
    # eps times a condition number of eigenvalues below 10; worst measured 3e-15 and 1e-6.
    tolerance = 1e-5 if dtype.to_real() == torch.float32 else 1e-12
    for k, d in ((5, 6), (1, 4)):
        a, b = pair(structure, k, d, dtype, ((2,), ()))
        factors = sylvester_factor(a, b, assume_a=structure)
        for found, matrices in zip(factors.eigenvalues(), (a, b), strict=True):
            assert found.shape == matrices.shape[:-1]
            assert found.is_complex() == (structure in ("gen", "auto"))
            expected = np.linalg.eigvals(matrices.numpy())
            for one, other in zip(
                found.numpy().reshape(-1, found.shape[-1]),
                expected.reshape(-1, found.shape[-1]),
                strict=True,
            ):
                gaps = np.abs(one[:, None] - other)
                assert gaps.min(axis=0).max() <= tolerance * np.abs(other).max()
                assert gaps.min(axis=1).max() <= tolerance * np.abs(other).max()
        for scale, shift in (*WEIGHTS, (-2.0, 1.0)):
            values_a = np.linalg.eigvals(a.numpy())
            values_b = scale * np.linalg.eigvals(b.numpy()) + shift
            least = np.abs(values_a[..., :, None] + values_b).min(axis=(-2, -1))
            found = factors.separation(scale=scale, shift=shift)
            np.testing.assert_allclose(found.numpy(), least, rtol=0, atol=tolerance * 20)


def test_conjugate_pairs(module: str) -> None:
    """Real Schur forms have blocks for them; three in a row, and one at either end."""
    blocks = [torch.tensor([[r, i], [-i, r]], dtype=F64) for r, i in ((1, 2), (3, 0.5), (1, 2))]
    basis = random(7, 7, seed=3)
    for end in (0, 6):
        a = torch.block_diag(*blocks, torch.tensor([[9.0]], dtype=F64)).roll((end, end), (0, 1))
        a = basis @ a @ torch.linalg.inv(basis)
        values, _ = sylvester_factor(a, torch.eye(2, dtype=F64)).eigenvalues()
        expected = np.array([1 + 2j, 1 - 2j, 3 + 0.5j, 3 - 0.5j, 1 + 2j, 1 - 2j, 9])
        gaps = np.abs(values.numpy()[:, None] - expected)
        # 1 +- 2i are double: their rounding is up to eps times the condition of the basis.
        assert max(gaps.min(axis=0).max(), gaps.min(axis=1).max()) < 1e-11


def test_automatic_structure_and_repr() -> None:
    a, b = torch.eye(2), torch.eye(3)
    assert sylvester_factor(a, b).structure == "sym"
    assert sylvester_factor(a + torch.ones(2, 2).triu(1), b).structure == "gen"
    assert sylvester_factor(a, b, assume_a="pos").structure == "pos"
    assert repr(sylvester_factor(a, b)) == (
        "SylvesterFactors(a=(2, 2), b=(3, 3), torch.float32, structure='sym')"
    )
    assert sylvester_factor(a, b).separation() == 2


# ------------------------------------------------------------------------------ singular equations


@pytest.mark.parametrize("structure", ["gen", "sym"])
def test_singular_equations(structure: str, module: str) -> None:
    a = torch.diag(torch.tensor([1.0, 2.0], dtype=F64))
    b = torch.diag(torch.tensor([3.0, 5.0, 7.0], dtype=F64))
    factors = sylvester_factor(a, b, assume_a=structure)
    q = torch.ones(2, 3, dtype=F64)
    for scale, shift in ((1.0, -4.0), (0.0, -2.0), (-0.2, 0.0)):
        assert factors.separation(scale=scale, shift=shift) < 1e-15
        with pytest.raises(SingularEquationError, match="share an eigenvalue"):
            factors.solve(q, scale=scale, shift=shift)
    shifts = torch.tensor([0.0, -1.0, -8.0], dtype=F64)
    with pytest.raises(SingularEquationError, match=r"batch entry \(2,\)"):
        factors.solve(q, shift=shifts)
    near(factors.solve(q, scale=0.0), q / torch.tensor([[1.0], [2.0]], dtype=F64), 1e-15)
    assert factors.solve(q, shift=-4.001).isfinite().all()


@pytest.mark.parametrize("dtype", [F64, C128])
def test_zero_rule_of_positive_equations(dtype: torch.dtype, module: str) -> None:
    for k, d in ((4, 5), (5, 4)):
        a, b = (hermitian((r := random(n, n - 2, dtype=dtype, seed=n)) @ r.mH) for n in (k, d))
        q = random(k, d, dtype=dtype)
        factors = sylvester_factor(a, b, assume_a="pos")
        for scale, shift in ((1.0, 0.0), (0.0, 0.0), (2.5, 0.0), (1.0, 0.5), (0.0, 0.5)):
            expected = minimum_norm_solution(
                a.numpy(), combined(b, scale, shift).numpy(), q.numpy()
            )
            x = factors.solve(q, scale=scale, shift=shift)
            near(x, torch.from_numpy(expected), 1e-11)  # condition about 1e2; measured 7e-15
        # Only A is left, and its null space is dropped.
        near(factors.solve(q, scale=0.0), torch.linalg.pinv(a, hermitian=True) @ q, 1e-11)


@pytest.mark.parametrize("values", [[0.0, 1.0, 3.0], [1.0, 2.0, 3.0]], ids=["singular", "regular"])
def test_negative_weights_of_positive_equations(values: list[float], module: str) -> None:
    """scale B + shift I is no longer positive: refused as solve_sylvester refuses it."""
    a = torch.diag(torch.tensor([1.0, 2.0], dtype=F64))
    b = torch.diag(torch.tensor(values, dtype=F64))
    q = torch.ones(2, 3, dtype=F64)
    factors = sylvester_factor(a, b, assume_a="pos")
    for scale, shift in ((-1.0, 0.0), (-0.1, 0.0), (1.0, -3.5), (-1.0, 2.5)):
        with pytest.raises(MatrixError, match="positive semi-definite"):
            solve_sylvester(a, combined(b, scale, shift), q, assume_a="pos")
        with pytest.raises(MatrixError, match="positive semi-definite"):
            factors.solve(q, scale=scale, shift=shift)
    # Positive in the end, whatever the signs.
    near(factors.solve(q, scale=-1.0, shift=5.0), kronecker_solve(a, combined(b, -1, 5), q), 1e-14)


# ------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_derivatives(structure: str, dtype: torch.dtype, module: str) -> None:
    a, b = pair(structure, 2, 3, dtype, ((2, 1), ()))
    inputs = [a, b, random(2, 3, dtype=dtype), torch.tensor([0.5, 2.0], dtype=F64)]
    inputs = [x.requires_grad_() for x in (*inputs, torch.tensor(0.3, dtype=F64))]

    def factored(a, b, q, scale, shift):
        return sylvester_factor(a, b, assume_a=structure).solve(q, scale=scale, shift=shift)

    def dense(a, b, q, scale, shift):
        return kronecker_solve(a, combined(b, scale, shift), q)

    first = [grad(loss(f(*inputs)), inputs, create_graph=True) for f in (factored, dense)]
    second = [grad(sum(loss(g) for g in gs), inputs) for gs in first]
    for found, right in (*zip(*first, strict=True), *zip(*second, strict=True)):
        near(found, right, 1e-11)  # worst measured 4e-15


@pytest.mark.parametrize("structure", ["gen", "pos"])
def test_gradcheck(structure: str) -> None:
    a, b = pair(structure, 2, 2, F64)
    factors = sylvester_factor(a, b, assume_a=structure)
    inputs = [random(2, 2), torch.tensor([0.5, 2.0], dtype=F64), torch.tensor(0.5, dtype=F64)]
    inputs = [x.requires_grad_() for x in inputs]

    def function(q, scale, shift):
        return factors.solve(q, scale=scale, shift=shift)

    assert gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


def test_vmap_over_weights_and_right_sides() -> None:
    for structure in ("gen", "sym", "pos"):
        a, b = pair(structure, 3, 2, F64)
        factors = sylvester_factor(a, b, assume_a=structure)
        q, scales = random(4, 3, 2), torch.linspace(0.1, 2, 4, dtype=F64)
        found = torch.func.vmap(lambda q, s, f=factors: f.solve(q, scale=s, shift=s))(q, scales)
        near(found, factors.solve(q, scale=scales, shift=scales), 1e-14)
        found = torch.func.vmap(lambda q, f=factors, s=scales: f.solve(q, scale=s), 0, 1)(q)
        near(found, factors.solve(q, scale=scales[:, None]), 1e-14)


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["scale", "shift"])
@pytest.mark.parametrize("structure", ["gen", "sym", "pos"])
def test_bad_weights(structure: str, name: str) -> None:
    a, b = pair(structure, 2, 3, F64)
    factors, q = sylvester_factor(a, b, assume_a=structure), random(2, 3)
    wrong_types = (True, "1", 1j, None, [1.0], torch.tensor(1.0), torch.tensor(1), torch.tensor(1j))
    for call in (lambda **w: factors.solve(q, **w), factors.separation):
        for value in wrong_types:
            with pytest.raises(OptionTypeError, match=name):
                call(**{name: value})
        for value in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(OptionError, match=f"{name} must be finite"):
                call(**{name: value})
            with pytest.raises(OptionError, match=f"{name} must be finite"):
                call(**{name: torch.tensor([1.0, value], dtype=F64)})
        with pytest.raises(OptionError, match="meta"):
            call(**{name: torch.tensor(1.0, dtype=F64, device="meta")})
        with pytest.raises(MatrixError, match="do not broadcast"):
            call(scale=torch.ones(2, dtype=F64), shift=torch.ones(3, dtype=F64))


def test_bad_right_sides() -> None:
    factors = sylvester_factor(*pair("gen", 2, 3, F64, ((4,), ())), assume_a="gen")
    for q in (random(2, 3).float(), random(2, 3, dtype=C128), random(2, 3).tolist(), None):
        with pytest.raises(OptionTypeError, match="q"):
            factors.solve(q)
    for shape in ((3, 2), (2, 2), (3,), (), (3, 2, 3)):
        with pytest.raises(MatrixError):
            factors.solve(random(*shape))
    with pytest.raises(MatrixError, match="device"):
        factors.solve(random(2, 3).to("meta"))
    with pytest.raises(MatrixError, match="q must be finite"):
        factors.solve(random(2, 3) / 0)


def test_bad_matrices(module: str) -> None:
    a, b = pair("gen", 2, 3, F64)
    with pytest.raises(OptionTypeError, match="a and b"):
        sylvester_factor(a, b.float())
    with pytest.raises(OptionTypeError, match=r"a must be a torch\.Tensor"):
        sylvester_factor(a.tolist(), b)
    with pytest.raises(OptionTypeError, match="int64"):
        sylvester_factor(torch.eye(2, dtype=torch.int64), b)
    with pytest.raises(OptionError, match="assume_a"):
        sylvester_factor(a, b, assume_a="her")
    for wrong in (a[:1], a[0], random(3, 2, 3)):
        with pytest.raises(MatrixError, match="a must"):
            sylvester_factor(wrong, b)
    with pytest.raises(MatrixError, match="do not broadcast"):
        sylvester_factor(a.expand(2, 2, 2), b.expand(3, 3, 3))
    for structure in ("sym", "pos"):
        with pytest.raises(MatrixError, match="a must be Hermitian"):
            sylvester_factor(a, b, assume_a=structure)
    for structure in STRUCTURES:
        with pytest.raises(MatrixError, match="b must be finite"):
            sylvester_factor(torch.eye(2), torch.full((3, 3), torch.nan), assume_a=structure)
