"""The routes of solve_sylvester: which is taken, that all agree, and what happens if one fails."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from sylvester_problems import (
    WIDE_DTYPES,
    eps_of,
    ids,
    kronecker_solution,
    normal,
    relative_error,
    solver,
    tensor,
    well_separated,
    wide,
    with_and_without,
    without_compiled_module,
)

import sylvinit
from sylvinit.backends import Backend, eigen
from sylvinit.cli import main
from sylvinit.errors import SolverError
from sylvinit.sylvester import compute, lapack, spectral
from sylvinit.sylvester.lapack import threads_for

STRUCTURES = ("gen", "sym", "pos")
needs_compiled = pytest.mark.skipif(not lapack.AVAILABLE, reason="no compiled module")


def equation(structure, k, d, batch=(), dtype=torch.float64, seed=0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    a, b = well_separated(rng, structure, batch, k, d, dtype.is_complex)
    q = normal(rng, *batch, k, d, complex_=dtype.is_complex)
    return [tensor(x, dtype) for x in (a, b, q)]


def forced(a, b, q, structure, form, adjoint=False) -> torch.Tensor:
    factors = compute.factor(a, b, structure, form)
    shapes = compute.factor_shapes(a, b, form)
    assert [(tuple(x.shape), x.dtype) for x in factors] == shapes
    return compute.solve(a, b, q, factors, structure, form, adjoint=adjoint, checked=True)


@pytest.fixture
def threads():
    """Set the number of threads; put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ----------------------------------------------------------------------------------- every route


@with_and_without
@pytest.mark.parametrize(
    ("form", "structure"),
    [*product(("tridiagonal", "spectral", "schur"), ("sym", "pos")), ("schur", "gen")],
)
@pytest.mark.parametrize("dtype", WIDE_DTYPES, **ids)
@pytest.mark.parametrize("adjoint", [False, True], ids=["", "adjoint"])
def test_every_form_agrees_with_the_kronecker_system(
    compiled, form, structure, dtype, adjoint
) -> None:
    if form == "tridiagonal" and not compiled:
        pytest.skip("the tridiagonal form needs the compiled module")
    for k, d, batch in ((1, 1, ()), (3, 5, (2,)), (6, 2, (2, 1)), (9, 9, ())):
        a, b, q = equation(structure, k, d, batch, dtype)
        left, right = (wide(x.mH.resolve_conj() if adjoint else x) for x in (a, b))
        with solver(compiled):
            x = forced(a, b, q, structure, form, adjoint)
        assert x.dtype == dtype
        assert relative_error(x, kronecker_solution(left, right, wide(q))) <= 1e-13


@with_and_without
@pytest.mark.parametrize("structure", ["sym", "pos"])
@pytest.mark.parametrize(("k", "d"), [(33, 35), (70, 34), (40, 100)])
def test_forms_agree_with_each_other(compiled, structure, k, d) -> None:
    a, b, q = equation(structure, k, d, (2,))
    with solver(compiled):
        forms = ("tridiagonal", "spectral", "schur") if compiled else ("spectral", "schur")
        found = [forced(a, b, q, structure, form) for form in forms]
        found.append(sylvinit.solve_sylvester(a, b, q, assume_a="gen"))
        found.append(sylvinit.solve_sylvester(a, b, q, assume_a=structure))
    for x in found:
        assert relative_error(x, wide(found[0])) <= 1e-13


@needs_compiled
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", WIDE_DTYPES, **ids)
def test_compiled_and_fallback_agree(structure, dtype) -> None:
    for k, d in ((2, 3), (8, 5), (33, 70), (66, 40)):
        operands = equation(structure, k, d, (2,), dtype)
        compiled = sylvinit.solve_sylvester(*operands, assume_a=structure)
        with without_compiled_module():
            fallback = sylvinit.solve_sylvester(*operands, assume_a=structure)
        assert relative_error(compiled, wide(fallback)) <= 1e-13


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fallback_uses_nothing_compiled(structure, monkeypatch) -> None:
    monkeypatch.setattr(lapack, "_lapack", None)
    monkeypatch.setattr(lapack, "AVAILABLE", False)
    for k, d in ((3, 5), (5, 3)):
        a, b, q = equation(structure, k, d, (2,))
        x = sylvinit.solve_sylvester(a, b, q, assume_a=structure)
        assert relative_error(x, kronecker_solution(wide(a), wide(b), wide(q))) <= 1e-13
        a.requires_grad_()
        x = sylvinit.solve_sylvester(a, b, q, assume_a=structure)
        assert relative_error(x, kronecker_solution(wide(a), wide(b), wide(q))) <= 1e-13


# ------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize("available", [True, False])
def test_route_by_structure_and_device(available, monkeypatch) -> None:
    monkeypatch.setattr(lapack, "AVAILABLE", available)
    for device in (torch.device("cpu"), torch.device("meta"), torch.device("cuda", 1)):
        compiled = available and device.type == "cpu"
        for structure in ("sym", "pos"):
            expected = "tridiagonal" if compiled else "spectral"
            assert compute.choose_form(structure, device) == expected
        for structure in ("gen", "auto"):
            assert compute.choose_form(structure, device) == "schur"


@pytest.mark.parametrize("available", [True, False])
def test_info_says_what_runs_and_why_not(available, monkeypatch, capsys) -> None:
    monkeypatch.setattr(lapack, "AVAILABLE", available)
    monkeypatch.setattr(lapack, "REASON", "no module named so")
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    on_cpu, on_gpu = lines[lines.index("solve_sylvester") + 1 :]
    assert ("compiled module, batches over threads" in on_cpu) == available
    assert ("SciPy" in on_cpu and "no module named so" in on_cpu) != available
    assert "backend" in on_gpu


@pytest.mark.threads(2)
def test_threads_for_small_and_large_work(threads) -> None:
    threads(4)
    assert threads_for(1, 100, 100) == 1
    assert threads_for(8, 2, 2) == 1
    assert threads_for(3, 100, 100) == 3
    assert threads_for(8, 100, 100) == 4
    assert threads_for(8, 300, 100) == 4
    assert threads_for(3, 300, 100) == 1
    threads(1)
    assert threads_for(8, 100, 100) == 1


# --------------------------------------------------------------------------------------- threads


@pytest.mark.threads(2)
@needs_compiled
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", WIDE_DTYPES, **ids)
@pytest.mark.parametrize(("k", "d"), [(12, 30), (30, 12), (40, 40)])
def test_threads_give_the_same_bits(structure, dtype, k, d, threads) -> None:
    operands = equation(structure, k, d, (9,), dtype)
    found = []
    for count in (1, 2, 4, 2):
        threads(count)
        assert threads_for(9, k, d) == count
        found.append(sylvinit.solve_sylvester(*operands, assume_a=structure))
    assert all(torch.equal(x, found[0]) for x in found[1:])
    alone = [
        sylvinit.solve_sylvester(*one, assume_a=structure) for one in zip(*operands, strict=True)
    ]
    # Nothing of a solution depends on its batch.
    assert torch.equal(torch.stack(alone), found[0])


@pytest.mark.threads(2)
@with_and_without
@pytest.mark.parametrize("structure", STRUCTURES)
def test_batch_equals_one_by_one(compiled, structure, threads) -> None:
    threads(2)
    for k, d, count in ((3, 5, 40), (8, 4, 30), (20, 35, 8)):
        operands = equation(structure, k, d, (count,))
        with solver(compiled):
            together = sylvinit.solve_sylvester(*operands, assume_a=structure)
            for i in range(count):
                a, b, q = (x[i] for x in operands)
                alone = sylvinit.solve_sylvester(a, b, q, assume_a=structure)
                assert relative_error(alone, wide(together[i])) <= 50 * eps_of(q)


@pytest.mark.threads(2)
@needs_compiled
def test_error_of_a_batch_on_threads_is_the_first_one(threads) -> None:
    a, b, q = equation("pos", 20, 30, (16,))
    b[11] *= -1
    b[5] = -b[5]
    for count in (1, 2, 4):
        threads(count)
        with pytest.raises(sylvinit.errors.MatrixError, match=r"^b must .* entry \(5,\)"):
            sylvinit.solve_sylvester(a, b, q, assume_a="pos")


def test_repeated_calls_give_the_same_bits() -> None:
    for structure in STRUCTURES:
        operands = equation(structure, 15, 22, (3,))
        first = sylvinit.solve_sylvester(*operands, assume_a=structure)
        for _ in range(3):
            assert torch.equal(first, sylvinit.solve_sylvester(*operands, assume_a=structure))


# ------------------------------------------------------------------------------ failing routines


@needs_compiled
@pytest.mark.parametrize("name", ["a", "b"])
def test_compiled_iteration_that_does_not_converge(name, monkeypatch) -> None:
    """As LAPACK reports it: the index of the matrix."""
    module = lapack._lapack
    a, b, q = equation("gen", 3, 5, (4,))
    failing = {"a": 3, "b": 5}[name]

    def gives_up(which, address, count, n, *rest):
        failed = module.decompose(which, address, count, n, *rest)
        return 2 if n == failing else failed

    functions = {key: getattr(module, key) for key in dir(module)}
    stand_in = SimpleNamespace(**{**functions, "decompose": gives_up})
    monkeypatch.setattr(lapack, "_lapack", stand_in)
    with pytest.raises(SolverError, match=r"did not converge .*2.*scale"):
        sylvinit.solve_sylvester(a, b, q)
    h, g, _ = equation("sym", 3, 5)
    with pytest.raises(SolverError, match=r"did not converge .*2.*scale"):
        sylvinit.solve_sylvester(h, g, q, assume_a="sym")


def test_scipy_schur_that_does_not_converge(monkeypatch) -> None:
    def gives_up(*_, **__):
        raise scipy.linalg.LinAlgError("Schur form not found. Possibly ill-conditioned.")

    monkeypatch.setattr(lapack, "AVAILABLE", False)
    monkeypatch.setattr(scipy.linalg, "schur", gives_up)
    with pytest.raises(SolverError, match=r"Schur form .*ill-conditioned"):
        sylvinit.solve_sylvester(*equation("gen", 3, 5))


@pytest.mark.parametrize("structure", ["sym", "pos"])
def test_eigendecomposition_that_fails_on_every_route(structure, monkeypatch) -> None:
    def gives_up(*_, **__):
        raise torch.linalg.LinAlgError("no convergence")

    def gives_up_too(*_, **__):
        raise scipy.linalg.LinAlgError("no convergence either")

    monkeypatch.setattr(lapack, "AVAILABLE", False)
    operands = equation(structure, 3, 5)
    expected = sylvinit.solve_sylvester(*operands, assume_a=structure)
    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    second = sylvinit.solve_sylvester(*operands, assume_a=structure)  # SciPy's
    assert relative_error(second, wide(expected)) <= 1e-13
    monkeypatch.setattr(scipy.linalg, "eigh", gives_up_too)
    with pytest.raises(SolverError, match="no convergence either"):
        sylvinit.solve_sylvester(*operands, assume_a=structure)


@pytest.mark.parametrize("structure", ["sym", "pos"])
def test_wrong_eigenvectors_are_not_handed_out(structure, monkeypatch) -> None:
    """The residual is what is believed, not the decomposition."""
    monkeypatch.setattr(lapack, "AVAILABLE", False)

    def transposed(a, b, notes=None):
        return tuple((values, vectors.mT) for values, vectors in eigen.eigh_pair(a, b))

    backend = Backend("cpu", ("cpu",), "", eigh_pair=transposed)
    monkeypatch.setattr(spectral, "choose", lambda name, device: backend)
    with pytest.raises(SolverError, match="residual"):
        sylvinit.solve_sylvester(*equation(structure, 3, 5), assume_a=structure)
