"""Arguments that cannot be solved with: typed errors that name the argument and the remedy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from sylvester_problems import DTYPES, eps_of, ids, solver, with_and_without

import sylvinit
from sylvinit.errors import MatrixError, OptionError, OptionTypeError, SylvinitError

STRUCTURES = ("auto", "gen", "sym", "pos")
structures = pytest.mark.parametrize("assume", STRUCTURES)


def arguments(
    k: int = 3, d: int = 4, dtype: torch.dtype = torch.float64, batch: tuple[int, ...] = ()
) -> dict[str, torch.Tensor]:
    """A well-posed equation; a batch for the matrices only where it is asked for."""
    return {
        "a": 2 * torch.eye(k, dtype=dtype).repeat(*batch, 1, 1),
        "b": torch.eye(d, dtype=dtype).repeat(*batch, 1, 1),
        "q": torch.ones(*batch, k, d, dtype=dtype),
    }


def raises(error: type[Exception], text: str, assume: str = "auto", **operands) -> None:
    """solve_sylvester and, where it looks at the same things, sylvester_residual."""
    operands = {**arguments(), **operands}
    with pytest.raises(error, match=text) as caught:
        sylvinit.solve_sylvester(**operands, assume_a=assume)
    assert isinstance(caught.value, SylvinitError)


def residual_raises(error: type[Exception], text: str, **operands) -> None:
    operands = {**arguments(), "x": torch.ones(3, 4, dtype=torch.float64), **operands}
    with pytest.raises(error, match=text):
        sylvinit.sylvester_residual(**operands)


def test_error_types() -> None:
    assert issubclass(MatrixError, ValueError)
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionTypeError, TypeError)


@structures
@pytest.mark.parametrize("name", ["a", "b", "q"])
@pytest.mark.parametrize("value", [None, 1.0, [[1.0]], np.eye(3), "a"], ids=repr)
def test_not_a_tensor(assume, name, value) -> None:
    text = rf"^{name} must be a torch.Tensor, got {type(value).__name__}; convert it with"
    raises(OptionTypeError, text, assume, **{name: value})
    residual_raises(OptionTypeError, text, **{name: value})


@structures
@pytest.mark.parametrize("name", ["a", "b", "q"])
@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float16, torch.bfloat16],
    **ids,
)
def test_dtypes_that_are_not_supported(assume, name, dtype) -> None:
    text = rf"^{name} must be float32, float64, complex64, complex128, got {dtype};.*\.to\(\)"
    raises(OptionTypeError, text, assume, **{name: arguments()[name].to(dtype)})
    residual_raises(OptionTypeError, text, **{name: arguments()[name].to(dtype)})


@structures
@pytest.mark.parametrize(("name", "named"), [("a", "a and b"), ("b", "a and b"), ("q", "a and q")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], **ids)  # beside float64
def test_mixed_dtypes(assume, name, named, dtype) -> None:
    text = rf"^{named} must have one dtype, got .*{dtype}"
    raises(OptionTypeError, text, assume, **{name: arguments(dtype=dtype)[name]})
    residual_raises(OptionTypeError, text, **{name: arguments(dtype=dtype)[name]})


@structures
@pytest.mark.parametrize(("name", "named"), [("a", "a and b"), ("b", "a and b"), ("q", "a and q")])
def test_mixed_devices(assume, name, named) -> None:
    operand = arguments()[name].to("meta")
    text = rf"^{named} must be on one device, got .*meta"
    raises(MatrixError, text, assume, **{name: operand})
    residual_raises(MatrixError, text, **{name: operand})


@structures
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4, 0), (0, 1), (5, 3, 1)])
def test_not_square(assume, name, shape) -> None:
    operand = torch.ones(shape, dtype=torch.float64)
    text = rf"^{name} must be square, got shape \({', '.join(map(str, shape))}\)$"
    raises(MatrixError, text, assume, **{name: operand})
    residual_raises(MatrixError, text, **{name: operand})


@structures
@pytest.mark.parametrize("name", ["a", "b", "q"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_too_few_dimensions(assume, name, shape) -> None:
    operand = torch.ones(shape, dtype=torch.float64)
    text = rf"^{name} must have at least 2 dimensions .*, got shape \(.*v\[:, None\]"
    raises(MatrixError, text, assume, **{name: operand})
    residual_raises(MatrixError, text, **{name: operand})


@structures
@pytest.mark.parametrize("name", ["a", "b", "q"])
def test_sparse(assume, name) -> None:
    with torch.sparse.check_sparse_tensor_invariants(False):
        operand = arguments()[name].to_sparse()
    text = rf"^{name} must be a dense tensor, got layout torch.sparse_coo"
    raises(OptionTypeError, text, assume, **{name: operand})
    residual_raises(OptionTypeError, text, **{name: operand})


@structures
@pytest.mark.parametrize(
    "shape", [(4, 3), (3, 3), (4, 4), (3, 5), (1, 4), (3, 1), (0, 4), (7, 4, 3)]
)
def test_right_side_does_not_fit(assume, shape) -> None:
    q = torch.ones(shape, dtype=torch.float64)
    text = rf"^q must have shape \(\.\.\., 3, 4\).*, got \({', '.join(map(str, shape))}\)$"
    raises(MatrixError, text, assume, q=q)
    residual_raises(MatrixError, text, q=q)


@structures
def test_batches_do_not_broadcast(assume) -> None:
    two, three = arguments(batch=(2,)), arguments(batch=(3,))
    raises(
        MatrixError,
        r"batch dimensions do not broadcast: \(2,\) of a and \(3,\) of b",
        assume,
        a=two["a"],
        b=three["b"],
    )
    for name in ("a", "b"):
        raises(
            MatrixError,
            r"batch dimensions do not broadcast: \(2,\) .* and \(3,\) of q",
            assume,
            q=three["q"],
            **{name: two[name]},
        )
    raises(MatrixError, "do not broadcast", assume, **{**two, "q": torch.ones(0, 3, 4).double()})


def test_residual_of_a_solution_that_does_not_fit() -> None:
    wrong = torch.ones(4, 3, dtype=torch.float64)
    residual_raises(MatrixError, r"\(\.\.\., 3, 4\).*got \(4, 3\)", x=wrong)
    residual_raises(OptionTypeError, "a and x must have one dtype", x=torch.ones(3, 4))
    residual_raises(OptionTypeError, "x must be a torch.Tensor", x=None)


def test_residual_names_x() -> None:
    wrong = torch.ones(4, 3, dtype=torch.float64)
    residual_raises(MatrixError, "^x must have shape", x=wrong)


@pytest.mark.parametrize("assume", ["", "SYM", "her", "general", None, 1, ["sym"], True], ids=repr)
def test_unknown_structure(assume) -> None:
    with pytest.raises((OptionError, OptionTypeError), match=r"assume_a must be .*auto.*pos") as e:
        sylvinit.solve_sylvester(**arguments(), assume_a=assume)
    assert repr(assume) in str(e.value)


def test_assume_a_is_a_keyword() -> None:
    with pytest.raises(TypeError):
        sylvinit.solve_sylvester(*arguments().values(), "sym")


# ----------------------------------------------------------------------------------------- values


@with_and_without
@structures
@pytest.mark.parametrize("name", ["a", "b", "q"])
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_not_finite(compiled, assume, name, dtype) -> None:
    values = [torch.nan, torch.inf, -torch.inf]
    if dtype.is_complex:
        values += [complex(1, torch.nan), complex(torch.nan, torch.inf), complex(0, -torch.inf)]
    text = rf"^{name} must be finite, but contains NaN or Inf"
    for value in values:
        for k, d, batch in ((3, 4, ()), (4, 3, ()), (3, 4, (2,)), (40, 33, ())):
            operands = arguments(k, d, dtype, batch)
            operands[name][..., 1, 1] = value
            with solver(compiled):
                raises(MatrixError, text, assume, **operands)
                # Alone, beside batches of the others.
                raises(
                    MatrixError,
                    text,
                    assume,
                    **{**arguments(k, d, dtype, (2,)), name: operands[name]},
                )


@with_and_without
@structures
@pytest.mark.parametrize("name", ["a", "b", "q"])
def test_not_finite_with_derivatives(compiled, assume, name) -> None:
    operands = arguments()
    operands[name][0, 1] = torch.nan
    for asks in ("a", "b", "q"):
        leaves = {key: value.clone().requires_grad_(key == asks) for key, value in operands.items()}
        with solver(compiled):
            raises(MatrixError, rf"^{name} must be finite", assume, **leaves)


@with_and_without
@structures
def test_last_entry_of_a_batch_is_looked_at(compiled, assume) -> None:
    for name in ("a", "b", "q"):
        for k, d in ((3, 4), (4, 3)):
            operands = arguments(k, d, batch=(5, 2))
            operands[name][-1, -1, -1, -1] = torch.inf
            with solver(compiled):
                raises(MatrixError, rf"^{name} must be finite", assume, **operands)


@with_and_without
@pytest.mark.parametrize("assume", ["sym", "pos"])
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_not_hermitian(compiled, assume, name, dtype) -> None:
    text = (
        rf"^{name} must be Hermitian \(symmetric if real\) with assume_a='{assume}', but differs "
        rf"from its adjoint by up to .*assume_a='gen'.*\({name} \+ {name}\.mH\) / 2"
    )
    changes = [1.0, 1e-3] + ([1e-3j] if dtype.is_complex else [])
    for k, d, batch in ((3, 4, ()), (4, 3, (2,)), (40, 33, ())):
        for change in changes:
            operands = arguments(k, d, dtype, batch)
            operands[name][..., 0, 2] += change
            with solver(compiled):
                raises(MatrixError, text, assume, **operands)
        if dtype.is_complex:
            operands = arguments(k, d, dtype, batch)
            operands[name][..., 1, 1] += 0.1j
            with solver(compiled):
                raises(MatrixError, text, assume, **operands)
            symmetric = arguments(k, d, dtype, batch)  # but not Hermitian
            symmetric[name][..., 0, 1] = symmetric[name][..., 1, 0] = 0.5j
            with solver(compiled):
                raises(MatrixError, text, assume, **symmetric)


@with_and_without
@pytest.mark.parametrize("assume", ["sym", "pos"])
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("gradient", [False, True], ids=["plain", "with derivatives"])
def test_hermitian_up_to_rounding(compiled, assume, dtype, gradient) -> None:
    """The Hermitian part is what is solved with."""
    generator = torch.Generator().manual_seed(0)
    for k, d, batch in ((3, 4, ()), (4, 3, (2,)), (40, 33, ()), (2, 70, ())):
        operands = arguments(k, d, dtype, batch)
        for name, n in (("a", k), ("b", d)):
            noise = torch.rand(operands[name].shape, generator=generator, dtype=torch.float64)
            operands[name] = operands[name] + (4 * n * eps_of(operands[name]) * noise).to(dtype)
        parts = {x: (operands[x] + operands[x].mH) / 2 for x in "ab"}
        with solver(compiled):
            expected = sylvinit.solve_sylvester(**{**operands, **parts}, assume_a=assume)
            operands["q"].requires_grad_(gradient)
            x = sylvinit.solve_sylvester(**operands, assume_a=assume).detach()
        assert (x - expected).abs().max() <= 10 * k * eps_of(x) * expected.abs().max()


def test_complex_diagonal_of_auto_is_general() -> None:
    """Symmetric is not Hermitian: "auto" must not take the upper triangle for all."""
    a = torch.tensor([[2 + 1j, 0.5j], [0.5j, 3]], dtype=torch.complex128)
    q = torch.ones(2, 2, dtype=torch.complex128)
    x = sylvinit.solve_sylvester(a, a, q)
    assert sylvinit.sylvester_residual(a, a, q, x) <= 1e-15


# ---------------------------------------------------------------------------- what is left alone


@with_and_without
@structures
def test_generators_are_left_alone(compiled, assume) -> None:
    operands = arguments(20, 30)
    bad = {**operands, "a": operands["a"] * torch.nan}
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    with solver(compiled):
        sylvinit.solve_sylvester(**operands, assume_a=assume)
        raises(MatrixError, "finite", assume, **bad)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


@structures
def test_meta_tensors_give_a_meta_tensor(assume) -> None:
    operands = {name: x.to("meta") for name, x in arguments(3, 4, torch.float32, (2,)).items()}
    x = sylvinit.solve_sylvester(**operands, assume_a=assume)
    assert (x.device.type, x.dtype, tuple(x.shape)) == ("meta", torch.float32, (2, 3, 4))
