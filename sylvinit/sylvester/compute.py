"""Factor and solve on plain tensors: where values are looked at and routes are called.

Inputs are float32, float64, complex64 or complex128 on one device; the work is done in float64 or
complex128. Factors are opaque: basis and core of a, then of b, in the form of the route.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sylvinit.errors import SolverError
from sylvinit.sylvester import lapack, matrices, routes, schur, spectral
from sylvinit.sylvester.outcome import Outcome, Status, judge
from sylvinit.sylvester.threads import threads_for


class Factors(NamedTuple):
    """Of A X + X B = Q; (..., k, k) with its core, (..., d, d) with its core."""

    basis_a: Tensor
    core_a: Tensor
    basis_b: Tensor
    core_b: Tensor


def widen(x: Tensor) -> Tensor:
    """The same values, float64 or complex128, contiguous, detached."""
    dtype = torch.complex128 if x.dtype.is_complex else torch.float64
    return x.detach().to(dtype).resolve_conj().resolve_neg().contiguous()


def adjoint_of(x: Tensor) -> Tensor:
    """x^H with the conjugation and the order carried out in memory.

    Inside operators torch may have lazy conjugation switched off, and then sums ignore it.
    """
    return x.mT.conj_physical().contiguous()


def inspect(name: str, x: Tensor) -> tuple[float, float]:
    """Largest modulus of an entry of a widened tensor, and of x - x^H where it is square.

    Raises:
        MatrixError: an entry is NaN or Inf.
    """
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
    """What may be assumed of widened a and b, and both, exactly Hermitian if that was asked for.

    Raises:
        MatrixError: not finite, or not Hermitian where it was declared.
    """
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

    Args:
        a, b: any supported dtype.
        structure: value of ``assume_a``.
        form: name of a route. With "schur" and "auto", matrices that are Hermitian to the bit get
            an eigendecomposition, which is a Schur form.

    Raises:
        MatrixError: of the values.
        SolverError: an iteration did not converge.
    """
    eps = torch.finfo(a.dtype).eps
    seen, a, b = structure_of(widen(a), widen(b), structure, eps)
    k, d = a.shape[-1], b.shape[-1]
    if form == "schur":
        return Factors(*_schur(a, seen), *_schur(b, seen))
    if form == "spectral":
        return Factors(*spectral.decompose_pair(a, b))
    kinds = ("spectral", "tridiagonal") if k <= d else ("tridiagonal", "spectral")
    return Factors(*_decompose("a", a, kinds[0]), *_decompose("b", b, kinds[1]))


def core_dimensions(form: str, k: int, d: int) -> tuple[int, int]:
    """How many dimensions the cores of one a and one b have."""
    if form == "tridiagonal":
        return (1, 2) if k <= d else (2, 1)
    return (1, 1) if form == "spectral" else (2, 2)


def factor_shapes(a: Tensor, b: Tensor, form: str) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of :func:`factor`, without values."""
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    k, d = a.shape[-1], b.shape[-1]
    kinds = {
        "schur": ("schur", "schur"),
        "spectral": ("spectral", "spectral"),
        "tridiagonal": ("spectral", "tridiagonal") if k <= d else ("tridiagonal", "spectral"),
    }[form]
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = []
    for x, kind in zip((a, b), kinds, strict=True):
        core = lapack.core_shape(kind, x.shape[-1], x.dtype)
        shapes.append((tuple(x.shape), wide))
        shapes.append(((*x.shape[:-2], *core), lapack.core_dtype(kind, wide)))
    return shapes


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
    """X of A X + X B = Q, or of A^H X + X B^H = Q, in q's dtype, from the factors of a and b.

    Args:
        a, b, q: batch dimensions broadcast, those of the factors too.
        factors: of :func:`factor` with the same structure and form.
        structure: value of ``assume_a``.
        form: name of the route.
        adjoint: which equation.
        checked: False for derivatives: nothing is said of q's values or of the spectra.

    Raises:
        SingularEquationError, MatrixError, SolverError: see :func:`sylvinit.solve_sylvester`.
    """
    batch, x, outcome = _solve(a, b, q, factors, structure, form, adjoint, checked)
    judge(outcome, tuple(batch), torch.finfo(q.dtype).eps, checked)
    return _narrow(x, q.dtype, checked)


def solve_once(a: Tensor, b: Tensor, q: Tensor, assume: str) -> Tensor:
    """The whole solve, for plain tensors without derivatives.

    Raises:
        SingularEquationError, MatrixError, SolverError: see :func:`sylvinit.solve_sylvester`.
    """
    eps = torch.finfo(q.dtype).eps
    wide_a, wide_b, wide_q = widen(a), widen(b), widen(q)
    structure, wide_a, wide_b = structure_of(wide_a, wide_b, assume, eps)
    form = routes.choose(structure, q.device)
    batch = q.shape[:-2]
    if form != "tridiagonal" or not (a.shape[:-2] == b.shape[:-2] == batch) or q.numel() == 0:
        factors = factor(wide_a, wide_b, structure, form)
        return solve(wide_a, wide_b, q, factors, structure, form, adjoint=False, checked=True)
    inspect("q", wide_q)
    k, d = q.shape[-2:]
    if k > d:
        wide_a, wide_b, wide_q = wide_b, wide_a, adjoint_of(wide_q)
    x = torch.empty_like(wide_q)
    threads = threads_for(math.prod(batch), k, d)
    positive = structure == "pos"
    outcome = lapack.solve_hermitian_direct(wide_a, wide_b, wide_q, x, eps, positive, threads)
    if outcome is None:  # values were checked above
        raise SolverError("the matrices changed while they were being solved with")
    if k > d:
        x, outcome = adjoint_of(x), _swapped(outcome)
    judge(outcome, tuple(batch), eps, True)
    return _narrow(x, q.dtype, True)


# ------------------------------------------------------------------------------------------- inside


def _narrow(x: Tensor, dtype: torch.dtype, checked: bool) -> Tensor:
    narrow = x.to(dtype)
    if checked and narrow.dtype != x.dtype and not bool(narrow.isfinite().all()):
        raise SolverError(f"the solution has entries too large for {dtype}; scale a, b and q")
    return narrow


def _decompose(name: str, x: Tensor, form: str) -> tuple[Tensor, Tensor]:
    n = x.shape[-1]
    if n > lapack.LARGEST:
        raise SolverError(
            f"{name} has size {n}, but LAPACK's 32-bit workspace ends at {lapack.LARGEST}; move "
            "the tensors to a GPU, or use solve_sylvester_lowrank"
        )
    threads = threads_for(math.prod(x.shape[:-2]), n, n)
    basis, core, failed = lapack.decompose(x, form, threads)
    if failed >= 0:
        raise SolverError(
            f"the eigenvalue iteration for {name} did not converge (matrix {failed} of its batch); "
            "scale the matrices to similar size"
        )
    return basis, core


def _schur(x: Tensor, structure: str) -> tuple[Tensor, Tensor]:
    """On the host, and back."""
    host = x.cpu()
    if structure == "sym":
        vectors, values = spectral.decompose(host)
        basis, core = vectors, torch.diag_embed(values).to(host.dtype)
        if lapack.AVAILABLE:  # which reads column-major and decomposes the transposed matrix
            basis = adjoint_of(basis)
    elif lapack.AVAILABLE:
        basis, core = _decompose("a or b", host, "schur")
    else:
        basis, core = schur.decompose(host)
    return basis.to(x.device), core.to(x.device)


def _solve(
    a: Tensor,
    b: Tensor,
    q: Tensor,
    factors: Factors,
    structure: str,
    form: str,
    adjoint: bool,
    checked: bool,
) -> tuple[torch.Size, Tensor, Outcome]:
    eps = torch.finfo(q.dtype).eps
    a, b, q = widen(a), widen(b), widen(q)
    if structure in ("sym", "pos"):  # what was factored; no change where it is exact
        a, b = (a + adjoint_of(a)) / 2, (b + adjoint_of(b)) / 2
    if checked:
        inspect("q", q)
    k, d = q.shape[-2:]
    dims_a, dims_b = core_dimensions(form, k, d)
    parts_a = ((a, 2), (factors.basis_a, 2), (factors.core_a, dims_a))
    parts_b = ((b, 2), (factors.basis_b, 2), (factors.core_b, dims_b))
    batch_a, batch_b = (
        torch.broadcast_shapes(*(x.shape[: x.ndim - dims] for x, dims in parts))
        for parts in (parts_a, parts_b)
    )
    batch = torch.broadcast_shapes(batch_a, batch_b, q.shape[:-2])
    if math.prod(batch) * k * d == 0:
        return batch, q.new_zeros((*batch, k, d)), Outcome.empty()
    if form == "spectral":
        x, outcome = spectral.solve(
            (a, b), factors, q, eps=eps, positive=structure == "pos", examine=checked
        )
        return batch, x, outcome
    home = q.device
    flat_a = [_flat(x, dims, batch_a) for x, dims in parts_a]
    flat_b = [_flat(x, dims, batch_b) for x, dims in parts_b]
    picks = [_index(part, batch) for part in (batch_a, batch_b, q.shape[:-2])]
    right = q.cpu().reshape(-1, k, d)
    x = torch.empty((math.prod(batch), k, d), dtype=q.dtype, device="cpu")
    all_factors = Factors(*flat_a[1:], *flat_b[1:])
    if form == "schur" and not lapack.AVAILABLE:
        outcome = schur.solve(
            all_factors,
            (picks[0], picks[1], picks[2]),
            (flat_a[0], flat_b[0]),
            right,
            x,
            eps=eps,
            examine=checked,
            adjoint=adjoint,
        )
        return batch, x.view(*batch, k, d).to(home), outcome
    swap = form == "tridiagonal" and k > d
    if swap:
        right = adjoint_of(right)
        x = x.new_empty((len(x), d, k))
        flat_a, flat_b = flat_b, flat_a
        picks = [picks[1], picks[0], picks[2]]
        all_factors = Factors(*all_factors[2:], *all_factors[:2])
    outcome = lapack.solve(
        (flat_a[0], flat_b[0]),
        all_factors,
        picks,
        right,
        x,
        eps=eps,
        threads=threads_for(len(x), k, d),
        examine=checked,
        positive=structure == "pos",
        adjoint=adjoint,
    )
    if swap:
        x, outcome = adjoint_of(x), _swapped(outcome)
    return batch, x.reshape(*batch, k, d).to(home), outcome


def _flat(x: Tensor, dims: int, batch: torch.Size) -> Tensor:
    """(count, ...) on the CPU, where ``dims`` is the number of dimensions of one entry."""
    shape = x.shape[x.ndim - dims :]
    return x.cpu().expand(*batch, *shape).reshape(-1, *shape).contiguous()


def _index(batch: torch.Size, whole: torch.Size) -> Tensor | None:
    """Which entry of a batch each entry of the whole one takes; None: its own."""
    if batch == whole:
        return None
    count = torch.arange(math.prod(batch), device="cpu").view(batch)
    return count.expand(whole).flatten().contiguous()


def _swapped(outcome: Outcome) -> Outcome:
    """For B X^H + X^H A = Q^H, the same equation."""
    return Outcome(
        outcome.status,
        outcome.problem,
        outcome.residual,
        outcome.separation,
        outcome.b,
        outcome.a,
        outcome.dropped,
    )


__all__ = ["Factors", "Status", "factor", "factor_shapes", "solve", "solve_once", "widen"]
