"""Switches of the whole process: the forward's own while it runs, the caller's afterwards."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from driver_helpers import CLASSES, images, mlp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sylvinit
from sylvinit.execution.switches import exchange_switches, read_switches

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


class Inside(nn.Module):
    """Its layer runs within a context that changes a switch of the whole process."""

    def __init__(self, change: Any, seen: list[Any]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.body, self.last = nn.Linear(12, 12), nn.Linear(12, CLASSES)
        self.change, self.note = change, seen.append

    def forward(self, x: Tensor) -> Tensor:
        with self.change():
            x = self.body(x)
            self.note(self.state())
        return self.last(x)

    @staticmethod
    def state() -> tuple[Any, ...]:
        first = warnings.filters[0][0] if warnings.filters else None
        return torch.backends.cuda.flash_sdp_enabled(), torch.get_default_dtype(), first


class DoubleByDefault:
    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(self.before)


class OtherWarnings(warnings.catch_warnings):
    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("once")


CHANGES = {
    "attention kernels": lambda: sdpa_kernel(SDPBackend.MATH),
    "default dtype": DoubleByDefault,
    "warnings": OtherWarnings,
}


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("change", CHANGES)
def test_switches_of_interleaved_forwards(change: str, storage: Any) -> None:
    seen: list[Any] = []
    model = Inside(CHANGES[change], seen)
    with CHANGES[change]():
        expected = model.state()
    before = read_switches()
    sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=10, storage=storage)
    assert read_switches() == before
    assert set(seen) == {expected}
    assert expected != model.state()


def test_switches_after_a_forward_that_fails() -> None:
    model = Inside(DoubleByDefault, [])
    model.last.register_forward_pre_hook(lambda module, args: _raise_on(len(args[0]) == 5))
    before = read_switches()
    with pytest.raises(RuntimeError, match="a ragged batch"):
        sylvinit.initialize_(model, (ROWS[:25], Y[:25]), preset="best", microbatch=10)
    assert read_switches() == before


def _raise_on(condition: bool) -> None:
    if condition:
        raise RuntimeError("a ragged batch")


def test_own_arithmetic_is_exact_and_the_forward_as_the_caller_has_it() -> None:
    seen: dict[str, str] = {}

    class Spy(sylvinit.codes.PCA):
        def fit(self, *args: Any, **options: Any) -> Any:
            seen["code"] = torch.get_float32_matmul_precision()
            return super().fit(*args, **options)

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        seen["forward"] = torch.get_float32_matmul_precision()
        return model(x)

    before = read_switches()
    torch.set_float32_matmul_precision("high")
    try:
        sylvinit.initialize_(mlp(), (ROWS, Y), code=Spy(), forward_fn=forward, microbatch=10)
        assert seen == {"code": "highest", "forward": "high"}
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        exchange_switches(before)
    assert read_switches() == before
