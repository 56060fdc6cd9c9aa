from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from theory.single_filter import all_active, closed_form, gradient_descent, printed, samples

STEPS = 25


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[float], float]:
    """Start, distances and rate, with all samples active from the beginning to the end."""
    p = draw(st.integers(2, 6))
    distances = draw(st.lists(st.floats(0, 0.95), min_size=p, max_size=p))
    start = [draw(st.floats(0.05, 3))]
    start += draw(st.lists(st.floats(-2, 2), min_size=p - 1, max_size=p - 1))
    rate = draw(st.floats(1e-3, 0.5 / (1 + distances[0] ** 2)))  # no coordinate overshoots
    path = closed_form(start, distances, rate=rate, steps=STEPS)
    assume(all(all_active(w, distances) for w in path))
    return start, distances, rate


def descent(start: list[float], distances: list[float], rate: float, steps: int) -> np.ndarray:
    """Equations (1) and (2), sample by sample."""
    points = [
        np.array([1 + a[0], *a[1:]])
        for a in product(*[(-distance, distance) for distance in distances])
    ]
    optimum = np.eye(len(distances))[0]
    w = np.array(start)
    path = [w]
    for _ in range(steps):
        total = np.zeros_like(w)
        for x in points:
            if w @ x > 0:
                total += -2 * ((optimum - w) @ x) * x
        w = w - rate / len(points) * total
        path.append(w)
    return np.array(path)


def test_samples() -> None:
    found = samples([0.25, 0.5])
    expected = [[0.75, -0.5], [0.75, 0.5], [1.25, -0.5], [1.25, 0.5]]
    assert found.dtype == torch.float64
    assert found.tolist() == expected


@given(problems())
def test_gradient_descent_is_the_closed_form(
    problem: tuple[list[float], list[float], float],
) -> None:
    start, distances, rate = problem
    found = gradient_descent(start, distances, rate=rate, steps=STEPS)
    # Every step rounds sums of at most 64 numbers of magnitude below 100, and steps contract.
    torch.testing.assert_close(
        found, closed_form(start, distances, rate=rate, steps=STEPS), rtol=0, atol=1e-12
    )


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(0, 1)), min_size=2, max_size=4),
    st.floats(0.01, 0.3),
)
def test_inactive_samples_are_left_out(pairs: list[tuple[float, float]], rate: float) -> None:
    start, distances = (list(column) for column in zip(*pairs, strict=True))
    outputs = samples(distances) @ torch.tensor(start, dtype=torch.float64)
    assume(float(outputs.abs().min()) > 1e-9)  # else rounding decides which sample is active
    found = gradient_descent(start, distances, rate=rate, steps=1)
    np.testing.assert_allclose(found, descent(start, distances, rate, 1), rtol=0, atol=1e-12)
    active = all(outputs > 0)
    assert all_active(start, distances) == active


def test_nothing_moves_without_active_samples() -> None:
    path = gradient_descent([-1.0, 0.1], [0.5, 0.5], rate=0.1, steps=3)
    assert torch.equal(path, torch.tensor([[-1.0, 0.1]] * 4, dtype=torch.float64))


def test_equation_4_as_printed_is_another_path() -> None:
    start, distances, rate = [1.4, 0.3, -0.2], [0.2, 0.4, 0.3], 0.05
    found = gradient_descent(start, distances, rate=rate, steps=1)
    paper = printed(start, distances, rate=rate, steps=1)
    assert float((found - paper)[:, 0].abs().max()) < 1e-15  # equation (3) is right
    # By hand: gradient descent multiplies w_i by 1 - 2 rate d_i^2.
    assert found[1, 1] == pytest.approx(0.3 * (1 - 2 * 0.05 * 0.16), abs=1e-15)
    # Printed: w_i - 2 rate (2 (1 - w_0) d_i + w_i d_i^2) w_i.
    bracket = 2 * (1 - 1.4) * 0.4 + 0.3 * 0.16
    assert paper[1, 1] == pytest.approx(0.3 - 2 * 0.05 * bracket * 0.3, abs=1e-15)
    # It even moves away from the optimum 0, while gradient descent never does.
    assert paper[1, 1] > 0.3 > found[1, 1]


def test_two_steps_of_the_printed_equations_use_the_same_weights() -> None:
    start, distances, rate = [1.4, 0.3], [0.2, 0.4], 0.05
    w0, w1 = start
    for _ in range(2):
        gap = 1 - w0
        w0, w1 = (
            w0 + 2 * rate * (1 + 0.2**2) * gap,
            w1 - 2 * rate * (2 * gap * 0.4 + w1 * 0.4**2) * w1,
        )
    assert printed(start, distances, rate=rate, steps=2)[2].tolist() == pytest.approx([w0, w1])


def test_start_is_left_alone_and_no_steps_return_it() -> None:
    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    for follow in (gradient_descent, closed_form, printed):
        path = follow(start, [0.1, 0.2], rate=0.1, steps=0)
        path += 1
        assert start.tolist() == [1.0, 0.5]
        assert path.tolist() == [[2.0, 1.5]]
