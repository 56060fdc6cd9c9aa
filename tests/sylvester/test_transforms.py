"""solve_sylvester under torch.func."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch
from sylvester_helpers import loss_of, near, oracle, parameters, random, solution
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import sylvinit
from sylvinit import solve_sylvester

F64, C128 = torch.float64, torch.complex128
STRUCTURES = ("gen", "sym", "pos", "auto")
# Float64 against loops or the Kronecker system, relative to the largest entry; measured 2e-15.
NEAR = 1e-12


@pytest.fixture(autouse=True)
def _no_fallback():
    """vmap warns where it falls back to a loop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")
        yield


def loop(function, in_dims, inputs, out_dim: int = 0) -> Tensor:
    """vmap written out."""
    size = next(x.shape[d] for x, d in zip(inputs, in_dims, strict=True) if d is not None)
    each = [
        function(
            *(x if d is None else x.select(d, i) for x, d in zip(inputs, in_dims, strict=True))
        )
        for i in range(size)
    ]
    return torch.stack(each, dim=out_dim)


# ------------------------------------------------------------------------------------------- vmap

IN_DIMS = [dims for dims in product((None, 0), repeat=3) if any(d is not None for d in dims)]
IN_DIMS += [(1, None, 0), (2, 1, None), (-1, 0, 1), (None, 2, -1), (-3, -2, 2)]


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_vmap(structure: str, dtype: torch.dtype) -> None:
    for (k, d), in_dims in product(((2, 3), (4, 2)), IN_DIMS):
        inputs = parameters(k, d, dtype, [() if i is None else (3,) for i in in_dims])
        inputs = [x if i is None else x.movedim(0, i) for x, i in zip(inputs, in_dims, strict=True)]
        found = vmap(solution(structure), in_dims)(*inputs)
        near(found, loop(oracle(structure), in_dims, inputs), NEAR)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_vmap_of_gradients(structure: str) -> None:
    for (k, d), in_dims in product(((2, 3), (3, 2)), IN_DIMS):
        inputs = parameters(k, d, F64, [() if i is None else (3,) for i in in_dims])
        inputs = [x if i is None else x.movedim(0, i) for x, i in zip(inputs, in_dims, strict=True)]
        found = vmap(grad(loss_of(solution(structure)), argnums=(0, 1, 2)), in_dims)(*inputs)
        for i, gradient in enumerate(found):
            one = grad(loss_of(oracle(structure)), argnums=i)
            near(gradient, loop(one, in_dims, inputs), NEAR)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_vmap_over_batches_of_other_ranks(structure: str) -> None:
    """The mapped dimension stands in front of batch dimensions that broadcast among themselves."""
    for batches in product(((), (2,), (2, 1)), ((), (3, 2, 2), (1,)), ((), (2,))):
        for in_dims in ((0, None, None), (None, 0, 0), (0, 0, None), (None, None, 0)):
            shapes = [
                batch if i is None else (4, *batch)
                for batch, i in zip(batches, in_dims, strict=True)
            ]
            inputs = parameters(3, 2, F64, shapes)
            found = vmap(solution(structure), in_dims)(*inputs)
            near(found, loop(oracle(structure), in_dims, inputs), NEAR)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_vmap_within_vmap_and_out_dims(structure: str) -> None:
    t, s, q = parameters(2, 3, C128, ((4,), (5,), (5, 4)))
    for outer, inner in product(((0, None, 1), (None, 0, 0)), repeat=2):
        if outer == inner:
            continue
        # The inner map sees q without the outer dimension.
        inner_here = tuple(None if i is None else 0 for i in inner)
        function = vmap(vmap(solution(structure), inner_here), outer)
        expected = oracle(structure)(t[:, None], s, q.transpose(0, 1))
        expected = expected if outer[0] == 0 else expected.transpose(0, 1)
        near(function(t, s, q), expected, NEAR)
    for out_dims in (0, 1, 2, -1):
        found = vmap(solution(structure), (0, None, None), out_dims)(t, s[0], q[0, 0])
        near(found, loop(oracle(structure), (0, None, None), (t, s[0], q[0, 0]), out_dims), NEAR)


def test_gradients_of_a_vmapped_function() -> None:
    for structure in STRUCTURES:
        tensors = parameters(2, 3, F64, ((4,), (), (4,)))
        pairs = []
        for function in (vmap(solution(structure), (0, None, 0)), oracle(structure)):
            inputs = [x.clone().requires_grad_() for x in tensors]
            pairs.append(torch.autograd.grad(loss_of(function)(*inputs), inputs))
        for found, right in zip(*pairs, strict=True):
            near(found, right, NEAR)


def test_random_numbers_are_left_alone() -> None:
    inputs = parameters(3, 4, F64, ((2,), (2,), (2,)))
    state = torch.get_rng_state()
    for structure in STRUCTURES:
        vmap(grad(loss_of(solution(structure))), randomness="error")(*inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_errors_under_vmap_stay_typed() -> None:
    a, q = torch.eye(3).expand(2, 3, 3), torch.ones(2, 3, 3)
    with pytest.raises(sylvinit.errors.SingularEquationError):
        vmap(solve_sylvester)(a, -a, q)
    with pytest.raises(sylvinit.errors.MatrixError, match="q must have shape"):
        vmap(solve_sylvester)(a, a, q[..., 1:])
    with pytest.raises(sylvinit.errors.MatrixError, match="2 dimensions"):
        vmap(solve_sylvester, (0, None, 0))(a, a[0], torch.ones(2, 3))


# ------------------------------------------------------------------------ Jacobians, torch.func


@pytest.mark.parametrize("shape", [(2, 3), (3, 2)], ids=["k<d", "k>d"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_jacobians(structure: str, shape: tuple[int, int]) -> None:
    for batches in (((), (), ()), ((2,), (), (2,))):
        inputs = parameters(*shape, F64, batches)
        every = (0, 1, 2)
        for found in (jacrev, jacfwd):
            pairs = zip(
                found(solution(structure), every)(*inputs),
                jacrev(oracle(structure), every)(*inputs),
                strict=True,
            )
            for one, other in pairs:
                near(one, other, NEAR)
        for chunk in (1, 4):
            near(
                jacrev(solution(structure), chunk_size=chunk)(*inputs),
                jacrev(oracle(structure))(*inputs),
                NEAR,
            )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_hessians(structure: str) -> None:
    inputs = parameters(2, 3)
    every = (0, 1, 2)
    found, right = (hessian(loss_of(f(structure)), every)(*inputs) for f in (solution, oracle))
    reverse = jacrev(jacrev(loss_of(solution(structure)), every), every)(*inputs)
    for i, j in product(every, every):
        near(found[i][j], right[i][j], NEAR)
        near(reverse[i][j], right[i][j], NEAR)
    batch = vmap(hessian(loss_of(solution(structure)), 1))(*parameters(2, 2, F64, ((2,),) * 3))
    near(
        batch[1],
        hessian(loss_of(oracle(structure)), 1)(*(x[1] for x in parameters(2, 2, F64, ((2,),) * 3))),
        NEAR,
    )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_jvp_and_vjp_of_complex_functions(structure: str) -> None:
    for batches in (((), (), ()), ((2, 1), (3,), ())):
        inputs = tuple(parameters(3, 2, C128, batches))
        directions = tuple(random(*x.shape, dtype=C128, seed=4) for x in inputs)
        tangents = [jvp(f(structure), inputs, directions)[1] for f in (solution, oracle)]
        near(*tangents, NEAR)
        upstream = random(*tangents[0].shape, dtype=C128, seed=5)
        for found, right in zip(
            *(vjp(f(structure), *inputs)[1](upstream) for f in (solution, oracle)), strict=True
        ):
            near(found, right, NEAR)
        rest = directions[1:]
        mapped = vmap(lambda t, i=inputs, r=rest: jvp(solution(structure), i, (t, *r))[1])
        near(mapped(torch.stack([directions[0]] * 2))[1], tangents[1], NEAR)
