from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sylvinit.diagnostics import gradient_magnitude, gradient_sign_changes
from sylvinit.errors import DataError, OptionTypeError

NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, math.inf, -math.inf])


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


@given(st.lists(st.tuples(NUMBERS | st.just(math.nan), NUMBERS), min_size=1, max_size=12))
def test_sign_changes_are_those_of_the_formula(pairs: list[tuple[float, float]]) -> None:
    before, after = (torch.tensor(column) for column in zip(*pairs, strict=True))
    expected = sum(abs(sign(a) - sign(b)) for a, b in pairs) / (2 * len(pairs))
    assert gradient_sign_changes(before, after) == expected
    split = len(pairs) // 2
    parts = ([before[:split], before[split:]], iter([after[:split], after[split:]]))
    assert gradient_sign_changes(*parts) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_magnitude_is_the_mean_over_all_entries(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 4), (5,), ())]
    grads[0] *= 1e4  # the sum of float16 would overflow
    values = np.concatenate([grad.double().numpy().ravel() for grad in grads])
    # Both sum 18 numbers in float64.
    assert gradient_magnitude(grads) == pytest.approx(np.abs(values).mean(), rel=1e-14)


def test_large_gradients_are_summed_in_float64() -> None:
    grad = torch.full((300_001,), 0.1)
    assert gradient_magnitude(grad) == pytest.approx(float(grad[0]), rel=1e-12)


def test_sparse_and_complex_gradients() -> None:
    indices = torch.tensor([[1, 3, 1]])
    values = torch.tensor([[1.0, -2.0], [3.0, 0.0], [1.0, 1.0]])
    sparse = torch.sparse_coo_tensor(
        indices, values, (4, 2), check_invariants=True
    )  # row 1 twice: (2, -1)
    dense = torch.tensor([[0.0, 0.0], [2.0, -1.0], [0.0, 0.0], [3.0, 0.0]])
    assert gradient_magnitude(sparse) == gradient_magnitude(dense) == 6 / 8
    assert gradient_sign_changes(sparse, -dense) == 3 / 8
    z = torch.tensor([1 + 2j, -3j])
    assert gradient_magnitude(z) == 6 / 4
    assert gradient_sign_changes(z, z.conj()) == 2 / 4


def test_nan_in_the_magnitude_is_not_hidden() -> None:
    assert math.isnan(gradient_magnitude(torch.tensor([1.0, math.nan])))


@pytest.mark.parametrize(
    ("before", "after", "error", "message"),
    [
        (3.0, torch.ones(1), OptionTypeError, "before must be a tensor or an iterable"),
        ([None], torch.ones(1), OptionTypeError, "leave out parameters without a gradient"),
        (torch.ones(2), [1.0], OptionTypeError, "after must hold tensors, got float at 0"),
        (torch.ones(2), torch.ones(3), DataError, r"after: expected .*\(2,\).* got .*\(3,\)"),
        ([torch.ones(2)], [torch.ones(2)] * 2, DataError, "after: expected tensors of the shapes"),
        ([], [], DataError, "before: expected at least one entry"),
        (torch.ones(0), torch.ones(0), DataError, "before: expected at least one entry"),
        (torch.ones(2).int(), torch.ones(2), DataError, r"before: .*torch.int32.*\.float\(\)"),
    ],
)
def test_bad_input(before: object, after: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gradient_sign_changes(before, after)  # type: ignore[arg-type]


def test_magnitude_of_nothing() -> None:
    with pytest.raises(DataError, match="grads: expected at least one entry"):
        gradient_magnitude([])
