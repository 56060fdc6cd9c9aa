"""Held-out errors of a ridge head against fits that leave the samples out one fold at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sylvinit.moments.row_sample import SampledRows
from sylvinit.solve.held_out import FOLDS, RIDGES, held_out


def refitted(rows: SampledRows, y: Tensor, ridge: float, folds: Tensor) -> Tensor:
    """What each row is missed by, with a fit of its own for every fold."""
    x = rows.x.double()
    about = x - x.mean(dim=0)
    shift = ridge * float(about.square().sum()) / x.shape[1]
    constant = torch.ones(len(x), 1, dtype=torch.float64)
    design = torch.cat((constant, about), dim=1)
    penalty = shift * torch.eye(design.shape[1], dtype=torch.float64)
    penalty[0, 0] = 0.0
    missed = torch.empty_like(y)
    for fold in folds.unique():
        rest, out = design[folds != fold], design[folds == fold]
        solution = torch.linalg.solve(rest.mT @ rest + penalty, rest.mT @ y[folds != fold])
        missed[folds == fold] = y[folds == fold] - out @ solution
    return missed


def least(rows: SampledRows, y: Tensor, power: Tensor, folds: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of rows at the best ridge, and what they are missed by."""
    found = [refitted(rows, y, ridge, folds) for ridge in RIDGES]
    errors = [(missed.square() / power).sum(dim=1) for missed in found]
    best = min(range(len(RIDGES)), key=lambda i: float(errors[i].mean()))
    return errors[best], found[best]


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 40), st.integers(1, 60), st.integers(2, 5), st.booleans(), st.integers(0, 99))
def test_classes(samples: int, d: int, classes: int, many: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    each = torch.randint(1, 5, (samples,), generator=generator) if many else torch.ones(samples)
    owner = torch.arange(samples).repeat_interleave(each.long())
    labels = owner % classes
    x = torch.randn(len(owner), d, generator=generator) + labels[:, None] * torch.randn(d)
    rows = SampledRows(x.float(), 3 * owner, labels)
    found = held_out(rows)
    assert found is not None
    # Samples are dealt out in the order of their classes.
    order = (torch.arange(samples) % classes).argsort(stable=True)
    fold = torch.empty_like(order)
    fold[order] = torch.arange(samples) % min(FOLDS, samples)
    y = torch.nn.functional.one_hot(labels).double()
    center = y.mean(dim=0)
    power = (y - center).square().mean(dim=0).sum()
    errors, missed = least(rows, y - center, power, fold[owner])
    of_samples = torch.stack([errors[owner == i].mean() for i in range(samples)])
    # float64, condition numbers up to 1e4 over the ridges: measured up to 2e-10.
    torch.testing.assert_close(found.errors, of_samples, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.samples, 3 * torch.arange(samples))
    right = ((y - missed).argmax(dim=1) == labels).double().mean()
    assert found.accuracy == pytest.approx(float(right), abs=1 / len(owner))


def test_targets_count_alike_whatever_their_units() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    y = (x @ torch.randn(4, 3, generator=generator)).double()
    y += 0.3 * torch.randn(50, 3, generator=generator)
    rows = SampledRows(x, torch.arange(50), y)
    found = held_out(rows)
    assert found is not None
    assert math.isnan(found.accuracy)
    about = y - y.mean(dim=0)
    power = 3 * about.square().mean(dim=0)
    errors, _ = least(rows, about, power, torch.arange(50) % FOLDS)
    torch.testing.assert_close(found.errors, errors, rtol=1e-7, atol=1e-9)
    units = torch.tensor([1e6, 1.0, 1e-3], dtype=torch.float64)
    again = held_out(rows._replace(labels=torch.cat((y * units + 7, torch.ones(50, 1)), dim=1)))
    assert again is not None  # a target that never varies says nothing
    torch.testing.assert_close(again.errors, found.errors, rtol=1e-6, atol=1e-9)


def test_the_error_is_that_of_the_mean_where_there_is_nothing_to_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(400, 10, generator=generator), torch.arange(400) % 4
    noise = held_out(SampledRows(x, torch.arange(400), labels))
    known = held_out(SampledRows(torch.eye(4)[labels], torch.arange(400), labels))
    assert noise is not None
    assert known is not None
    assert abs(noise.error - 1) < 0.05  # 400 samples: a standard error of about 0.01
    assert known.error < 1e-6
    assert known.accuracy == 1.0


def test_rows_of_a_sample_are_left_out_together() -> None:
    """Features that name the sample tell each pixel's label only to who has seen the others."""
    generator = torch.Generator().manual_seed(0)
    names, labels = torch.randn(30, 40, generator=generator), torch.arange(30) % 2
    owner = torch.arange(30).repeat_interleave(6)
    together = held_out(SampledRows(names[owner], owner, labels[owner]))
    apart = held_out(SampledRows(names[owner], torch.arange(180), labels[owner]))
    assert together is not None
    assert apart is not None
    assert together.error > 0.9 > 0.1 > apart.error


@pytest.mark.parametrize(
    "rows",
    [
        SampledRows(torch.randn(2, 3), torch.arange(2), torch.arange(2)),
        SampledRows(torch.randn(9, 3), torch.arange(9), torch.zeros(9, dtype=torch.long)),
        SampledRows(torch.randn(9, 3), torch.arange(9), torch.ones(9, 2, dtype=torch.float64)),
        SampledRows(torch.ones(9, 3), torch.arange(9), torch.arange(9) % 2),
        SampledRows(torch.full((9, 3), math.inf), torch.arange(9), torch.arange(9) % 2),
    ],
    ids=["two samples", "one class", "constant targets", "constant features", "infinite"],
)
def test_nothing_to_tell(rows: SampledRows) -> None:
    assert held_out(rows) is None
