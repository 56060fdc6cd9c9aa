"""What the drivers once got wrong about buffers, process-wide switches and the head."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import pytest
import torch
from driver_helpers import CLASSES, images, mlp, unchanged
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sylvinit
from sylvinit.errors import ModelError
from sylvinit.switches import exchange_switches, read_switches

quiet = pytest.mark.filterwarnings("ignore::sylvinit.SylvinitWarning")

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


def head_last(*front: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(*front, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))


# ---------------------------------------------------------------------- buffers of a forward


class CachedMask(nn.Module):
    """Registers a buffer of the batch's size at its first call, and may fail afterwards."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        super().__init__()
        self.calls, self.fails_at = 0, fails_at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(len(x), 1), persistent=False)
        if self.calls == self.fails_at:
            raise RuntimeError("the forward fails")
        return x * self.mask


@quiet
def test_buffers_registered_by_the_forward_are_removed() -> None:
    model = head_last(CachedMask())
    sylvinit.initialize_(model, (ROWS, Y), microbatch=30)  # and the survey's do not get in the way
    assert list(model.named_buffers()) == []
    assert not model[0]._non_persistent_buffers_set


@pytest.mark.parametrize("at", [1, 2])
def test_buffers_registered_by_a_forward_that_fails_are_removed(at: int) -> None:
    model = head_last(CachedMask(fails_at=at))
    with unchanged(model), pytest.raises(RuntimeError, match="the forward fails"):
        sylvinit.initialize_(model, (ROWS, Y), microbatch=30)
    assert list(model.named_buffers()) == []


@quiet
def test_lazy_modules_keep_their_buffers_and_lose_those_of_others() -> None:
    model = nn.Sequential(CachedMask(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(4))
    sylvinit.initialize_(model, (ROWS, Y), microbatch=30)
    names = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert {name for name, _ in model.named_buffers()} == names


# ---------------------------------------------------------------------- switches of a process


class Inside(nn.Module):
    """Its layer runs within a context that changes a switch of the whole process."""

    def __init__(self, change: Any, seen: list[Any]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.body, self.last = nn.Linear(12, 12), nn.Linear(12, CLASSES)
        self.change, self.seen = change, seen

    def forward(self, x: Tensor) -> Tensor:
        with self.change():
            x = self.body(x)
            self.seen.append(self.state())
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


@quiet
@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("change", CHANGES)
def test_switches_of_interleaved_forwards(change: str, storage: Any) -> None:
    seen: list[Any] = []
    model = Inside(CHANGES[change], seen)
    with CHANGES[change]():
        expected = model.state()
    before = read_switches()
    sylvinit.initialize_(model, (ROWS, Y), microbatch=10, storage=storage)
    assert read_switches() == before
    assert set(seen) == {expected}
    assert expected != model.state()


@quiet
def test_switches_after_a_forward_that_fails() -> None:
    model = Inside(DoubleByDefault, [])
    model.last.register_forward_pre_hook(lambda module, args: _raise_on(len(args[0]) == 5))
    before = read_switches()
    with pytest.raises(RuntimeError, match="a ragged batch"):
        sylvinit.initialize_(model, (ROWS[:25], Y[:25]), microbatch=10)
    assert read_switches() == before


def _raise_on(condition: bool) -> None:
    if condition:
        raise RuntimeError("a ragged batch")


@quiet
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


# ---------------------------------------------------------------------- memory


@quiet
def test_the_input_of_the_last_layer_is_freed_while_the_forward_goes_on() -> None:
    inputs: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    class Note(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inputs.append(weakref.ref(x))
            return x

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(inputs[len(alive)]() is not None)
            return x

    model = nn.Sequential(nn.ReLU(), Note(), nn.Linear(12, 8), Look(), nn.Linear(8, CLASSES))
    sylvinit.initialize_(model, (ROWS, Y), microbatch=10)
    assert alive[1:] == [False] * 3  # the first is that of the survey, which keeps its inputs


# ---------------------------------------------------------------------- the head


def frozen_head() -> nn.Sequential:
    model = mlp()
    model[4].weight.requires_grad_(False)
    return model


def test_a_head_that_cannot_be_solved() -> None:
    model = frozen_head()
    with unchanged(model), pytest.raises(ModelError, match=r"head 4 is not solved: frozen .*head="):
        sylvinit.initialize_head_(model, (ROWS, Y))
    with pytest.warns(sylvinit.SylvinitWarning, match="the head 4 is not solved: frozen"):
        report = sylvinit.initialize_(model, (ROWS, Y))
    assert report.head is None


@quiet
def test_the_head_is_the_layer_that_is_called_last() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.between = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.between(self.shared(x).relu()).relu())

    assert sylvinit.initialize_(Again(), (ROWS, Y)).head == "shared"
