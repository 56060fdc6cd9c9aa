"""Factor and solve on plain tensors: where values are looked at and a route is taken.

Inputs are float32, float64, complex64 or complex128 on one device; the work is done in float64 or
complex128. Factors are opaque: basis and core of a, then of b, in the form of the route:

- "tridiagonal", Hermitian matrices on the CPU: the smaller one diagonalized, the larger one to
  tridiagonal form, by the compiled module.
- "spectral", Hermitian matrices anywhere, and for many right sides: both diagonalized.
- "schur", any matrices: Schur forms, on the host, by the compiled module or by SciPy.

Any matrices on a GPU, solved with once, take shifted systems there where those are safe.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.errors import SolverError
from sylvinit.sylvester import lapack, matrices, schur, shifted, spectral
from sylvinit.sylvester.matrices import adjoint_of, widen
from sylvinit.sylvester.outcome import Mode, judge


class Factors(NamedTuple):
    """Of A X + X B = Q; (..., k, k) with its core, (..., d, d) with its core."""

    basis_a: Tensor
    core_a: Tensor
    basis_b: Tensor
    core_b: Tensor


def choose_form(structure: str, device: torch.device) -> str:
    """The route; "auto" where values cannot be looked at takes Schur forms."""
    if structure in ("gen", "auto"):
        return "schur"
    return "tridiagonal" if lapack.AVAILABLE and device.type == "cpu" else "spectral"


def inspect(name: str, x: Tensor) -> tuple[float, float]:
    """Largest modulus in a widened x, and in x - x^H if it is square; MatrixError for NaN, Inf."""
    if x.numel() == 0:
        return 0.0, 0.0
    if lapack.AVAILABLE and x.device.type == "cpu":
        size, gap = lapack.inspect(x)
    else:
        size = float(x.abs().amax())
        square = x.shape[-1] == x.shape[-2]
        gap = float((x - adjoint_of(x)).abs().amax()) if square and math.isfinite(size) else 0.0
    matrices.check_finite(name, size)
    return size, gap


def structure_of(a: Tensor, b: Tensor, assume: str, eps: float) -> tuple[str, Tensor, Tensor]:
    """What may be assumed of widened a and b, and both, exactly Hermitian if that was asked for."""
    size_a, gap_a = inspect("a", a)
    size_b, gap_b = inspect("b", b)
    if assume == "auto":
        return ("sym" if gap_a == 0 and gap_b == 0 else "gen"), a, b
    if assume in ("sym", "pos"):
        matrices.check_hermitian("a", assume, a.shape[-1], size_a, gap_a, eps)
        matrices.check_hermitian("b", assume, b.shape[-1], size_b, gap_b, eps)
        a = a if gap_a == 0 else (a + adjoint_of(a)) / 2
        b = b if gap_b == 0 else (b + adjoint_of(b)) / 2
    return assume, a, b


def factor(a: Tensor, b: Tensor, structure: str, form: str) -> Factors:
    """Decompose a (..., k, k) and b (..., d, d), each in its own batch.

    For "schur" with "auto", matrices that are Hermitian to the bit are diagonalized, which gives a
    Schur form.
    """
    eps = torch.finfo(a.dtype).eps
    seen, a, b = structure_of(widen(a), widen(b), structure, eps)
    if form == "spectral":
        return Factors(*spectral.decompose_pair(a, b))
    if form == "schur":
        return Factors(*_schur("a", a, seen), *_schur("b", b, seen))
    kind_a, kind_b = _kinds(form, a.shape[-1], b.shape[-1])
    return Factors(*lapack.decompose("a", a, kind_a), *lapack.decompose("b", b, kind_b))


def _kinds(form: str, k: int, d: int) -> tuple[str, str]:
    """What a and b are each decomposed into."""
    if form == "tridiagonal":
        return ("spectral", form) if k <= d else (form, "spectral")
    return form, form


def core_dimensions(form: str, k: int, d: int) -> tuple[int, ...]:
    """How many dimensions the cores of one a and one b have."""
    return tuple(1 if kind == "spectral" else 2 for kind in _kinds(form, k, d))


def factor_shapes(a: Tensor, b: Tensor, form: str) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of :func:`factor`, without values."""
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = []
    for x, kind in zip((a, b), _kinds(form, a.shape[-1], b.shape[-1]), strict=True):
        core = lapack.core_shape(kind, x.shape[-1], x.dtype)
        shapes.append((tuple(x.shape), wide))
        shapes.append(((*x.shape[:-2], *core), lapack.core_dtype(kind, wide)))
    return shapes


def _schur(name: str, x: Tensor, structure: str) -> tuple[Tensor, Tensor]:
    """On the host, and back."""
    host = x.cpu()
    if structure == "sym":
        vectors, values = spectral.decompose(host)
        basis, core = vectors, torch.diag_embed(values).to(host.dtype)
        if lapack.AVAILABLE:  # which reads column-major and decomposes the transposed matrix
            basis = adjoint_of(basis)
    elif lapack.AVAILABLE:
        basis, core = lapack.decompose(name, host, "schur")
    else:
        basis, core = schur.decompose(host)
    return basis.to(x.device), core.to(x.device)


def solve(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    factors: Factors,
    structure: str,
    form: str,
    *,
    adjoint: bool,
    checked: bool,
) -> Tensor:
    """X in q's dtype from factors of this structure and form; see :class:`Mode` for the flags."""
    mode = Mode(torch.finfo(q.dtype).eps, structure == "pos", adjoint, checked)
    wide_a, wide_b, wide_q = widen(a), widen(b), widen(q)
    if structure in ("sym", "pos"):  # what was factored; no change where it is exact
        wide_a, wide_b = (wide_a + adjoint_of(wide_a)) / 2, (wide_b + adjoint_of(wide_b)) / 2
    if checked:
        inspect("q", wide_q)
    core_a, core_b = core_dimensions(form, *q.shape[-2:])
    batch = torch.broadcast_shapes(
        *(x.shape[:-2] for x in (a, b, q, factors.basis_a, factors.basis_b)),
        factors.core_a.shape[:-core_a],
        factors.core_b.shape[:-core_b],
    )
    if math.prod(batch) * q.shape[-2] * q.shape[-1] == 0:
        return q.new_zeros((*batch, *q.shape[-2:]))
    if form == "spectral":
        x, outcome = spectral.solve((wide_a, wide_b), factors, wide_q, mode)
    else:
        equation = (wide_a.cpu(), wide_b.cpu()), Factors(*(x.cpu() for x in factors)), wide_q.cpu()
        if form == "schur" and not lapack.AVAILABLE:
            x, outcome = schur.solve(*equation, mode)
        else:
            x, outcome = lapack.solve(*equation, form, mode)
    judge(outcome, tuple(batch), mode.eps, checked)
    return narrow(x.to(q.device), q.dtype, checked)


def solve_once(a: Tensor, b: Tensor, q: Tensor, assume: str) -> Tensor:
    """The whole solve, for plain tensors without derivatives."""
    eps = torch.finfo(q.dtype).eps
    wide_a, wide_b, wide_q = widen(a), widen(b), widen(q)
    structure, wide_a, wide_b = structure_of(wide_a, wide_b, assume, eps)
    form = choose_form(structure, q.device)
    batch = q.shape[:-2]
    one_batch = a.shape[:-2] == b.shape[:-2] == batch and q.numel() > 0
    if structure == "gen" and one_batch and shifted.pays(wide_q):
        inspect("q", wide_q)
        x = _by_shifts(wide_a, wide_b, wide_q, eps)
        if x is not None:
            return narrow(x, q.dtype, True)
    if form != "tridiagonal" or not one_batch:
        factors = factor(wide_a, wide_b, structure, form)
        return solve(wide_a, wide_b, q, factors, structure, form, adjoint=False, checked=True)
    inspect("q", wide_q)
    swap = q.shape[-2] > q.shape[-1]
    if swap:  # B X^H + X^H A = Q^H, the same equation
        wide_a, wide_b, wide_q = wide_b, wide_a, adjoint_of(wide_q)
    found = lapack.solve_hermitian_direct(wide_a, wide_b, wide_q, eps, structure == "pos")
    if found is None:  # values were checked above
        raise SolverError("a or b was changed by another thread during the solve; pass copies")
    x, outcome = found
    if swap:
        x, outcome = adjoint_of(x), outcome.swapped()
    judge(outcome, tuple(batch), eps)
    return narrow(x, q.dtype, True)


def _by_shifts(a: Tensor, b: Tensor, q: Tensor, eps: float) -> Tensor | None:
    """See :func:`shifted.solve`; the smaller matrix gets the Schur form."""
    if q.shape[-2] <= q.shape[-1]:
        return shifted.solve(a, b, q, eps)
    x = shifted.solve(adjoint_of(b), adjoint_of(a), adjoint_of(q), eps)
    return None if x is None else adjoint_of(x)


def narrow(x: Tensor, dtype: torch.dtype, checked: bool, names: str = "a, b and q") -> Tensor:
    """The solution in the caller's dtype, for which it must not be too large if it is checked."""
    narrowed = x.to(dtype)
    if checked and narrowed.dtype != x.dtype and not bool(narrowed.isfinite().all()):
        raise SolverError(f"the solution has entries too large for {dtype}; scale {names}")
    return narrowed
