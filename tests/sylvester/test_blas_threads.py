"""BLAS has its threads where they are worth it, and gets them back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_info
from torch import nn

import sylvinit
from sylvinit.sylvester import lapack


def blas_threads() -> list[int]:
    return [item["num_threads"] for item in threadpool_info() if item["user_api"] == "blas"]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """A BLAS with threads, whatever the environment says."""
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        if set(blas_threads()) != {2}:
            pytest.skip(f"BLAS has {blas_threads()} threads")
        yield


@pytest.mark.parametrize(
    ("threads", "size", "expected"), [(1, 27, 2), (1, 200, 1), (1, 600, 2), (2, 600, 1)]
)
def test_of_a_call(threads: int, size: int, expected: int) -> None:
    with lapack.blas_for(threads, size):
        assert set(blas_threads()) == {expected}
    assert set(blas_threads()) == {2}


@pytest.mark.parametrize(
    ("threads", "size", "expected"), [(1, 27, 1), (1, 600, 1), (1, 2000, 2), (2, 2000, 1)]
)
def test_of_a_call_among_others(threads: int, size: int, expected: int) -> None:
    with lapack.blas_seldom():
        assert set(blas_threads()) == {1}
        with lapack.blas_for(threads, size):
            assert set(blas_threads()) == {expected}
        assert set(blas_threads()) == {1}
        with contextlib.suppress(ValueError), lapack.blas_for(1, 2000):
            raise ValueError
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {2}


def test_a_library_that_torch_may_share_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ThreadpoolController()
    for library in elsewhere.lib_controllers:
        library.filepath = f"/opt/lib/{Path(library.filepath).name}"
    monkeypatch.setattr(lapack, "_libraries", lambda: elsewhere)
    with lapack.blas_seldom():
        assert set(blas_threads()) == {2}
        with lapack.blas_for(1, 200):  # in one call torch has no part
            assert set(blas_threads()) == {1}
        with lapack.blas_for(1, 2000):
            assert set(blas_threads()) == {2}
    assert set(blas_threads()) == {2}


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_runs_with_one_and_leaves_two(fails: bool) -> None:
    seen: list[int] = []

    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.extend(blas_threads())
            if fails:
                raise ValueError("no")
            return super().forward(x)

    model = nn.Sequential(Looks(8, 8), nn.ReLU(), nn.Linear(8, 2))
    data = torch.randn(20, 8), torch.arange(20) % 2
    with pytest.raises(ValueError, match="no") if fails else contextlib.nullcontext():
        sylvinit.initialize_(model, data)
    assert set(seen) == {1}
    assert set(blas_threads()) == {2}
