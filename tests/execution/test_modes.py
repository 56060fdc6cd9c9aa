"""Modes, precisions, wrappers and the user's hooks: obeyed, left as they were, and harmless."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from driver_helpers import (
    BEFORE,
    CLASSES,
    LOOKS,
    SURVEY,
    assert_identical,
    bits,
    images,
    initialized,
    mlp,
    small_net,
    unchanged,
    weights_of,
)
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import NonFiniteError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]  # (30, 12)
STORAGES = pytest.mark.parametrize("storage", ["memory", "recompute"])


# -------------------------------------------------------------------------------------------- modes


def test_training_and_evaluation_mode_give_the_same() -> None:
    model = small_net()
    plain = initialized(model, (X, Y))
    assert_identical(plain, initialized(model.eval(), (X, Y)))
    assert_identical(plain, initialized(model.train(), (X, Y)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_and_inference_mode(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    model = small_net()
    plain = initialized(model, (X, Y), microbatch=8)
    with mode():
        before = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        sylvinit.initialize_(model, (X.clone(), Y), preset="best", microbatch=8)
        assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == before
    assert_identical(plain, weights_of(model))
    model(X).sum().backward()  # no parameter has become an inference tensor
    assert model.fc.weight.grad is not None


@pytest.mark.parametrize("microbatch", [7, 30])
def test_autocast(microbatch: int) -> None:
    model, seen = small_net().eval(), []
    model.fc.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        old = model(X)
        with torch.no_grad():
            dirty = model(X)  # fills autocast's cache of casts
        with unchanged(nn.Module()):
            sylvinit.initialize_(model, (X, Y), preset="best", microbatch=microbatch)
        new = model(X)
    assert torch.equal(old, dirty)
    assert set(seen) == {torch.bfloat16}  # the forward ran under the caller's autocast
    assert model.fc.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(new, model(X))  # and not with casts of the old weights


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16, cache_enabled=False),
    "no autocast": lambda: torch.autocast("cpu", enabled=False),
}


class Inside(nn.Module):
    """Runs its inner module in a mode of its own."""

    def __init__(self, inner: nn.Module, mode: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.inner, self.mode = inner, mode

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            return self.inner(x).clone()


class Whole(nn.Module):
    """A part with a mode of its own, one without, and the classifier.

    Attributes:
        seen: output dtype, grad mode and inference mode in every call of the parts "in" and "out".
    """

    def __init__(self, mode: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        parts = mlp()
        self.part = Inside(parts[:3], mode)
        self.rest = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)
        self.seen: dict[str, set[tuple[torch.dtype, bool, bool]]] = {"in": set(), "out": set()}
        parts[2].register_forward_hook(lambda *args: self.look("in", args[2]))
        self.rest.register_forward_hook(lambda *args: self.look("out", args[2]))

    def look(self, key: str, x: Tensor) -> None:
        mode = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        self.seen[key].add((x.dtype, *mode))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rest(self.part(x).to(x.dtype)))


WHOLE = tuple(
    f"{name}.{kind}"
    for name in ("part.inner.0", "part.inner.2", "rest", "head")
    for kind in ("weight", "bias")
)


@STORAGES
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_a_module_itself(mode: str, storage: Any) -> None:
    """Microbatches wait inside the module's modes, and all go on in the right ones."""
    model = Whole(MODES[mode])
    with unchanged(model, written=WHOLE):
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=7, storage=storage)
    low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(mode, torch.float32)
    assert model.seen["in"] == {(low, mode == "enable_grad", mode == "inference_mode")}
    assert model.seen["out"] == {(torch.float32, False, False)}
    if low == torch.float32:
        plain = Whole(nullcontext)
        sylvinit.initialize_(plain, (ROWS, Y), preset="best", microbatch=7, storage=storage)
        assert_identical(weights_of(plain), weights_of(model))


@STORAGES
def test_autocast_of_a_module_itself_within_the_callers(storage: Any) -> None:
    model = Whole(MODES["no autocast"])
    with torch.autocast("cpu", torch.bfloat16), unchanged(model, written=WHOLE):
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=7, storage=storage)
    assert model.seen["in"] == {(torch.float32, False, False)}
    assert model.seen["out"] == {(torch.bfloat16, False, False)}


def cached() -> AbstractContextManager[Any]:
    """Autocast that keeps its casts of the weights, within a caller's that keeps them alive."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=True)


@STORAGES
def test_no_cast_of_an_old_weight_is_used(storage: Any) -> None:
    """Neither the survey's within the call, nor the caller's after it."""
    keeps, forgets = Whole(cached), Whole(MODES["bfloat16"])
    forgets.load_state_dict(keeps.state_dict())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        sylvinit.initialize_(forgets, (ROWS, Y), preset="best", microbatch=7, storage=storage)
        expected = forgets(ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        keeps(ROWS)
        sylvinit.initialize_(keeps, (ROWS, Y), preset="best", microbatch=7, storage=storage)
        assert_identical(weights_of(forgets), weights_of(keeps))
        assert torch.equal(keeps(ROWS), expected)


def test_no_cast_of_a_new_weight_is_used_after_a_failure() -> None:
    model, calls = Whole(cached), []

    def fail(*args: Any) -> None:
        calls.append(bits(model.part.inner[0].weight))
        if len(calls) == BEFORE + 1:  # the first layer has been written and cast
            raise ZeroDivisionError

    with torch.autocast("cpu", torch.bfloat16):
        expected = model(ROWS)
        handle = model.part.inner[1].register_forward_hook(fail)
        with unchanged(model), pytest.raises(ZeroDivisionError):
            sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=7)
        handle.remove()
        assert calls[BEFORE - 1] != calls[BEFORE]
        assert torch.equal(model(ROWS), expected)


# --------------------------------------------------------------------------------------- precisions


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = small_net(dtype=dtype)
    with unchanged(nn.Module()):
        report = sylvinit.initialize_(model, (X.to(dtype), Y), preset="best")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert len(report.solved) == 3
    # The first layer's moments are those of the same numbers in float32, and so is its weight up to
    # one rounding, at most half a unit in the last place of the largest entry.
    wide = initialized(small_net(), (X.to(dtype).float(), Y))["conv1.weight"]
    error = (model.conv1.weight.float() - wide).abs().max()
    assert error <= 0.5 * torch.finfo(dtype).eps * wide.abs().max()


def test_statistics_beyond_half_precision() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4))
    model = model.half()
    x = (1000 * X).half()  # finite, and with a variance of about a million
    message = r"the variance of the input of 0 .* is too large for torch.float16.*bfloat16"
    with unchanged(model), pytest.raises(NonFiniteError, match=message):
        sylvinit.initialize_(model, (x, Y), preset="best")


def test_double_precision() -> None:
    """float32 and float64 agree in the first layer, and float64 is not computed in float32."""
    model = small_net(dtype=torch.float64)
    wide = initialized(model, (X.double(), Y))
    narrow = initialized(small_net(), (X, Y))
    difference = (wide["conv1.weight"] - narrow["conv1.weight"].double()).norm()
    relative = float(difference / wide["conv1.weight"].norm())
    # Float32 moments round by 6e-8; eigenvector gaps of these images amplify that by up to 100.
    assert 1e-9 < relative < 1e-5
    assert {value.dtype for value in wide.values()} == {torch.float64}


# ----------------------------------------------------------------------------------------- wrappers


def test_compiled_models() -> None:
    compiled: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    model = mlp()
    plain = initialized(model, (ROWS, Y), microbatch=8)
    whole, part, in_place = (copy.deepcopy(model) for _ in range(3))
    wrapped = torch.compile(whole, backend=backend)
    outer = nn.Sequential(torch.compile(part, backend=backend))
    in_place.compile(backend=backend)
    report = sylvinit.initialize_(wrapped, (ROWS, Y), preset="best", microbatch=8)
    assert [layer.name for layer in report.layers] == ["0", "2", "4"]
    report = sylvinit.initialize_(outer, (ROWS, Y), microbatch=8, include=["0.*"])
    assert [layer.name for layer in report.layers] == ["0.0", "0.2", "0.4"]
    sylvinit.initialize_(in_place, (ROWS, Y), preset="best", microbatch=8)
    for done in (whole, part, in_place):
        assert_identical(plain, weights_of(done))
    assert not compiled  # ran eagerly, for hooks must be called
    expected = whole(ROWS)
    for done in (wrapped, outer, in_place):
        assert torch.equal(done(ROWS), expected)
    assert compiled  # and compiles again afterwards


def test_data_parallel() -> None:
    model = mlp()
    plain = initialized(model, (ROWS, Y))
    report = sylvinit.initialize_(nn.DataParallel(model), (ROWS, Y), preset="best", head="4")
    assert_identical(plain, weights_of(model))
    assert report.head == "4"


# -------------------------------------------------------------------------------------------- hooks


def test_users_hooks_are_obeyed() -> None:
    class Affine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x + 1

    def changed(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (2 * args[0] + 1,)

    def changed_by_name(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return changed(module, args), kwargs

    by_modules, by_hooks = mlp(), mlp()
    spelled = nn.Sequential(Affine(), *by_modules[:2], Affine(), *by_modules[2:], Affine())
    by_hooks[0].register_forward_pre_hook(changed)
    by_hooks[2].register_forward_pre_hook(changed_by_name, with_kwargs=True)
    calls: list[int] = []
    by_hooks[4].register_forward_hook(lambda module, args, output: calls.append(len(output)))
    sylvinit.initialize_(spelled, (ROWS, Y), preset="best", microbatch=10)
    sylvinit.initialize_(by_hooks, (ROWS, Y), preset="best", microbatch=10)
    # Positions depend on names, but every row is taken here: the sums are the same.
    assert_identical(weights_of(by_modules), weights_of(by_hooks))
    assert sum(calls) == sum(SURVEY + LOOKS) + len(ROWS)  # then every sample once
