"""What a forward stores on modules: every microbatch has its own, and nothing of it stays."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from driver_helpers import (
    BEFORE,
    CLASSES,
    LOOKS,
    SkipNet,
    assert_identical,
    images,
    unchanged,
    weights_of,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import sylvinit
from sylvinit.errors import ModelError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]
# Microbatches of 8 of 30 samples: four, of which the last is smaller.
SETTINGS = [{"storage": storage, "microbatch": 8} for storage in ("memory", "recompute")]


def _weights(model: nn.Module, **settings: Any) -> dict[str, Tensor]:
    sylvinit.initialize_(model, (ROWS, Y), **{"preset": "best", **settings})
    return weights_of(model)


class ByAttribute(SkipNet):
    def forward(self, x: Tensor) -> Tensor:
        self.skip = self.first(x).relu()
        return self.head(self.second(self.skip) + self.skip)


class ByList(SkipNet):
    """As U-Nets do it; the list is there from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.skips: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.skips.clear()
        self.skips.append(self.first(x).relu())
        return self.head(self.second(self.skips[-1]) + self.skips.pop())


class ByHook(SkipNet):
    """A hook keeps the output of the first layer in a dictionary of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[str, Tensor] = {}
        self.first.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.features["first"] = output

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).relu())
        return self.head(hidden + self.features["first"].relu())


class ByBuffer(SkipNet):
    """A buffer is replaced, and set back at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("skip", None)

    def forward(self, x: Tensor) -> Tensor:
        self.skip = self.first(x).relu()
        output = self.head(self.second(self.skip) + self.skip)
        self.skip = None
        return output


class Cached(SkipNet):
    """Something of the size of the batch is made once."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.zeros is None:
            self.zeros = x.new_zeros(len(x), 10)
        skip = self.first(x).relu() + self.zeros
        return self.head(self.second(skip) + skip)


@pytest.mark.parametrize("settings", SETTINGS, ids=["memory", "recompute"])
@pytest.mark.parametrize("kind", [ByAttribute, ByList, ByHook, ByBuffer, Cached])
def test_what_is_stored_on_modules_is_as_local_variables(
    kind: Callable[[], SkipNet], settings: dict[str, Any]
) -> None:
    expected = _weights(SkipNet(), **settings)
    model = kind()
    names = tuple(name for name, _ in model.named_parameters())
    with unchanged(model, written=names):
        weights = _weights(model, **settings)
    # The same operations in the same order: the same bits.
    assert_identical(weights, expected)


@pytest.mark.parametrize("kind", [ByAttribute, ByList, ByHook, ByBuffer, Cached])
@pytest.mark.parametrize("head", [None, "none such"])
def test_nothing_is_left_on_modules(kind: Callable[[], SkipNet], head: str | None) -> None:
    model = kind()
    error = nullcontext() if head is None else pytest.raises(ModelError, match="none such")
    with unchanged(model), error:
        sylvinit.initialize_(model, (ROWS, Y), preset="best", dry_run=True, head=head)


def test_the_contents_of_lists_are_put_back_after_a_failure() -> None:
    class Logs(SkipNet):
        def __init__(self) -> None:
            super().__init__()
            self.log: list[Any] = ["before"]
            self.counter = itertools.count()

        def forward(self, x: Tensor) -> Tensor:
            self.log.append(x.shape)
            if next(self.counter) == 2:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Logs()
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=8)
    assert model.log == ["before"]


# ------------------------------------------------------------------------------ replaced weights


class Doubled(nn.Module):
    """The forward of ``net`` runs with twice its weights in the place of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU())
            self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: 2 * value for name, value in self.net.named_parameters()}
        return self.head(torch.func.functional_call(self.net, weights, (x,)))


@pytest.mark.parametrize("exclude", [None, "net.0"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["memory", "recompute"])
def test_functional_call_in_the_forward(settings: dict[str, Any], exclude: Any) -> None:
    """One microbatch at a time, restarted after every layer, is what all together must give."""
    expected = Doubled()
    sylvinit.initialize_(expected, (ROWS, Y), storage="recompute", microbatch=30, exclude=exclude)
    model = Doubled()
    identities = {name: id(p) for name, p in model.named_parameters()}
    sylvinit.initialize_(model, (ROWS, Y), exclude=exclude, **settings)
    assert {name: id(p) for name, p in model.named_parameters()} == identities
    assert all(p.requires_grad for p in model.parameters())
    for name, value in expected.named_parameters():
        # Sums of four microbatches and of one, in float64 from float32 inputs, through two layers:
        # the worst difference seen is 2e-6 of the largest entry.
        found = model.get_parameter(name)
        assert (found - value).abs().max() <= 1e-5 * value.abs().max(), name


def test_a_failure_within_functional_call() -> None:
    class Fails(Doubled):
        counter = itertools.count()

        def forward(self, x: Tensor) -> Tensor:
            if next(self.counter) == BEFORE + 3:
                raise RuntimeError("the forward fails")
            return super().forward(x)

    model = Fails()
    with unchanged(model), pytest.raises(RuntimeError, match="the forward fails"):
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=8)


@pytest.mark.parametrize("settings", SETTINGS, ids=["memory", "recompute"])
@pytest.mark.parametrize("outside", [False, True])
def test_cached_parametrizations(settings: dict[str, Any], outside: bool) -> None:
    class CachesWeights(SkipNet):
        def forward(self, x: Tensor) -> Tensor:
            with parametrize.cached():
                return super().forward(x)

    models = SkipNet(), (SkipNet() if outside else CachesWeights())
    for model in models:
        parametrizations.weight_norm(model.first)
    expected = _weights(models[0], **settings)
    if outside:
        with parametrize.cached():
            weights = _weights(models[1], **settings)
            y = models[1].first.weight
        assert torch.equal(y, models[1].first.weight)
    else:
        weights = _weights(models[1], **settings)
    assert not parametrize._cache_enabled
    assert not parametrize._cache
    assert_identical(weights, expected)


# --------------------------------------------------------------------- what only some forwards do


class SometimesPads(SkipNet):
    """Keeps its mask only where something is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.pad: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        self.pad = None if bool(mask.all()) else mask
        hidden = self.second(self.first(x).relu())
        return self.head(hidden if self.pad is None else hidden * self.pad)


def test_what_only_later_microbatches_store() -> None:
    class Local(SkipNet):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.second(self.first(x).relu()) * mask)

    mask = (torch.arange(300).reshape(30, 10) % 3 > 0).float()
    mask[:8] = 1
    expected, model = Local(), SometimesPads()
    sylvinit.initialize_(expected, ((ROWS, mask), Y), preset="best", microbatch=8)
    sylvinit.initialize_(model, ((ROWS, mask), Y), preset="best", microbatch=8)
    assert all(torch.equal(p, expected.get_parameter(n)) for n, p in model.named_parameters())
    assert model.pad is None


class NewEveryTime(SkipNet):
    def forward(self, x: Tensor) -> Tensor:
        self.act = nn.ReLU()
        skip = self.act(self.first(x))
        return self.head(self.second(skip) + skip)


def test_modules_made_by_every_forward() -> None:
    expected = _weights(SkipNet(), microbatch=8)
    weights = _weights(NewEveryTime(), microbatch=8)
    assert_identical(weights, expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=["memory", "recompute"])
def test_hooks_of_the_forward(settings: dict[str, Any]) -> None:
    class Hooks(SkipNet):
        def forward(self, x: Tensor) -> Tensor:
            seen: list[Tensor] = []
            handle = self.first.register_forward_hook(lambda m, args, out: seen.append(out))
            hidden = self.second(self.first(x).relu())
            handle.remove()
            return self.head(hidden + seen[-1].relu())

    expected = _weights(SkipNet(), **settings)
    model = Hooks()
    with unchanged(model, written=tuple(name for name, _ in model.named_parameters())):
        weights = _weights(model, **settings)
    assert_identical(weights, expected)


def test_a_forward_that_iterates_over_what_it_keeps() -> None:
    class History(SkipNet):
        def __init__(self) -> None:
            super().__init__()
            self.history: deque[Tensor] = deque(maxlen=3)

        def forward(self, x: Tensor) -> Tensor:
            self.history.clear()
            self.history.append(self.first(x).relu())
            for hidden in self.history:
                x = self.second(hidden) + hidden
            return self.head(x)

    expected = _weights(SkipNet(), microbatch=30)
    model = History()
    weights = _weights(model, microbatch=30)
    assert_identical(weights, expected)
    assert not model.history


def head_last(*front: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(*front, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))


class CachedMask(nn.Module):
    """Registers a buffer of the batch's size at its first call, and may fail afterwards."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        super().__init__()
        self.counter, self.fails_at = itertools.count(1), fails_at

    def forward(self, x: Tensor) -> Tensor:
        call = next(self.counter)
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(len(x), 1), persistent=False)
        if self.fails_at is not None and call >= self.fails_at:
            raise RuntimeError("the forward fails")
        return x * self.mask


def test_buffers_registered_by_the_forward_are_removed() -> None:
    model = head_last(CachedMask())
    sylvinit.initialize_(
        model, (ROWS, Y), preset="best", microbatch=30
    )  # and the survey's do not get in the way
    assert list(model.named_buffers()) == []
    assert not model[0]._non_persistent_buffers_set


@pytest.mark.parametrize("at", [1, 2])
def test_buffers_registered_by_a_forward_that_fails_are_removed(at: int) -> None:
    model = head_last(CachedMask(fails_at=at))
    with unchanged(model), pytest.raises(RuntimeError, match="the forward fails"):
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=30)
    assert list(model.named_buffers()) == []


def test_lazy_modules_keep_their_buffers_and_lose_those_of_others() -> None:
    model = nn.Sequential(CachedMask(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(4))
    sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=30)
    names = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert {name for name, _ in model.named_buffers()} == names


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
    sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=10)
    assert alive[1:] == [False] * (len(LOOKS) + 3)  # the survey keeps its inputs
