"""Derivatives of solve_sylvester: finite differences and the autograd of a Kronecker system."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from helpers import minimum_norm_solution
from sylvester_helpers import (
    equation_of,
    hermitian,
    kronecker_solve,
    loss,
    near,
    oracle,
    parameters,
    random,
    solution,
)
from torch import Tensor
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck

import sylvinit
from sylvinit import solve_sylvester

F64, C128 = torch.float64, torch.complex128
STRUCTURES = ("gen", "sym", "pos", "auto")
# Float64 against the Kronecker system, relative to the largest entry; measured 7e-15, any order.
NEAR = 1e-12


def leaves(tensors: list[Tensor], which: str = "abq") -> list[Tensor]:
    return [x.clone().requires_grad_(n in which) for n, x in zip("abq", tensors, strict=True)]


# ------------------------------------------------------------------------- finite differences


@pytest.mark.parametrize("shape", [(2, 3), (3, 2)], ids=["k<d", "k>d"])
@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradcheck(structure: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    inputs = leaves(parameters(*shape, dtype))
    function = solution(structure)
    assert gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        # For complex dtypes PyTorch's own code for views under batched forward mode asserts.
        check_batched_forward_grad=not dtype.is_complex,
    )
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("structure", ["gen", "pos"])
def test_gradcheck_of_batches_that_broadcast(structure: str, dtype: torch.dtype) -> None:
    for batches in (((2,), (), ()), ((), (2,), (2,))):
        inputs = leaves(parameters(1, 2, dtype, batches))
        assert gradcheck(
            solution(structure), inputs, check_forward_ad=True, check_batched_grad=True
        )
    inputs = leaves(parameters(1, 2, dtype, ((2, 1), (2,), ())))
    assert gradgradcheck(solution(structure), inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("structure", ["gen", "sym"])
def test_only_some_inputs_need_gradients(structure: str, dtype: torch.dtype) -> None:
    tensors = parameters(3, 4, dtype, ((2,), (), (2,)))
    expected = grad(loss(oracle(structure)(*(full := leaves(tensors)))), full)
    for size in (1, 2, 3):
        for names in combinations("abq", size):
            inputs = leaves(tensors, "".join(names))
            loss(solution(structure)(*inputs)).backward()
            for name, x, right in zip("abq", inputs, expected, strict=True):
                if name not in names:
                    assert x.grad is None
                else:
                    near(x.grad, right, NEAR)
    assert not solution(structure)(*tensors).requires_grad


# ------------------------------------------------------------- against the Kronecker system


BATCHES = {
    "none": ((), (), ()),
    "own": ((3,), (3,), (3,)),
    "shared a": ((), (3,), (3,)),
    "shared q": ((3,), (3,), ()),
    "size 1": ((1,), (3,), (3,)),
    "all": ((2, 1), (3,), (1, 1, 3)),
    "only b": ((), (2, 2), ()),
}


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_are_those_of_the_kronecker_system(structure: str, batches: tuple) -> None:
    for k, d in ((3, 5), (5, 3), (1, 4), (4, 1), (2, 2)):
        for dtype in (F64, C128):
            inputs = leaves(parameters(k, d, dtype, batches))
            x, expected = solution(structure)(*inputs), oracle(structure)(*inputs)
            near(x, expected, NEAR)
            for found, right in zip(
                grad(loss(x), inputs), grad(loss(expected), inputs), strict=True
            ):
                near(found, right, NEAR)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_are_not_symmetrized(structure: str, dtype: torch.dtype) -> None:
    a, b = equation_of(structure, *parameters(3, 4, dtype)[:2])
    a, b, q = leaves([a, b, random(3, 4, dtype=dtype)])
    x = solve_sylvester(a, b, q, assume_a=structure)
    upstream = random(3, 4, dtype=dtype, seed=9)
    found = grad(x, (a, b, q), upstream)
    y = kronecker_solve(a.mH, b.mH, upstream).detach()
    for gradient, right in zip(found, (-y @ x.mH, -x.mH @ y, y), strict=True):
        near(gradient, right, NEAR)
    for gradient, right in zip(
        found, grad(kronecker_solve(a, b, q), (a, b, q), upstream), strict=True
    ):
        near(gradient, right, NEAR)
    assert (found[0] - found[0].mH).abs().max() > 1e-3


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [F64, C128])
def test_repeated_eigenvalues(structure: str, dtype: torch.dtype) -> None:
    """Where derivatives of eigenvectors do not exist (eigh's own gradient is NaN)."""
    for k, d in ((3, 4), (4, 3)):
        projector = torch.ones(d, d, dtype=dtype) / d
        for b in (torch.eye(d, dtype=dtype), torch.eye(d, dtype=dtype) + projector):
            inputs = leaves([torch.eye(k, dtype=dtype), b, random(k, d, dtype=dtype)])
            first = [
                grad(loss(solve(*inputs)), inputs, create_graph=True)
                for solve in (lambda *x: solve_sylvester(*x, assume_a=structure), kronecker_solve)
            ]
            second = [grad(loss(torch.cat([g.flatten() for g in gs])), inputs) for gs in first]
            for found, right in (*zip(*first, strict=True), *zip(*second, strict=True)):
                near(found, right, NEAR)


@pytest.mark.parametrize("structure", ["gen", "sym", "pos"])
def test_defective_and_larger_matrices(structure: str) -> None:
    """A Jordan block larger than the blocks that unblocked routines are given."""
    inputs = leaves(parameters(40, 9, F64))
    if structure == "gen":
        inputs[0] = (torch.ones(39, dtype=F64).diag(1) / 2).requires_grad_()
    for t, s, q in (inputs, (inputs[1], inputs[0], inputs[2].T)):
        x, expected = solution(structure)(t, s, q), oracle(structure)(t, s, q)
        found, right = grad(loss(x), inputs), grad(loss(expected), inputs)
        for one, other in zip(found, right, strict=True):
            near(one, other, NEAR)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_third_order(structure: str) -> None:
    for dtype in (F64, C128):
        inputs = leaves(parameters(2, 3, dtype))
        orders = []
        for function in (solution(structure), oracle(structure)):
            value, found = loss(function(*inputs)), []
            for _ in range(3):
                gradients = grad(value, inputs, create_graph=True)
                value = sum(loss(g) for g in gradients)
                found += gradients
            orders.append(found)
        for one, other in zip(*orders, strict=True):
            near(one, other, NEAR)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision(structure: str, dtype: torch.dtype) -> None:
    wide = F64 if dtype == torch.float32 else C128
    narrow = leaves(parameters(4, 6, dtype, ((2,), (), (2,))))
    inputs = leaves([x.detach().to(wide) for x in narrow])
    x = solution(structure)(*narrow)
    assert x.dtype == dtype
    expected = grad(loss(oracle(structure)(*inputs)), inputs)
    for found, right in zip(grad(loss(x), narrow), expected, strict=True):
        assert found.dtype == dtype
        near(found, right, 3e-6)  # eps is 1.2e-7; worst measured 2.5e-7

    tangents = [random(*x.shape, dtype=dtype, seed=3 + i) for i, x in enumerate(narrow)]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x.detach(), t) for x, t in zip(narrow, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(solution(structure)(*duals)).tangent
    assert tangent.dtype == dtype
    _, right = torch.func.jvp(
        oracle(structure),
        tuple(x.detach() for x in inputs),
        tuple(t.to(wide) for t in tangents),
    )
    near(tangent, right, 3e-6)


# ---------------------------------------------------------------------------- the zero rule


def singular_pair(k: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Positive semi-definite A and B of ranks k - 2 and d - 1, and bases of their ranges."""
    tensors = []
    for n, rank, seed in ((k, k - 2, 4), (d, d - 1, 5)):
        basis = torch.linalg.qr(random(n, rank, dtype=dtype, seed=seed))[0]
        core = random(rank, rank, dtype=dtype, seed=seed + 2)
        core = core @ core.mH + torch.eye(rank, dtype=dtype)
        tensors += [hermitian(basis @ core @ basis.mH), basis]
    return tensors


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)], ids=["k<d", "k>d"])
def test_pairs_dropped_by_the_zero_rule_stay_dropped(shape, dtype) -> None:
    k, d = shape
    a, range_a, b, range_b = singular_pair(k, d, dtype)
    q, upstream = random(k, d, dtype=dtype), random(k, d, dtype=dtype, seed=1)
    inputs = leaves([a, b, q])
    x = solve_sylvester(*inputs, assume_a="pos")
    near(x, torch.from_numpy(minimum_norm_solution(a.numpy(), b.numpy(), q.numpy())), NEAR)
    for_a, for_b, for_q = grad(x, inputs, upstream)
    # The map from Q is the pseudo-inverse, its own adjoint.
    pinv = minimum_norm_solution(a.numpy(), b.numpy(), upstream.numpy())
    near(for_q, torch.from_numpy(pinv), NEAR)

    # Perturbations within the ranges keep both null spaces.
    directions = [
        r @ hermitian(random(r.shape[1], r.shape[1], dtype=dtype, seed=2)) @ r.mH
        for r in (range_a, range_b)
    ]
    directions = [hermitian(x) for x in directions]
    step = 1e-4
    for i, (direction, gradient) in enumerate(zip(directions, (for_a, for_b), strict=True)):
        ends = []
        for sign in (1, -1):
            pair = [a, b]
            pair[i] = pair[i] + sign * step * direction
            ends.append(minimum_norm_solution(*(m.numpy() for m in pair), q.numpy()))
        slope = torch.from_numpy((ends[0] - ends[1]) / (2 * step))
        # Truncation of the quotient: step^2 = 1e-8 times third derivatives; measured 6e-9.
        change = (upstream.conj() * slope).real.sum()
        near((gradient.conj() * direction).real.sum(), change, 1e-7)
        tangents = [torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(q)]
        tangents[i] = direction
        _, tangent = torch.func.jvp(
            lambda *m: solve_sylvester(*m, assume_a="pos"), (a, b, q), tuple(tangents)
        )
        near(tangent, slope, 1e-7)


def test_second_order_along_the_ranges() -> None:
    """With cores as parameters the null spaces are held fixed: gradcheck holds at any order."""
    dtype = C128
    _, range_a, _, range_b = singular_pair(3, 2, dtype)

    def function(s: Tensor, t: Tensor, q: Tensor) -> Tensor:
        parts = []
        for core, basis in ((s, range_a), (t, range_b)):
            adjoint = basis.mH.resolve_conj()
            inside = hermitian(core) + 5 * torch.eye(core.shape[-1], dtype=dtype)
            parts.append(hermitian(basis @ inside @ adjoint))
        return solve_sylvester(*parts, q, assume_a="pos")

    inputs = leaves([*parameters(1, 1, dtype)[:2], random(3, 2, dtype=dtype)])
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


# ---------------------------------------------------------------------------- the autograd engine


@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["ordinary", "small"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("structure", ["gen", "sym", "pos"])
def test_upstream_values_that_are_not_finite(structure: str, value: float, size: float) -> None:
    """As in mixed-precision training, where GradScaler looks for them."""
    for k, d in ((3, 4), (4, 3)):
        a, b = equation_of(structure, *parameters(k, d)[:2])
        inputs = leaves([a * size, b * size, random(k, d)])
        x = solve_sylvester(*inputs, assume_a=structure)
        upstream = torch.zeros_like(x)
        upstream[1, 2] = value
        for gradient in grad(x, inputs, upstream):
            assert not gradient.isfinite().all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_accumulate_and_graphs_are_kept(structure: str) -> None:
    inputs = leaves(parameters(3, 4))
    value = loss(solution(structure)(*inputs))
    value.backward(retain_graph=True)
    once = [x.grad.clone() for x in inputs]
    value.backward(retain_graph=True)
    with torch.no_grad():
        third = grad(value, inputs)
    for x, first, again in zip(inputs, once, third, strict=True):
        assert torch.equal(x.grad, 2 * first)
        assert torch.equal(again, first)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_no_graph_where_none_is_asked_for() -> None:
    inputs = leaves(parameters(3, 4))
    with torch.no_grad():
        assert not solution("sym")(*inputs).requires_grad
    with torch.inference_mode():
        assert solution("sym")(*inputs).is_inference()


def test_a_gradient_that_is_none() -> None:
    class Silent(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return None

    inputs = leaves(parameters(3, 4))
    found = grad(Silent.apply(solution("gen")(*inputs)).sum(), inputs, allow_unused=True)
    assert all(g is None or not g.any() for g in found)


def test_changing_an_input_in_place_is_noticed() -> None:
    a, b, q = leaves(parameters(3, 4))
    a = a - 2 * torch.eye(3, dtype=F64)
    x = solve_sylvester(a, b + 7 * torch.eye(4, dtype=F64), q)
    a.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_in_any_memory_layout(structure: str) -> None:
    """Expanded, transposed and lazily conjugated ones."""
    for k, d in ((3, 4), (4, 3), (4, 1), (1, 4)):
        inputs = leaves(parameters(k, d, C128))
        for upstream in (
            torch.ones((), dtype=C128).expand(k, d),
            random(d, k, dtype=C128).T,
            random(k, d, dtype=C128).conj(),
            random(d, k, dtype=C128).mH,
        ):
            pairs = [grad(f(structure)(*inputs), inputs, upstream) for f in (solution, oracle)]
            for found, right in zip(*pairs, strict=True):
                near(found, right, NEAR)


# ---------------------------------------------------------------------------- forward mode


@pytest.mark.parametrize("structure", STRUCTURES)
def test_forward_mode_with_one_dual_input(structure: str) -> None:
    for k, d in ((3, 4), (4, 3)):
        tensors = parameters(k, d, C128, ((2,), (), (3, 1)))
        for i in range(3):
            direction = random(*tensors[i].shape, dtype=C128, seed=8)
            tangents = []
            for function in (solution(structure), oracle(structure)):
                with forward_ad.dual_level():
                    duals = list(tensors)
                    duals[i] = forward_ad.make_dual(duals[i], direction)
                    tangents.append(forward_ad.unpack_dual(function(*duals)).tangent)
            near(tangents[0], tangents[1], NEAR)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_forward_over_reverse(structure: str) -> None:
    tensors = tuple(parameters(3, 4, F64, ((2,), (), (2,))))
    directions = tuple(random(*x.shape, seed=8) for x in tensors)
    products = []
    for function in (solution(structure), oracle(structure)):
        gradient = torch.func.grad(lambda *x, f=function: loss(f(*x)), argnums=(0, 1, 2))
        products.append(torch.func.jvp(gradient, tensors, directions)[1])
    for found, right in zip(*products, strict=True):
        near(found, right, NEAR)


def test_errors_in_differentiated_calls_stay_typed() -> None:
    a, b, q = leaves([torch.eye(3), -torch.eye(4), torch.ones(3, 4)])
    for structure in ("gen", "sym", "auto"):
        with pytest.raises(sylvinit.errors.SingularEquationError, match="share an eigenvalue"):
            solve_sylvester(a, b, q, assume_a=structure)
    with pytest.raises(sylvinit.errors.MatrixError, match="eigenvalue -1"):
        solve_sylvester(a, b, q, assume_a="pos")
