"""Exceptions that come out of the model's forward say what it was called with, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driver_helpers import CLASSES, images, unchanged
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import ModelError, SylvinitError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


class Fails(nn.Module):
    """Two layers; ``fault`` is called with what comes between them, and how many samples."""

    def __init__(self, fault: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 6), nn.Linear(6, CLASSES)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        self.fault(x)
        return self.head(x)


def raising(error: BaseException, *sizes: int) -> Callable[[Tensor], None]:
    """Raise for batches of these sizes, or for all."""

    def fault(x: Tensor) -> None:
        if not sizes or len(x) in sizes:
            raise error

    return fault


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


@pytest.mark.parametrize("storage", ["memory", "recompute"])
def test_the_layer_that_was_being_solved(storage: Any) -> None:
    model = Fails(raising(KeyError("mine"), 6))
    with unchanged(model), pytest.raises(KeyError) as caught:
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=8, storage=storage)
    assert notes(caught.value) == [
        "sylvinit called the model to solve head (Linear), with samples 24 to 29: float32 (6, 12)"
    ]


def test_a_normalization_that_was_being_calibrated() -> None:
    model = nn.Sequential(nn.Linear(12, 6), Fails(raising(KeyError(), 6)), nn.BatchNorm1d(CLASSES))
    model[1].first = nn.Identity()
    model[1].head.requires_grad_(False)
    with pytest.raises(KeyError) as caught:
        sylvinit.initialize_(model, ROWS, preset="best", microbatch=8)
    assert "to calibrate 2 (BatchNorm1d), with samples 24 to 29: " in notes(caught.value)[0]


def test_after_the_last_layer() -> None:
    model = nn.Sequential(nn.Linear(12, 6), Fails(raising(KeyError(), 6)))
    model[1].first = nn.Identity()
    model[1].head.requires_grad_(False)
    with pytest.raises(KeyError) as caught:
        sylvinit.initialize_(model, ROWS, preset="best", microbatch=8)
    assert "to its end, after the last layer had been solved, with" in notes(caught.value)[0]


def test_the_survey_on_two_samples_and_on_the_first_batch() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(11, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    with pytest.raises(RuntimeError, match="8x12 and 11x4") as caught:
        sylvinit.initialize_(Wrong(), (ROWS, Y), preset="best", microbatch=8)
    begin = "sylvinit called the model to see which layers run, with samples 0 to"
    assert notes(caught.value) == [f"{begin} 7: float32 (8, 12)"]
    two = caught.value.__context__
    assert two is not None
    assert notes(two) == [f"{begin} 1: float32 (2, 12)"]


def test_the_look_at_whose_the_rows_are() -> None:
    seen = []

    def fault(x: Tensor) -> None:
        seen.append(x)
        if len(seen) > 1:
            raise KeyError

    with pytest.raises(KeyError) as caught:
        sylvinit.initialize_(Fails(fault), (ROWS, Y), preset="best", microbatch=8)
    assert (
        "to see whose the rows of layers' inputs are, with samples 0 to 1:"
        in (notes(caught.value)[0])
    )


def test_lazy_modules() -> None:
    model = nn.Sequential(nn.LazyLinear(12), Fails(raising(KeyError())))
    with pytest.raises(KeyError) as caught:
        sylvinit.initialize_(model, ROWS[:1], preset="best")
    assert notes(caught.value) == [
        "sylvinit called the model to materialize lazy modules, with sample 0: float32 (1, 12)"
    ]


def test_inputs_by_their_names() -> None:
    class Named(Fails):
        def forward(self, x: Tensor, *, more: dict[str, Any], flag: bool) -> Tensor:
            return super().forward(x)

    batch = {
        "x": ROWS.half(),
        "more": {"ids": torch.arange(30).numpy(), "pair": (Y, [ROWS])},
        "flag": True,
        "labels": Y,
    }
    with pytest.raises(RuntimeError, match="same dtype") as caught:
        sylvinit.initialize_(Named(lambda x: None), [batch], preset="best")
    assert notes(caught.value)[0].endswith(
        "samples 0 to 29: x float16 (30, 12), ids int64 (30,), pair int64 (30,), "
        "pair float32 (30, 12)"
    )


def test_the_correlation_of_inputs() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 12), Fails(raising(KeyError()))
    )
    with unchanged(model), pytest.raises(KeyError) as caught:
        sylvinit.input_correlation(model, X, microbatch=8)
    assert notes(caught.value) == [
        "sylvinit called the model to look at what its convolutions read, with samples 0 to 7: "
        "float32 (8, 3, 6, 6)"
    ]


class OwnNotesError(Exception):
    __notes__ = "a string, to which nothing can be added"


class ClosedError(Exception):
    def add_note(self, note: str) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    "error", [OwnNotesError(), ClosedError(3), StopIteration(3), ModelError("ours")], ids=repr
)
def test_errors_stay_the_objects_that_they_are(error: Exception) -> None:
    model = Fails(raising(error, 6))
    with unchanged(model), pytest.raises(type(error)) as caught:
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=8)
    assert caught.value is error
    assert caught.value.args == error.args


def test_leaving_is_no_error() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        sylvinit.initialize_(Fails(raising(KeyboardInterrupt())), ROWS, preset="best")
    assert notes(caught.value) == []


def test_what_is_wrong_with_a_layers_input_is_no_fault_of_the_forward() -> None:
    model = nn.Sequential(nn.Linear(12, 6), nn.Threshold(-torch.inf, 0.0), nn.Linear(6, CLASSES))
    model[0].weight.data.fill_(torch.nan)
    model[0].requires_grad_(False)
    with pytest.raises(SylvinitError) as caught:
        sylvinit.initialize_(model, ROWS, preset="best")
    assert notes(caught.value) == []


def test_python_without_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10 has no ``add_note``; pytest and IPython show what is there all the same."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 14))
    error = KeyError("mine")
    error.__notes__ = ["the user's"]
    with pytest.raises(KeyError):
        sylvinit.initialize_(Fails(raising(error, 6)), (ROWS, Y), preset="best", microbatch=8)
    assert notes(error)[0] == "the user's"
    assert "to solve head (Linear)" in notes(error)[1]
