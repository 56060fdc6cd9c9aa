"""sylvester_factor: many right sides, or many weights of B, for one decomposition."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sylvinit.checks import check_choice
from sylvinit.errors import OptionError, OptionTypeError
from sylvinit.sylvester import matrices, operators
from sylvinit.sylvester.compute import Factors
from sylvinit.sylvester.schur import eigenvalues


class SylvesterFactors:
    """Decompositions of A and B, made by :func:`sylvester_factor`.

    The tensors themselves are kept, not copies: changing them in place makes the factors wrong.

    Attributes:
        a: (..., k, k).
        b: (..., d, d).
        structure: "gen", "sym" or "pos".
    """

    def __init__(self, a: Tensor, b: Tensor, factors: Factors, structure: str, form: str) -> None:
        self.a, self.b, self.structure = a, b, structure
        self._factors, self._form = factors, form

    def __repr__(self) -> str:
        return (
            f"SylvesterFactors(a={tuple(self.a.shape)}, b={tuple(self.b.shape)}, "
            f"{self.a.dtype}, structure={self.structure!r})"
        )

    def eigenvalues(self) -> tuple[Tensor, Tensor]:
        """Of A (..., k) and B (..., d); real where the matrices are Hermitian. No derivatives."""
        cores = self._factors.core_a, self._factors.core_b
        return cores if self._form == "spectral" else (eigenvalues(cores[0]), eigenvalues(cores[1]))

    def separation(self, *, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> Tensor:
        """Distance from a singular equation, min |a_i + scale b_j + shift|: (...)."""
        scale, shift = self._number("scale", scale), self._number("shift", shift)
        self._batch(scale, shift)
        a, b = self.eigenvalues()
        b = scale.detach()[..., None] * b + shift.detach()[..., None]
        sums = (a[..., :, None] + b[..., None, :]).abs()
        if 0 in sums.shape[-2:]:
            return sums.new_full(sums.shape[:-2], torch.inf)
        return sums.amin(dim=(-2, -1))

    def solve(
        self, q: Tensor, *, scale: float | Tensor = 1.0, shift: float | Tensor = 0.0
    ) -> Tensor:
        """Solve A X + scale X B + shift X = Q: divisions and products only.

        Args:
            q: (..., k, d), dtype and device of a.
            scale: real number or tensor of a batch shape, which broadcasts with the others. A
                sweep over lam in A W + lam W B = Q is ``solve(q, scale=lams)``.
            shift: likewise.

        Returns:
            X (..., k, d), with derivatives for a, b, q, scale and shift.

        Raises:
            OptionTypeError: q, scale or shift have the wrong type or dtype.
            OptionError: scale or shift are not finite.
            MatrixError, SingularEquationError, SolverError: as :func:`solve_sylvester`.

        Memory: with tensors for scale or shift, scale B + shift I is formed for each entry.
        """
        k, d = self.a.shape[-1], self.b.shape[-1]
        q = matrices.check_matrix("q", q)
        matrices.check_alike(a=self.a, q=q)
        scale, shift = self._number("scale", scale), self._number("shift", shift)
        matrices.check_right_side(q, k, d, self._batch(scale, shift))
        identity = torch.eye(d, dtype=self.b.dtype, device=self.b.device)
        b = scale[..., None, None] * self.b + shift[..., None, None] * identity
        basis_a, core_a, basis_b, core_b = self._factors
        wide_scale, wide_shift = (x.detach().double()[..., None] for x in (scale, shift))
        if self._form == "spectral":
            core_b = wide_scale * core_b + wide_shift
        else:
            core_b = wide_scale[..., None] * core_b + wide_shift[..., None] * identity
        factors = Factors(basis_a, core_a, basis_b, core_b)
        return operators.solve_with(self.a, b, q, factors, self.structure, self._form)

    def _batch(self, scale: Tensor, shift: Tensor) -> torch.Size:
        batches = {"a": self.a.shape[:-2], "b": self.b.shape[:-2]}
        return matrices.broadcast(**batches, scale=scale.shape, shift=shift.shape)

    def _number(self, name: str, value: float | Tensor) -> Tensor:
        real = matrices.REAL[self.a.dtype]
        if isinstance(value, Tensor):
            if value.dtype != real:
                raise OptionTypeError(f"{name} must be {real} like a, got {value.dtype}")
            if value.device != self.a.device:
                raise OptionError(f"{name} must be on {self.a.device}, got {value.device}")
            still = value.detach()
            if operators.is_plain(still) and not bool(still.isfinite().all()):
                raise OptionError(f"{name} must be finite, got {still.tolist()}")
            return value
        number = matrices.number_like(self.a, name, value)
        if not math.isfinite(value):
            raise OptionError(f"{name} must be finite, got {value}")
        return number


def sylvester_factor(a: Tensor, b: Tensor, *, assume_a: str = "auto") -> SylvesterFactors:
    """Decompose A and B once, for any number of solves.

    A one-off :func:`solve_sylvester` of Hermitian matrices stops at tridiagonal form; this goes on
    to the eigenvalues, which costs two to three times as much and makes every solve cheap.

    Args:
        a: (..., k, k), float32, float64, complex64 or complex128.
        b: (..., d, d), same dtype and device.
        assume_a: "gen", "sym", "pos" or "auto", see :func:`solve_sylvester`. The zero rule of "pos"
            is applied to a_i + scale b_j + shift.

    Returns:
        An object with ``solve(q, scale=1.0, shift=0.0)``.

    Raises:
        OptionTypeError: not tensors, an integer dtype, or different dtypes.
        OptionError: unknown ``assume_a``.
        MatrixError: shapes do not fit, NaN or Inf, different devices, or not Hermitian.
        SolverError: an eigenvalue iteration did not converge.

    Example:
        >>> lams = torch.logspace(-3, 3, 7, dtype=torch.float64)
        >>> w = sylvinit.sylvester_factor(a, b).solve(q, scale=lams)  # (7, k, d)
    """
    a, b = matrices.check_square("a", a), matrices.check_square("b", b)
    structure = check_choice("assume_a", assume_a, matrices.STRUCTURES)
    matrices.check_alike(a=a, b=b)
    matrices.broadcast(a=a.shape[:-2], b=b.shape[:-2])
    still_a, still_b = a.detach(), b.detach()
    structure = operators.seen_structure(still_a, still_b, structure)
    form = "schur" if structure in ("gen", "auto") else "spectral"
    factors = operators.sylvester_factor(still_a, still_b, structure, form)
    return SylvesterFactors(a, b, Factors(*factors), structure, form)
