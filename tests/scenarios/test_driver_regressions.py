"""What the drivers once got wrong about buffers, process-wide switches and the head."""

from __future__ import annotations

import itertools
import warnings
import weakref
from typing import Any

import pytest
import torch
from driver_helpers import CLASSES, images, mlp, unchanged
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import sylvinit
from sylvinit.errors import ModelError
from sylvinit.execution.switches import exchange_switches, read_switches

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
        self.counter, self.fails_at = itertools.count(1), fails_at

    def forward(self, x: Tensor) -> Tensor:
        call = next(self.counter)
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(len(x), 1), persistent=False)
        if call == self.fails_at:
            raise RuntimeError("the forward fails")
        return x * self.mask


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
    sylvinit.initialize_(model, (ROWS, Y), microbatch=10, storage=storage)
    assert read_switches() == before
    assert set(seen) == {expected}
    assert expected != model.state()


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


class Prototypes(nn.Module):
    """A classifier that is no layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(CLASSES, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cosine":
            return functional.linear(functional.normalize(x), functional.normalize(self.weight))
        if self.kind == "product":
            return x @ self.weight.T
        return torch.cdist(x, self.weight)


@pytest.mark.parametrize("kind", ["cosine", "product", "distance"])
def test_a_classifier_that_is_no_layer(kind: str) -> None:
    body = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8))
    model = nn.Sequential(body, Prototypes(kind))
    with unchanged(model), pytest.raises(ModelError, match=r"parameter 1\.weight follows .* 0\.2;"):
        sylvinit.initialize_head_(model, (ROWS, Y))
    with pytest.warns(sylvinit.SylvinitWarning, match=r"no head is solved; head= names one"):
        report = sylvinit.initialize_(model, (ROWS, Y))
    assert report.head is None
    assert [layer.code for layer in report.solved] == ["pca", "pca"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        report = sylvinit.initialize_(model, (ROWS, Y), head="0.2")
    assert (report.head, report["0.2"].code) == ("0.2", "onehot")


def test_products_without_parameters_leave_the_head_alone() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.temperature = mlp(), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            logits = self.body(x) * self.temperature.exp()
            return logits @ torch.eye(CLASSES)

    assert sylvinit.initialize_(Scaled(), (ROWS, Y)).head == "body.4"


def test_the_head_is_the_layer_that_is_called_last() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.between = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.between(self.shared(x).relu()).relu())

    assert sylvinit.initialize_(Again(), (ROWS, Y)).head == "shared"
