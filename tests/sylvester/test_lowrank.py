"""solve_sylvester_lowrank against the dense equation with B = lam X X^H."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch
from helpers import minimum_norm_solution
from sylvester_helpers import DTYPES, hermitian, kronecker_solve, loss, matrix, near, random
from torch import Tensor
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sylvinit import solve_sylvester, solve_sylvester_lowrank
from sylvinit.errors import AccuracyWarning, MatrixError, OptionError, OptionTypeError

F64, C128 = torch.float64, torch.complex128
K, D = 3, 6
# Columns of X, and its rank.
SAMPLES = {
    "none": (0, 0),
    "one": (1, 1),
    "few": (4, 4),
    "few, dependent": (4, 2),
    "square": (6, 6),
    "square, dependent": (6, 3),
    "many": (9, 6),
    "many, dependent": (9, 2),
    "zero": (4, 0),
}
# Against double precision, relative to the largest entry: rounding of the result in single
# precision (measured 9e-8), a few roundings times condition numbers up to 1e2 in double precision
# (measured 5e-14).
TOLERANCE = {
    torch.float32: 3e-7,
    torch.complex64: 3e-7,
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
}


def samples(n: int, rank: int, dtype: torch.dtype, batch: tuple[int, ...] = ()) -> Tensor:
    """(..., D, n)."""
    if rank == n:
        return random(*batch, D, n, dtype=dtype, seed=7)
    left, right = random(*batch, D, rank, dtype=dtype, seed=7), random(rank, n, dtype=dtype, seed=8)
    return left @ right


def positive(dtype: torch.dtype, rank: int = K, batch: tuple[int, ...] = ()) -> Tensor:
    """Eigenvalues of 1 and above, and zeros."""
    basis = torch.linalg.qr(random(*batch, K, rank, dtype=dtype, seed=3))[0]
    values = torch.arange(1, rank + 1, dtype=basis.real.dtype)
    return hermitian((basis * values) @ basis.mH)


def dense(a: Tensor, x: Tensor, q: Tensor, lam: float | Tensor) -> Tensor:
    return solve_sylvester(a, hermitian(lam * (x @ x.mH)), q, assume_a="pos")


# --------------------------------------------------------------------------------------- solutions


@pytest.mark.parametrize("count", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_dense_solution(dtype: torch.dtype, count: tuple[int, int]) -> None:
    a, x, q = positive(dtype), samples(*count, dtype), random(K, D, dtype=dtype)
    for lam in (1.0, 0.1, 7):
        w = solve_sylvester_lowrank(a, x, q, lam)
        assert w.dtype == dtype
        a_, x_, q_ = (t.to(C128 if dtype.is_complex else F64) for t in (a, x, q))
        exact_lam = float(torch.tensor(lam, dtype=a.real.dtype))  # as the function rounds it
        near(w, dense(a_, x_, q_, exact_lam), TOLERANCE[dtype])
        near(w, kronecker_solve(a_, exact_lam * (x_ @ x_.mH), q_), TOLERANCE[dtype])
    near(solve_sylvester_lowrank(a, x, q), solve_sylvester_lowrank(a, x, q, 1.0), 0.0)
    near(solve_sylvester_lowrank(a, x, q, 0), torch.linalg.solve(a, q), TOLERANCE[dtype])


@pytest.mark.parametrize("count", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_singular_matrices(rank: int, dtype: torch.dtype, count: tuple[int, int]) -> None:
    """The zero rule: the minimum-norm solution, whether or not Q lies in the range of X."""
    a, x = positive(dtype, rank), samples(*count, dtype)
    outside = random(K, D, dtype=dtype)
    inside = random(K, x.shape[1], dtype=dtype, seed=2) @ x.mH
    for q in (outside, inside):
        for lam in (1.0, 0.3):
            w = solve_sylvester_lowrank(a, x, q, lam)
            expected = minimum_norm_solution(
                a.numpy(), (lam * (x @ x.mH)).resolve_conj().numpy(), q.numpy()
            )
            near(w, torch.from_numpy(expected), 1e-11)  # worst measured 4e-14
            if rank or count[1]:
                near(w, dense(a, x, q, lam), 1e-11)
    # Rows of a solution for Q in the row space stay there.
    near(w - w @ torch.linalg.pinv(x.mH) @ x.mH, torch.zeros_like(w), 1e-11)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_batches(dtype: torch.dtype) -> None:
    for n, rank in ((2, 2), (8, 6), (4, 2)):
        for batch_a, batch_x, batch_q in (
            ((3,), (3,), (3,)),
            ((), (), (3,)),
            ((3,), (), ()),
            ((), (3,), ()),
            ((2, 1), (3,), ()),
            ((), (1, 3), (2, 1)),
            ((0,), (), ()),
        ):
            a, x = positive(dtype, batch=batch_a), samples(n, rank, dtype, batch_x)
            q = random(*batch_q, K, D, dtype=dtype)
            near(solve_sylvester_lowrank(a, x, q, 0.5), dense(a, x, q, 0.5), 1e-12)


def test_memory_layouts() -> None:
    a, x, q = positive(C128), samples(4, 4, C128), random(K, D, dtype=C128)
    expected = solve_sylvester_lowrank(a, x, q)
    for other in (
        (a.mH, x.mT.contiguous().mT, q),
        (a.conj().resolve_conj().conj(), x.conj().resolve_conj().conj(), q.mH.contiguous().mH),
    ):
        near(solve_sylvester_lowrank(*other), expected, 1e-14)


def test_empty_equations() -> None:
    for k, d, n in ((0, 4, 2), (3, 0, 2), (0, 0, 0), (3, 0, 0), (0, 4, 0)):
        w = solve_sylvester_lowrank(torch.eye(k), torch.zeros(d, n), torch.zeros(k, d))
        assert w.shape == (k, d)


def test_accuracy_warning() -> None:
    """What is nearly collinear is warned of, what the zero rule drops is not."""
    x = samples(2, 2, F64)
    x[:, 1] = x[:, 0] + 1e-5 * x[:, 1]
    # b is about 1e-10 of the largest one: above the zero rule, below sqrt(eps).
    with pytest.warns(AccuracyWarning, match="nearly meet"):
        solve_sylvester_lowrank(positive(F64, 2), x, random(K, D))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve_sylvester_lowrank(positive(F64, 2), x[:, :1], random(K, D))
        solve_sylvester_lowrank(positive(F64), x, random(K, D))


# ------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_gradients_are_those_of_the_dense_solution(dtype: torch.dtype, n: int) -> None:
    for batches in (((), (), ()), ((2, 1), (3,), ()), ((), (), (2,)), ((2,), (1,), (2,))):
        batch_a, batch_x, batch_q = batches
        tensors = [positive(dtype, batch=batch_a), samples(n, n, dtype, batch_x)[..., :D, :]]
        tensors += [random(*batch_q, K, D, dtype=dtype), torch.tensor(0.7, dtype=F64)]
        inputs = [t.clone().requires_grad_() for t in tensors]

        # Through (A + A^H) / 2: the backward pass takes A for Hermitian and does not conjugate it.
        def lowrank(a, x, q, lam):
            return solve_sylvester_lowrank(hermitian(a), x, q, lam)

        def oracle(a, x, q, lam):
            return kronecker_solve(hermitian(a), lam * (x @ x.mH), q)

        first = [grad(loss(f(*inputs)), inputs, create_graph=True) for f in (lowrank, oracle)]
        second = [grad(sum(loss(g) for g in gs), inputs) for gs in first]
        for found, right in (*zip(*first, strict=True), *zip(*second, strict=True)):
            near(found, right, 1e-11)  # worst measured 5e-14


@pytest.mark.parametrize("n", [1, 4], ids=["n<d", "n>d"])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_gradcheck(dtype: torch.dtype, n: int) -> None:
    t, x, q = random(2, 2, dtype=dtype), random(3, n, dtype=dtype), random(2, 3, dtype=dtype)
    inputs = [v.requires_grad_() for v in (t, x, q, torch.tensor(0.7, dtype=F64))]

    def function(t, x, q, lam):
        return solve_sylvester_lowrank(matrix("pos", t, 0.0), x, q, lam)

    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


def test_only_some_inputs_need_gradients() -> None:
    tensors = [positive(F64), samples(4, 4, F64), random(K, D), torch.tensor(0.7, dtype=F64)]
    full = [t.clone().requires_grad_() for t in tensors]
    expected = grad(loss(solve_sylvester_lowrank(*full)), full)
    for i in range(4):
        inputs = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
        loss(solve_sylvester_lowrank(*inputs)).backward()
        assert [t.grad is None for t in inputs] == [i != j for j in range(4)]
        near(inputs[i].grad, expected[i], 1e-15)
    assert not solve_sylvester_lowrank(*tensors).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision_gradients(dtype: torch.dtype) -> None:
    wide = C128 if dtype.is_complex else F64
    narrow = [positive(dtype), samples(4, 4, dtype), random(K, D, dtype=dtype), torch.tensor(0.5)]
    inputs = [t.to(wide if i < 3 else F64).requires_grad_() for i, t in enumerate(narrow)]
    narrow = [t.requires_grad_() for t in narrow]
    expected = grad(loss(dense(*inputs)), inputs)
    for found, right, t in zip(
        grad(loss(solve_sylvester_lowrank(*narrow)), narrow), expected, narrow, strict=True
    ):
        assert found.dtype == t.dtype
        near(found, right, 1e-5)  # eps is 1.2e-7; worst measured 3e-7
    # A weight in another precision keeps it.
    lam = torch.tensor(0.5, dtype=F64, requires_grad=True)
    w = solve_sylvester_lowrank(*narrow[:3], lam)
    assert w.dtype == dtype
    (found,) = grad(loss(w), lam)
    assert found.dtype == F64
    near(found, expected[3], 1e-5)


def test_gradients_with_singular_a() -> None:
    """Q in the row space and A singular: the dense gradients, which hold the null spaces fixed."""
    tensors = [positive(C128, 2), samples(4, 4, C128), None, torch.tensor(0.7, dtype=F64)]
    tensors[2] = random(K, 4, dtype=C128, seed=2) @ tensors[1].mH
    inputs = [t.clone().requires_grad_() for t in tensors]
    pairs = [grad(loss(f(*inputs)), inputs) for f in (solve_sylvester_lowrank, dense)]
    for found, right in zip(*pairs, strict=True):
        near(found, right, 1e-11)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_upstream_values_that_are_not_finite(value: float) -> None:
    inputs = [positive(F64), samples(4, 4, F64), random(K, D), torch.tensor(0.7, dtype=F64)]
    inputs = [t.requires_grad_() for t in inputs]
    w = solve_sylvester_lowrank(*inputs)
    upstream = torch.zeros_like(w)
    upstream[1, 2] = value
    assert not any(g.isfinite().all() for g in grad(w, inputs, upstream))


# -------------------------------------------------------------------------------------- transforms


def expression(a: Tensor, x: Tensor, q: Tensor, lam: Tensor) -> Tensor:
    return solve_sylvester_lowrank(hermitian(a), x, q, lam)


def expected_of(a: Tensor, x: Tensor, q: Tensor, lam: Tensor) -> Tensor:
    return kronecker_solve(hermitian(a), lam * (x @ x.mH), q)


def arguments(dtype: torch.dtype, n: int = 2, count: int | None = None) -> list[Tensor]:
    batch = () if count is None else (count,)
    a, x, q = positive(dtype, batch=batch), samples(n, n, dtype, batch), random(*batch, K, D)
    return [a, x, q.to(dtype), torch.linspace(0.5, 1, 3, dtype=F64)[: count or 1].reshape(batch)]


@pytest.mark.parametrize("dtype", [F64, C128])
def test_jacobians_and_hessians(dtype: torch.dtype) -> None:
    for n in (2, 8):
        inputs, every = arguments(dtype, n), (0, 1, 2, 3)
        directions = [random(*t.shape, dtype=t.dtype, seed=5) for t in inputs]
        pairs = [
            torch.func.jvp(f, tuple(inputs), tuple(directions)) for f in (expression, expected_of)
        ]
        near(pairs[0][1], pairs[1][1], 1e-11)
        for i in every:
            duals, tangents = list(inputs), []
            for function in (expression, expected_of):
                with forward_ad.dual_level():
                    duals[i] = forward_ad.make_dual(inputs[i], directions[i])
                    tangents.append(forward_ad.unpack_dual(function(*duals)).tangent)
            near(*tangents, 1e-11)
        if dtype.is_complex:
            continue
        forward = torch.func.jacfwd(expression, every)(*inputs)
        for found in (forward, torch.func.jacrev(expression, every)(*inputs)):
            for one, other in zip(
                found, torch.func.jacrev(expected_of, every)(*inputs), strict=True
            ):
                near(one, other, 1e-11)
        second = [
            torch.func.hessian(lambda *v, f=f: loss(f(*v)), (2, 3))(*inputs)
            for f in (expression, expected_of)
        ]
        near(second[0][0][1], second[1][0][1], 1e-11)
        near(second[0][1][1], second[1][1][1], 1e-11)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_vmap(dtype: torch.dtype) -> None:
    one, many = arguments(dtype), arguments(dtype, count=3)
    for mapped in product((False, True), repeat=4):
        if not any(mapped):
            continue
        inputs = [m if at else o for m, o, at in zip(many, one, mapped, strict=True)]
        in_dims = tuple(0 if at else None for at in mapped)
        found = torch.func.vmap(expression, in_dims)(*inputs)
        each = [
            expected_of(*(v[i] if at else v for v, at in zip(inputs, mapped, strict=True)))
            for i in range(3)
        ]
        near(found, torch.stack(each), 1e-11)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_compile_and_dispatch_modes(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    inputs = [t.requires_grad_() for t in arguments(dtype)]
    compiled = torch.compile(expression, fullgraph=True, backend="aot_eager")
    expected = grad(loss(expected_of(*inputs)), inputs)
    with Largest():
        found = grad(loss(expression(*inputs)), inputs)
    for one, other, right in zip(
        found, grad(loss(compiled(*inputs)), inputs), expected, strict=True
    ):
        near(one, right, 1e-11)
        near(other, right, 1e-11)


# ------------------------------------------------------------------------------------------ memory


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def test_nothing_of_size_d_by_d_is_formed() -> None:
    k, d, n = 8, 20000, 30
    t, x, q = random(k, k), random(d, n), random(k, d)
    a = matrix("pos", t / k**0.5, 0.0)
    inputs = [v.requires_grad_() for v in (a.detach(), x, q, torch.tensor(0.01, dtype=F64))]
    with Largest() as mode:
        w = solve_sylvester_lowrank(*inputs)
        grad(loss(w), inputs)
    assert mode.elements == d * n  # a square one would have 667 times as many
    b_w = 0.01 * ((w @ x) @ x.T)
    residual = torch.linalg.norm(a @ w + b_w - q) / (
        torch.linalg.norm(q) + 0.01 * torch.linalg.norm(x.T @ x) * torch.linalg.norm(w)
    )
    assert residual < 1e-14  # worst measured 2e-15


# --------------------------------------------------------------------------------------- bad input


def test_bad_input() -> None:
    a, x, q = positive(F64), samples(4, 4, F64), random(K, D)
    assert solve_sylvester_lowrank(a, x, q, 2).isfinite().all()
    one = torch.tensor(1.0)
    for lam in (True, "1", 1j, None, [1.0], one.expand(2), one.to(torch.int64), one * 1j):
        with pytest.raises(OptionTypeError, match="lam"):
            solve_sylvester_lowrank(a, x, q, lam)
    for value in (-1.0, -1e-300, float("nan"), float("inf")):
        for lam in (value, torch.tensor(value, dtype=F64)):
            with pytest.raises(OptionError, match="lam must be at least 0 and finite"):
                solve_sylvester_lowrank(a, x, q, lam)
    for wrong in ((a.float(), x, q), (a, x.float(), q), (a, x, q.float()), (a, x, q.tolist())):
        with pytest.raises(OptionTypeError):
            solve_sylvester_lowrank(*wrong)
    for wrong in (
        (a[:2], x, q),
        (a[0], x, q),
        (a, x[0], q),
        (a, x.T, q),
        (a, x, q.T),
        (a, x.to("meta"), q),
        (a.expand(2, K, K), x.expand(3, D, 4), q),
        (a, x, q.expand(0, K, D).reshape(0, D, K)),
    ):
        with pytest.raises(MatrixError):
            solve_sylvester_lowrank(*wrong)
    for i in range(3):
        wrong = [a.clone(), x.clone(), q.clone()]
        wrong[i][0, 0] = float("nan")
        with pytest.raises(MatrixError, match=f"{'axq'[i]} must be finite"):
            solve_sylvester_lowrank(*wrong)
    with pytest.raises(MatrixError, match="a must be Hermitian"):
        solve_sylvester_lowrank(a + torch.ones(K, K, dtype=F64).triu(1), x, q)
    for other in (-a, a - 2 * torch.eye(K, dtype=F64)):
        with pytest.raises(MatrixError, match="positive semi-definite, but has the eigenvalue -"):
            solve_sylvester_lowrank(other, x, q)
