"""solve_sylvester under torch.compile, tracing, fake tensors and torch.library's own checks."""

from __future__ import annotations

import inspect

import pytest
import torch
from sylvester_helpers import (
    equation_of,
    kronecker_solve,
    loss_of,
    near,
    oracle,
    parameters,
    solution,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import sylvinit
from sylvinit import solve_sylvester
from sylvinit.sylvester import operators

F64, C128 = torch.float64, torch.complex128
STRUCTURES = ("gen", "sym", "pos", "auto")
# Every (structure, form) that reaches the operators; "auto" stays where values cannot be seen.
PAIRS = (
    ("gen", "schur"),
    ("auto", "schur"),
    ("sym", "tridiagonal"),
    ("pos", "tridiagonal"),
    ("sym", "spectral"),
    ("pos", "spectral"),
)
# Float64 against the Kronecker system, relative to the largest entry; worst measured 4e-15.
NEAR = 1e-12


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_compile(structure: str, dynamic: bool) -> None:
    function = compiled(solution(structure), dynamic=dynamic)
    for k, d in ((2, 3), (5, 3)) if dynamic else ((2, 3),):
        tensors = parameters(k, d)
        near(function(*tensors), oracle(structure)(*tensors), NEAR)
        inputs = [x.clone().requires_grad_() for x in tensors]
        pairs = [
            torch.autograd.grad(loss_of(f)(*inputs), inputs) for f in (function, oracle(structure))
        ]
        for found, right in zip(*pairs, strict=True):
            near(found, right, NEAR)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_compile_with_batches_and_complex_numbers(structure: str) -> None:
    tensors = parameters(3, 2, C128, ((2, 1), (3,), ()))
    inputs = [x.clone().requires_grad_(i != 1) for i, x in enumerate(tensors)]
    wanted = inputs[::2]
    pairs = [
        torch.autograd.grad(loss_of(f)(*inputs), wanted)
        for f in (compiled(solution(structure)), oracle(structure))
    ]
    for found, right in zip(*pairs, strict=True):
        near(found, right, NEAR)


@pytest.mark.parametrize("transform", ["grad", "vmap", "vmap of grad", "jvp", "jacfwd", "jacrev"])
@pytest.mark.parametrize("structure", ["gen", "sym"])
def test_compiled_transforms(transform: str, structure: str) -> None:
    """Right, or a typed error or a graph break of torch; never another number."""
    t, s, q = parameters(2, 3, F64, ((), (), (4,)))
    one = q[0]

    def of(function):
        return {
            "grad": lambda t: grad(loss_of(function))(t, s, one),
            "vmap": lambda t: vmap(function, (None, None, 0))(t, s, q),
            "vmap of grad": lambda t: vmap(grad(loss_of(function)), (None, None, 0))(t, s, q),
            "jvp": lambda t: jvp(lambda t: function(t, s, one), (t,), (t.cos(),))[1],
            "jacfwd": lambda t: jacfwd(lambda t: function(t, s, one))(t),
            "jacrev": lambda t: jacrev(lambda t: function(t, s, one))(t),
        }[transform]

    found = torch.compile(of(solution(structure)), backend="aot_eager")(t)
    near(found, of(oracle(structure))(t), NEAR)


def test_dual_tensors_into_a_compiled_function() -> None:
    """An error, where the graph would lose the tangent; jvp inside it is tested above.

    Newer versions of torch refuse dual tensors at the door of a compiled function themselves.
    """
    t, s, q = parameters(2, 3)
    function = compiled(solution("gen"))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, q.cos())
        refused = (sylvinit.errors.BackendError, torch._dynamo.exc.Unsupported)
        with pytest.raises(refused, match=r"forward-mode|dual tensor"):
            function(t, s, dual)
    near(function(t, s, q), oracle("gen")(t, s, q), NEAR)


def test_errors_through_compiled_graphs_stay_typed() -> None:
    function = compiled(solve_sylvester)
    a, b, q = torch.eye(2), torch.eye(3), torch.ones(2, 3)
    assert torch.equal(function(a, b, q), torch.full((2, 3), 0.5))
    with pytest.raises(sylvinit.errors.SingularEquationError, match="share an eigenvalue"):
        function(a, -b, q)
    with pytest.raises(sylvinit.errors.MatrixError, match="q must be finite"):
        function(a, b, q * float("nan"))
    with pytest.raises(sylvinit.errors.MatrixError, match="eigenvalue -1"):
        compiled(lambda *x: solve_sylvester(*x, assume_a="pos"))(a, -b, q)
    with pytest.raises(sylvinit.errors.MatrixError, match="must be Hermitian"):
        compiled(lambda *x: solve_sylvester(*x, assume_a="sym"))(torch.ones(2, 2).triu(), b, q)


@pytest.mark.parametrize("structure", ["gen", "sym", "pos"])
def test_compiled_factors(structure: str) -> None:
    t, s, q = parameters(2, 3)
    a, b = equation_of(structure, t, s)
    scales = torch.tensor([0.5, 2.0], dtype=F64)

    def sweep(a: Tensor, b: Tensor, q: Tensor, scales: Tensor) -> Tensor:
        return sylvinit.sylvester_factor(a, b, assume_a=structure).solve(q, scale=scales, shift=3.0)

    expected = kronecker_solve(a, scales[:, None, None] * b + 3.0 * torch.eye(3), q)
    near(compiled(sweep)(a, b, q, scales), expected, NEAR)


def test_inductor() -> None:
    tensors = parameters(2, 3)
    try:
        torch.compile(lambda x: x.cos() + x)(tensors[0])
    except Exception as error:
        pytest.skip(f"torch.compile has no working compiler here: {type(error).__name__}")
    inputs = [x.clone().requires_grad_() for x in tensors]
    function = torch.compile(loss_of(solution("sym")), fullgraph=True)
    pairs = [torch.autograd.grad(f(*inputs), inputs) for f in (function, loss_of(oracle("sym")))]
    for found, right in zip(*pairs, strict=True):
        near(found, right, NEAR)


# --------------------------------------------------------------------- operators, fake tensors

CASES = {
    "k>d": (4, 2, F64, ((), (), ())),
    "batches": (2, 3, F64, ((2, 1), (3,), ())),
    "complex": (2, 3, C128, ((2,), (), (2,))),
    "complex k>d": (3, 1, C128, ((), (2,), (2,))),
    "complex64": (3, 2, torch.complex64, ((), (), (2,))),
}


def operands(structure: str, case: str) -> list[Tensor]:
    k, d, dtype, batches = CASES[case]
    t, s, q = parameters(k, d, dtype, batches)
    return [*equation_of("sym" if structure == "auto" else structure, t, s), q]


# Every case and every pair by default, all combinations with --thorough.
COMBINATIONS = [
    pytest.param(*pair, case, marks=[pytest.mark.thorough] * ((i + j) % 2))
    for i, pair in enumerate(PAIRS)
    for j, case in enumerate(CASES)
]


@pytest.mark.parametrize(("structure", "form", "case"), COMBINATIONS)
def test_opcheck(structure: str, form: str, case: str) -> None:
    a, b, q = operands(structure, case)
    torch.library.opcheck(operators.sylvester_factor, (a, b, structure, form))
    factors = operators.sylvester_factor(a, b, structure, form)
    for options in ((False, True), (True, False)) if case == "batches" else ((False, True),):
        inputs = [x.clone().requires_grad_() for x in (a, b, q)]
        single = a.dtype.to_real() == torch.float32
        # Both sides solve the same equations; what differs is the order of sums.
        bounds = {"rtol": 1e-4 if single else 1e-10, "atol": 1e-5 if single else 1e-12}
        if "rtol" not in inspect.signature(torch.library.opcheck).parameters:
            bounds = {}  # older versions of torch have bounds of their own
        torch.library.opcheck(
            operators.sylvester_solve,
            (*inputs, *factors, structure, form, *options),  # adjoint, checked
            **bounds,
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_shapes_without_values(structure: str, case: str) -> None:
    tensors = operands(structure, case)
    x = solve_sylvester(*tensors, assume_a=structure)
    meta = solve_sylvester(*(m.to("meta") for m in tensors), assume_a=structure)
    assert meta.is_meta
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(m) for m in tensors]
        fake = solve_sylvester(*fakes, assume_a=structure)
    for found in (meta, fake):
        assert (found.shape, found.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_make_fx(structure: str, tracing: str) -> None:
    inputs = parameters(2, 3, F64, ((2,), (), (2,)))
    traced = make_fx(grad(loss_of(solution(structure))), tracing_mode=tracing)(*inputs)
    names = [str(node.target) for node in traced.graph.nodes]
    assert names.count("sylvinit.sylvester_factor.default") == 1
    assert names.count("sylvinit.sylvester_solve.default") == 2
    others = [x * 0.9 for x in inputs]
    near(traced(*others), grad(loss_of(oracle(structure)))(*others), NEAR)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    class Solve(torch.nn.Module):
        def forward(self, t: Tensor, s: Tensor, q: Tensor) -> Tensor:
            return solution("pos")(t, s, q)

    inputs = parameters(2, 3)
    program = torch.export.export(Solve(), tuple(inputs), strict=strict)
    others = [x * 0.9 for x in inputs]
    near(program.module()(*others), oracle("pos")(*others), NEAR)


class Passing(TorchDispatchMode):
    """Does nothing. PyTorch's counters, loggers and selective checkpointing work like this."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_under_a_dispatch_mode(structure: str, dtype: torch.dtype) -> None:
    """Operators run there with lazy conjugation switched off."""
    for k, d in ((2, 3), (3, 2)):
        t, s, q = parameters(k, d, dtype)
        inputs = [x.requires_grad_() for x in (*equation_of(structure, t, s), q)]
        with Passing():
            x = solve_sylvester(*inputs, assume_a=structure)
            found = torch.autograd.grad(x, inputs, q.detach())
        expected = kronecker_solve(*inputs)
        near(x, expected, NEAR)
        right = torch.autograd.grad(expected, inputs, q.detach())
        for one, other in zip(found, right, strict=True):
            near(one, other, NEAR)
