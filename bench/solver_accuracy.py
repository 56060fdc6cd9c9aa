"""Accuracy of the Sylvester solver beside SciPy's on random problems of every kind and dtype.

    python bench/solver_accuracy.py [--problems 1000] [--output bench/results/solver_accuracy.json]

Sizes 1 to 60, float32, float64, complex64, complex128, every assume_a that a kind allows. In single
precision condition numbers go up to 1e4 instead of 1e12: beyond, rounding the matrices to the dtype
changes the problem. Compared are relative residuals, |AX + XB - Q| / ((|A| + |B|) |X| + |Q|), on
the same problems; SciPy works in the dtype of the problem. An equation that sylvinit refuses as
singular up to rounding is counted, and left out of both columns.

Where A and B both have the eigenvalue zero SciPy has no answer. There the error of the minimum-norm
solution is compared with that of two numpy.linalg.eigh and the same rule for zeros. The reference
is made of the eigenvectors and eigenvalues that the matrices were built from, in extended precision
(at least double where the platform has no more).
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from environment import environment
from numpy.typing import NDArray
from torch import Tensor

import sylvinit

Array = NDArray[Any]
Generator = np.random.Generator

LARGEST = 60
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
RATIO_BOUND = 2.0  # of residuals, to SciPy's
SINGLE_BOUND = 1e-5  # relative error in single precision, well-conditioned problems
HERMITIAN = ("pos", "sym", "auto", "gen")
ZERO = "zero eigenvalues"


# ------------------------------------------------------------------------------------ problems


def noise(rng: Generator, complex_: bool, *shape: int) -> Array:
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


def unitary(rng: Generator, complex_: bool, n: int) -> Array:
    """To extended precision, by a Newton step from a double one."""
    u, _ = np.linalg.qr(noise(rng, complex_, n, n))
    u = u.astype(np.clongdouble if complex_ else np.longdouble)
    return u @ (3 * np.eye(n) - u.conj().T @ u) / 2


def spread(rng: Generator, n: int, digits: float) -> Array:
    """n numbers from 10^-digits to 1, ends included, logarithmically."""
    exponents = -digits * rng.random(n)
    exponents[0] = 0
    exponents[-1] = -digits
    return 10**exponents


def few(rng: Generator, n: int, digits: float) -> Array:
    """Each of n numbers one of a few."""
    return rng.choice(spread(rng, max(1, n // 6), digits), n)


def well(rng: Generator, n: int, digits: float) -> Array:
    return rng.uniform(0.5, 2, n)


def conditioned(rng: Generator, n: int, digits: float) -> Array:
    return spread(rng, n, rng.uniform(0, digits))


def clustered(rng: Generator, n: int, digits: float) -> Array:
    return few(rng, n, 3) * (1 + 10.0 ** rng.uniform(-digits, -3, n))


def repeated(rng: Generator, n: int, digits: float) -> Array:
    return few(rng, n, rng.uniform(0, digits / 2))


def singular(rng: Generator, n: int, digits: float) -> Array:
    values = spread(rng, n, min(3.0, digits))
    values[rng.random(n) < rng.uniform(0.1, 0.9)] = 0
    values[0] = 0
    values[-1] = 1  # for n = 1 not zero: A X = Q then
    return values


def indefinite(rng: Generator, n: int, digits: float) -> Array:
    values = spread(rng, n, rng.uniform(0, 3)) * rng.uniform(0.8, 1.2, n)  # no exact collisions
    return values * rng.choice([-1, 1], n)


SPECTRA: dict[str, Callable[[Generator, int, float], Array]] = {
    "well conditioned": well,
    "condition number up to 1e12": conditioned,
    "clustered": clustered,
    "repeated": repeated,
    "very different norms": well,
    "indefinite": indefinite,
    ZERO: singular,
}


def graded(rng: Generator, complex_: bool, n: int, digits: float) -> Array:
    """Positive definite, rows and columns scaled over half the digits each."""
    u, scale = unitary(rng, complex_, n), np.sort(spread(rng, n, digits / 2))
    c = (u * well(rng, n, digits)) @ u.conj().T
    return scale[:, None] * c * scale


def general(rng: Generator, complex_: bool, n: int, digits: float) -> Array:
    """Eigenvalues in a disc that may or may not hold zero."""
    return noise(rng, complex_, n, n) / n**0.5 + rng.choice([0, 1, 3]) * np.eye(n)


def nonnormal(rng: Generator, complex_: bool, n: int, digits: float) -> Array:
    """Eigenvectors with condition numbers of up to a third of the digits."""
    u, v = unitary(rng, complex_, n), unitary(rng, complex_, n)
    s = spread(rng, n, rng.uniform(0, digits / 3))
    basis, inverse = (u * s) @ v, v.conj().T @ (u / s).conj().T
    return (basis * spread(rng, n, 2)) @ inverse


def defective(rng: Generator, complex_: bool, n: int, digits: float) -> Array:
    """A Jordan block in another basis."""
    u = unitary(rng, complex_, n)
    return u @ (rng.uniform(0.5, 2) * np.eye(n) + np.eye(n, k=1)) @ u.conj().T


MATRICES: dict[str, Callable[[Generator, bool, int, float], Array]] = {
    "graded": graded,
    "general": general,
    "general, ill-conditioned eigenvectors": nonnormal,
    "general, defective": defective,
}
GENERAL = ("general", "general, ill-conditioned eigenvectors", "general, defective")
KINDS = (*SPECTRA, *MATRICES)


@dataclass
class Problem:
    """A, B and Q in the dtype, and the eigenvalues and eigenvectors that A and B were made of."""

    kind: str
    assume: str
    a: Tensor
    b: Tensor
    q: Tensor
    origin: tuple[Array, Array, Array, Array] | None


def make(kind: str, dtype: torch.dtype, rng: Generator) -> Problem:
    complex_, single = dtype.is_complex, dtype in (torch.float32, torch.complex64)
    digits = 4.0 if single else 12.0
    k, d = (int(n) for n in rng.integers(1, LARGEST + 1, 2))
    parts: list[Array] = []
    matrices: list[Array] = []
    for n in (k, d):
        if kind in MATRICES:
            x = MATRICES[kind](rng, complex_, n, digits)
        else:
            u, values = unitary(rng, complex_, n), SPECTRA[kind](rng, n, digits)
            parts += [u, values]
            x = (u * values) @ u.conj().T
        matrices.append(x if kind in GENERAL else (x + x.conj().T) / 2)
    if kind == "very different norms":
        matrices[1] = matrices[1] * 10.0 ** rng.uniform(-digits, digits)
    a, b = (_tensor(x, dtype) for x in matrices)
    q = noise(rng, complex_, k, d)
    if rng.random() < 0.5:  # a solution of moderate size, or a right side of moderate size
        wide = torch.complex128 if complex_ else torch.float64
        q = a.to(wide).numpy() @ q + q @ b.to(wide).numpy()
    allowed = HERMITIAN
    if kind == "indefinite":
        allowed = HERMITIAN[1:]
    elif kind in GENERAL:
        allowed = ("gen", "auto")
    elif kind == ZERO:
        allowed = ("pos",)
    assume = str(rng.choice(allowed))
    origin = (parts[0], parts[1], parts[2], parts[3]) if kind == ZERO else None
    return Problem(kind, assume, a, b, _tensor(q, dtype), origin)


def _tensor(x: Array, dtype: torch.dtype) -> Tensor:
    wide = np.complex128 if dtype.is_complex else np.float64
    return torch.from_numpy(np.ascontiguousarray(x.astype(wide))).to(dtype)


# -------------------------------------------------------------------------------- measurements


@dataclass
class Group:
    """Of problems of one kind: what both solvers leave, and how often sylvinit would not solve."""

    ours: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    refused: int = 0

    def summary(self) -> dict[str, float | int | bool]:
        if not self.ours:
            return {"problems": 0, "refused": self.refused}
        ratios = [_ratio(x, y) for x, y in zip(self.ours, self.others, strict=True)]
        medians = statistics.median(self.ours), statistics.median(self.others)
        largest = max(self.ours), max(self.others)
        return {
            "problems": len(self.ours),
            "refused": self.refused,
            "median": medians[0],
            "median_other": medians[1],
            "largest": largest[0],
            "largest_other": largest[1],
            "largest_ratio": max(ratios),
            "met": all(_ratio(*pair) <= RATIO_BOUND for pair in (medians, largest)),
        }


def _ratio(x: float, y: float) -> float:
    return x / y if y > 0 else (0.0 if x == 0 else float("inf"))


def scipy_solve(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    return torch.from_numpy(scipy.linalg.solve_sylvester(a.numpy(), b.numpy(), q.numpy()))


def relative_error(x: Array, reference: Array) -> float:
    return float(np.linalg.norm((x - reference).astype(complex))) / float(
        np.linalg.norm(reference.astype(complex))
    )


def divided(q: Array, u: Array, a: Array, v: Array, b: Array, threshold: float) -> Array:
    """U [(U^H Q V)_ij / (a_i + b_j)] V^H, zero where the divisor is at most the threshold."""
    sums = a[:, None] + b
    keep = sums > threshold
    f = u.conj().T @ q @ v
    return u @ np.where(keep, f / np.where(keep, sums, 1), 0) @ v.conj().T


def minimum_norm_errors(problem: Problem, x: Tensor) -> tuple[float, float] | None:
    """Of sylvinit's solution, and of the one from numpy.linalg.eigh; None if it is zero."""
    assert problem.origin is not None
    q = problem.q.numpy()
    u, values_a, v, values_b = problem.origin
    reference = divided(q.astype(u.dtype), u, values_a, v, values_b, 0.0)
    if not np.any(reference):
        return None
    a, b = (m.to(torch.complex128).numpy() for m in (problem.a, problem.b))
    found_a, found_b = np.linalg.eigh(a), np.linalg.eigh(b)
    size = abs(found_a[0]).max() + abs(found_b[0]).max()
    threshold = max(q.shape) * torch.finfo(problem.q.dtype).eps * size
    other = divided(q, found_a[1], found_a[0], found_b[1], found_b[0], threshold)
    other = other if problem.q.is_complex() else other.real
    return relative_error(x.numpy(), reference), relative_error(other.astype(q.dtype), reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
    groups: dict[str, Group] = {}
    single: list[float] = []
    failures: list[str] = []
    for number in range(options.problems):
        rng = np.random.default_rng([options.seed, number])
        kind, dtype = KINDS[number % len(KINDS)], DTYPES[number // len(KINDS) % len(DTYPES)]
        problem = make(kind, dtype, rng)
        a, b, q = problem.a, problem.b, problem.q
        is_single = dtype in (torch.float32, torch.complex64)
        precision = "single" if is_single else "double"
        names = [f"{kind}, {precision}"]
        if kind != ZERO:
            names += [f"all: assume_a={problem.assume}, {precision}", f"all: {dtype}"]
        found = [groups.setdefault(name, Group()) for name in names]
        try:
            x = sylvinit.solve_sylvester(a, b, q, assume_a=problem.assume)
        except sylvinit.errors.SingularEquationError:
            for group in found:
                group.refused += 1
            continue
        except Exception as error:
            shape, text = tuple(q.shape), f"{type(error).__name__}: {error}"
            failures.append(f"{number}: {kind}, {problem.assume}, {dtype}, {shape}: {text}")
            continue
        if kind == ZERO:
            pair = minimum_norm_errors(problem, x)
        else:
            other = scipy_solve(a, b, q)
            residual = sylvinit.sylvester_residual
            pair = float(residual(a, b, q, x)), float(residual(a, b, q, other))
        for group in found if pair is not None else ():
            group.ours.append(pair[0])
            group.others.append(pair[1])
        if is_single and kind == "well conditioned":
            wide = torch.complex128 if dtype.is_complex else torch.float64
            reference = scipy_solve(a.to(wide), b.to(wide), q.to(wide))
            single.append(relative_error(x.numpy(), reference.numpy()))
    tables = {name: groups[name].summary() for name in sorted(groups)}
    head = ("median", "scipy", "largest", "scipy", "worst ratio")
    print(
        f"{'residuals (zero eigenvalues: errors, numpy eigh)':52s} {'n':>4s} {'ref.':>4s}", end=""
    )
    print("".join(f"{text:>12s}" for text in head))
    for name, row in tables.items():
        print(f"{name:52s} {row['problems']:4d} {row['refused']:4d}", end="")
        keys = ("median", "median_other", "largest", "largest_other")
        print("".join(f"{row.get(key, float('nan')):12.1e}" for key in keys), end="")
        print(f"{row.get('largest_ratio', float('nan')):12.2f}", end="")
        print("" if row.get("met", True) else f"  MISSED: more than {RATIO_BOUND:g} x")
    worst = max(single, default=0.0)
    met = all(row.get("met", True) for row in tables.values()) and not failures
    print(f"median and largest at most {RATIO_BOUND:g} x scipy's: {'met' if met else 'MISSED'}")
    print(
        f"single precision, well conditioned, {len(single)} problems: largest relative error "
        f"{worst:.1e}, target {SINGLE_BOUND:.0e}: {'met' if worst <= SINGLE_BOUND else 'MISSED'}"
    )
    for failure in failures:
        print("FAILED", failure)
    if options.output:
        result = {
            "environment": environment(),
            "problems": options.problems,
            "seed": options.seed,
            "groups": tables,
            "single_relative_error": {"problems": len(single), "largest": worst},
            "failures": failures,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
