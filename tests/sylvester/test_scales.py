"""Very large and very small numbers: the right answer or a typed error, never NaN or Inf."""

from __future__ import annotations

import contextlib
import re
import warnings

import numpy as np
import pytest
import torch
from sylvester_problems import (
    hermitian,
    ids,
    normal,
    real_schur,
    relative_error,
    rotated,
    solver,
    wide,
    with_and_without,
)

import sylvinit
from sylvinit.errors import MatrixError, SolverError

STRUCTURES = ("gen", "sym", "pos", "low rank")
SHAPES = ((4, 7), (7, 4), (1, 1))


def equation(structure: str, k: int, d: int, seed: int = 0) -> list[torch.Tensor]:
    """Of size 1; "low rank" is for the zero rule."""
    rng = np.random.default_rng(seed)
    matrices = []
    for n in (k, d):
        values = rng.uniform(1, 2, n)
        if structure == "gen":
            matrices.append(rotated(rng, real_schur(rng, values, 0.3)))
            continue
        if structure == "low rank":
            values[: n // 2] = 0
        if structure == "sym" and n == k:
            values = -3 * values
        matrices.append(hermitian(rng, values))
    return [torch.from_numpy(x) for x in (*matrices, normal(rng, k, d))]


def assumed(structure: str) -> str:
    return "pos" if structure == "low rank" else structure


def solve(operands, structure: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's about overflow among others
        return sylvinit.solve_sylvester(*operands, assume_a=assumed(structure))


@with_and_without
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("scale", [1e-100, 1e-70, 1e70, 1e100])
def test_scales_up_to_1e100(compiled, structure, scale) -> None:
    """The solution scales with Q, and inversely with A and B."""
    for k, d in SHAPES:
        a, b, q = equation(structure, k, d)
        with solver(compiled):
            expected = wide(solve((a, b, q), structure))
            for scale_q in (scale, 1.0, 1 / scale):
                x = solve((a * scale, b * scale, q * scale_q), structure)
                assert relative_error(wide(x) * (scale / scale_q), expected) <= 1e-13


@with_and_without
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "scale", [1e-305, 1e-250, 1e-160, 1e-154, 1e-141, 1e-135, 1e135, 1e141, 1e152, 1e160, 1e300]
)
def test_extreme_scales_give_the_answer_or_say_that_they_cannot(compiled, structure, scale) -> None:
    for k, d in SHAPES:
        a, b, q = equation(structure, k, d)
        for scale_q in (scale, 1.0, 1e-100 if scale > 1 else 1e100):
            with solver(compiled):
                expected = wide(solve((a, b, q), structure)) * (scale_q / scale)
                x = answer_or_refusal((a * scale, b * scale, q * scale_q), structure)
            if x is not None:
                check_scaled(x, expected)


@with_and_without
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e-145, 1e-120, 1e120, 1e145, 1e160])
def test_extreme_scale_of_one_entry_of_a_batch(compiled, structure, scale) -> None:
    """The other entries are of size 1, so that the largest number of the batch tells nothing."""
    for k, d in SHAPES:
        a, b, q = equation(structure, k, d)
        scales = torch.tensor([1.0, scale, 1.0], dtype=torch.float64)[:, None, None]
        with solver(compiled):
            expected = wide(solve((a, b, q), structure))
            operands = a * scales, b * scales, q * scales
            x = answer_or_refusal(operands, structure)
            if x is not None:
                for found in x:
                    check_scaled(found, expected)


def answer_or_refusal(operands, structure: str) -> torch.Tensor | None:
    """None if an error says, truly, that the scale is the matter."""
    try:
        return sylvinit.solve_sylvester(*operands, assume_a=assumed(structure))
    except (SolverError, MatrixError) as error:
        refusal = error
    assert type(refusal) in (SolverError, MatrixError)
    assert re.search("scale a, b and q|multiply a, b and q by one factor", str(refusal)), refusal
    return None


def check_scaled(x: torch.Tensor, expected: np.ndarray) -> None:
    assert x.isfinite().all()
    assert np.isfinite(expected).all(), "the solution overflows"
    size = np.abs(expected).max()
    if size > 1e-290:  # where no entry is subnormal
        np.testing.assert_allclose(wide(x) / size, expected / size, rtol=0, atol=1e-12)


@with_and_without
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], **ids)
def test_solution_that_overflows(compiled, structure, dtype) -> None:
    """In the dtype of the arguments: X would be 1e60, or 1e330."""
    small, large = (1e-30, 1e30) if dtype != torch.float64 else (1e-130, 1e200)
    for k, d in ((4, 7), (7, 4), (1, 1), (1, 3)):
        a, b, q = (x.to(dtype) for x in equation(structure, k, d))
        with solver(compiled), pytest.raises(SolverError):
            sylvinit.solve_sylvester(a * small, b * small, q * large, assume_a=assumed(structure))


@with_and_without
@pytest.mark.parametrize("structure", STRUCTURES)
def test_solution_that_underflows(compiled, structure) -> None:
    """X is 1e-340: zero or subnormal, or a typed error."""
    a, b, q = equation(structure, 4, 7)
    x = torch.zeros(1)
    with solver(compiled), contextlib.suppress(SolverError):
        x = solve((a * 1e90, b * 1e90, q * 1e-250), structure)
    assert x.abs().max() <= 1e-300


@with_and_without
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("scale", [1e-36, 1e36])
def test_single_precision_near_its_limits(compiled, structure, scale) -> None:
    for k, d in SHAPES:
        a, b, q = (x.float() for x in equation(structure, k, d))
        if structure in ("sym", "pos", "low rank"):
            a, b = (a + a.mT) / 2, (b + b.mT) / 2
        with solver(compiled):
            expected = wide(solve((a, b, q), structure))
            x = solve((a * scale, b * scale, q * scale), structure)
        assert relative_error(x, expected) <= 1e-5


@with_and_without
@pytest.mark.parametrize("assume", ["gen", "sym", "pos"])
def test_matrices_of_different_size(compiled, assume) -> None:
    """|A| / |B| up to 1e300: A X = Q to the last bits."""
    rng = np.random.default_rng(1)
    for k, d in SHAPES:
        a, b = hermitian(rng, rng.uniform(1, 2, k)), hermitian(rng, rng.uniform(1, 2, d))
        if assume == "gen":
            a, b = a + np.triu(a, 1) * 1e-3, b + np.triu(b, 1) * 1e-3
        q = normal(rng, k, d)
        for ratio in (1e-20, 1e-150, 1e-300):
            operands = [torch.from_numpy(x) for x in (a, ratio * b, q)]
            with solver(compiled):
                x = sylvinit.solve_sylvester(*operands, assume_a=assume)
                y = (
                    sylvinit.solve_sylvester(
                        operands[1], operands[0], operands[2].mT.contiguous(), assume_a=assume
                    )
                    if assume != "gen"
                    else x.mT
                )
            assert relative_error(x, np.linalg.solve(a, q)) <= 1e-13
            assert relative_error(y.mT, np.linalg.solve(a, q)) <= 1e-13


@with_and_without
def test_right_sides_of_different_size_in_one_batch(compiled) -> None:
    for structure in STRUCTURES:
        a, b, q = equation(structure, 4, 7)
        scales = torch.tensor([1e-100, 1.0, 0.0, 1e100], dtype=torch.float64)[:, None, None]
        with solver(compiled):
            expected = wide(solve((a, b, q), structure))
            x = solve((a, b, q * scales), structure)
        for scale, found in zip(scales.flatten().tolist(), x, strict=True):
            if scale:
                assert relative_error(wide(found) / scale, expected) <= 1e-13
            else:
                assert not found.any()
