"""The tensor that carries a correlation matrix and where it comes from."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from correlation_problems import smooth_correlation

from sylvinit.correlated import FilterCorrelation
from sylvinit.priors.matrix import kernel_of


def corr() -> FilterCorrelation:
    return FilterCorrelation.of(
        torch.from_numpy(smooth_correlation((3, 3))),
        (3, 3),
        filters=70,
        units=10,
        standard_error=torch.full((9, 9), 0.1).double(),
        distance_error=torch.arange(5).double(),
        layers=("a", "b"),
        source="here",
    )


FACTS = ("kernel_size", "filters", "units", "layers", "source")


def _roundtrip(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "made", [copy.copy, copy.deepcopy, _roundtrip, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_copies(made: Any) -> None:
    first = corr()
    second = made(first)
    assert type(second) is FilterCorrelation
    assert torch.equal(second, first)
    assert [getattr(second, name) for name in FACTS] == [getattr(first, name) for name in FACTS]
    assert torch.equal(second.standard_error, first.standard_error)
    assert torch.equal(second.distance_error, first.distance_error)
    assert repr(second) == repr(first)


def test_a_deep_copy_shares_nothing() -> None:
    first = corr()
    both = copy.deepcopy([first, first])
    assert both[0] is both[1]
    both[0].fill_(7)
    both[0].standard_error.fill_(7)
    assert torch.equal(first, corr())
    assert torch.equal(first.standard_error, corr().standard_error)


def test_operations_give_plain_tensors() -> None:
    first = corr()
    results = (first + 1, first[0], first @ first, first.mT, first.float(), first.clone(), -first)
    assert {type(result) for result in results} == {torch.Tensor}
    assert float(first.sum()) == pytest.approx(smooth_correlation((3, 3)).sum())
    np.testing.assert_array_equal(first.numpy(), smooth_correlation((3, 3)))


def test_of_copies_the_matrix() -> None:
    matrix = torch.eye(9).double()
    made = FilterCorrelation.of(matrix, (3, 3))
    matrix.zero_()
    assert torch.equal(made, torch.eye(9).double())


def test_words() -> None:
    mean = (smooth_correlation((3, 3)).sum() - 9) / 72
    start = f"FilterCorrelation(70 filters of 3x3, mean off the diagonal {mean:.3f},\n[[1. "
    assert repr(corr()).startswith(start)
    assert str(corr()) == f"{corr()}" == repr(corr())
    single = FilterCorrelation.of(torch.ones(1, 1).double(), (1,), source="a test")
    assert repr(single) == "FilterCorrelation(a test, mean off the diagonal 0.000,\n[[1.]])"
    plain = FilterCorrelation(torch.eye(4).double())
    assert "of unknown source" in repr(plain)
    assert kernel_of(plain) == (2, 2)


def test_torch_load_by_default(tmp_path: Path) -> None:
    torch.save(corr(), tmp_path / "r.pt")
    read = torch.load(tmp_path / "r.pt")
    assert isinstance(read, FilterCorrelation)
    assert torch.equal(read, corr())
    assert (read.filters, read.kernel_size) == (70, (3, 3))
