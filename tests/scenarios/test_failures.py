"""Bad input: a typed error or a stated warning, and the model and the process as they were."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from driver_helpers import (
    BEFORE,
    CLASSES,
    LOOKS,
    Snapshot,
    Trap,
    bits,
    images,
    small_net,
    unchanged,
)
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import (
    NonFiniteError,
)

X, Y = images(30)


class UsersError(Exception):
    """An error of the user's own."""


# ------------------------------------------------------------------------------ the helper can fail


def _set(model: nn.Module, **values: Any) -> None:
    for name, value in values.items():
        setattr(model, name, value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.fc.weight.data.mul_(1 + 1e-7), "values: fc.weight"),
        (lambda m: m.bn1.running_mean.copy_(-m.bn1.running_mean), "values: bn1.running_mean"),
        (lambda m: _set(m.fc, weight=nn.Parameter(m.fc.weight.data)), "tensors: fc.weight"),
        (lambda m: m.fc.weight.requires_grad_(False), "tensors: fc.weight"),
        (lambda m: m.conv1.train(False), "training: conv1"),
        (lambda m: m.register_forward_pre_hook(print), "hooks: ._forward_pre_hooks"),
        (lambda m: torch.rand(()), "random: torch"),
        (lambda m: np.random.rand(), "random: numpy"),  # noqa: NPY002
        (lambda m: torch.backends.mha.set_fastpath_enabled(False), "modes: fast path"),
        (lambda m: torch.set_autocast_cache_enabled(False), "modes: autocast cache"),
    ],
)
def test_the_snapshot_sees_every_kind_of_change(
    change: Callable[[nn.Module], Any], field: str
) -> None:
    model = small_net()
    before = Snapshot.of(model)
    try:
        change(model)
        assert field in before.differences(Snapshot.of(model))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch.set_autocast_cache_enabled(True)


# --------------------------------------------------------------------------- failures in the middle

# Calls of the trap in small_net, with three microbatches of 10: the survey, those that tell
# whose the rows are, then one each. By then conv1 and conv2 have been written and both
# normalizations calibrated.
SURVEY, FIRST, LAST = 0, BEFORE, BEFORE + 2


def _raise(error: BaseException) -> Callable[[Tensor], Tensor]:
    def action(x: Tensor) -> Tensor:
        raise error

    return action


def _trapped(at: int, action: Callable[[Tensor], Tensor]) -> nn.Sequential:
    model = small_net()
    model.trap.at, model.trap.action = at, action
    return model


@pytest.mark.parametrize("error", [UsersError("mine"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize(
    ("storage", "at"),
    [
        ("memory", SURVEY),
        ("memory", FIRST),
        ("memory", LAST),
        ("recompute", FIRST),
        ("recompute", LAST),
    ],
)
def test_the_forward_raises(storage: Any, at: int, error: BaseException) -> None:
    model = _trapped(at, _raise(error))
    if at == SURVEY:  # every call, or all of the first batch would do in place of two samples
        model.trap.counter = itertools.repeat(at)
    with unchanged(model), pytest.raises(type(error)) as caught:
        sylvinit.initialize_(model, (X, Y), preset="best", microbatch=10, storage=storage)
    assert caught.value is error
    model.trap.at = -1  # and nothing stops a second try
    assert (
        len(
            sylvinit.initialize_(
                model, (X, Y), preset="best", microbatch=10, storage=storage
            ).solved
        )
        == 3
    )


def test_weights_had_been_written_when_the_forward_raised() -> None:
    """The tests above would be empty if nothing had been written yet."""
    model, seen = small_net(), {}
    before = bits(model.conv2.weight)

    def action(x: Tensor) -> Tensor:
        seen["conv2"] = bits(model.conv2.weight)
        seen["mean"] = model.bn2.running_mean.abs().max()
        seen["training"] = any(module.training for module in model.modules())
        raise UsersError

    model.trap.at, model.trap.action = FIRST, action
    with unchanged(model), pytest.raises(UsersError):
        sylvinit.initialize_(model, (X, Y), preset="best", microbatch=10)
    assert seen["conv2"] != before
    assert seen["mean"] > 0
    assert not seen["training"]


def test_forwards_that_are_waiting_are_ended() -> None:
    """Their ``finally`` blocks have run when the error arrives, and not some time later."""
    begun, ended = [], []

    class Resource(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            begun.append(len(x))
            try:
                return super().forward(x)
            finally:
                ended.append(len(x))

    model = Resource(_trapped(FIRST, _raise(UsersError())))
    with unchanged(model), pytest.raises(UsersError) as caught:
        sylvinit.initialize_(model, (X, Y), preset="best", microbatch=10)
    assert caught.tb is not None  # which keeps everything alive that is not ended
    assert begun == ended == [2, *LOOKS, 10, 10, 10]


def test_ctrl_c() -> None:
    def action(x: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return x

    model = _trapped(LAST, action)
    # Shells start background jobs with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with unchanged(model), pytest.raises(KeyboardInterrupt):
            sylvinit.initialize_(model, (X, Y), preset="best", microbatch=10)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_a_layer_is_solved() -> None:
    class Interrupted(sylvinit.codes.PCA):
        def fit(self, stats: Any, k: int, seed: int) -> Any:
            raise KeyboardInterrupt

    model = small_net()
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        sylvinit.initialize_(model, (X, Y), code={"conv2": Interrupted()}, microbatch=10)


@pytest.mark.parametrize("error", [UsersError("disk"), KeyboardInterrupt()])
def test_the_loader_raises(error: BaseException) -> None:
    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        torch.rand(3), np.random.rand()  # noqa: NPY002 - as shuffling loaders do
        yield X[:10], Y[:10]
        raise error

    model = small_net()
    with unchanged(model), pytest.raises(type(error)) as caught:
        sylvinit.initialize_(model, loader(), preset="best")
    assert caught.value is error


@pytest.mark.parametrize("autocast", [False, True])
def test_modes_after_a_failure_under_modes(autocast: bool) -> None:
    """Abandoned forwards put modes back in another order than they set them."""
    model = _trapped(2, _raise(UsersError()))
    with (
        torch.inference_mode(),
        torch.autocast("cpu", torch.float16, enabled=autocast),
        unchanged(model),
        pytest.raises(UsersError),
    ):
        sylvinit.initialize_(model, (X, Y), preset="best", microbatch=10)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_activation_that_is_not_finite_names_the_layer(storage: Any, value: float) -> None:
    class Poison(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * value

    model = small_net()
    model.relu2 = Poison()
    with unchanged(model), pytest.raises(NonFiniteError, match=r"NaN or Inf in the input of fc"):
        sylvinit.initialize_(model, (X, Y), preset="best", storage=storage, microbatch=10)


def test_nan_in_the_input_of_a_normalization_names_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Trap(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].at, model[1].action = BEFORE, lambda x: x * math.nan
    x = torch.randn(9, 4)
    with unchanged(model), pytest.raises(NonFiniteError, match=r"input of 2 \(BatchNorm1d\)"):
        sylvinit.initialize_(model, x, preset="best")


@pytest.mark.parametrize("storage", ["memory", "recompute"])
def test_nan_after_the_last_layer(storage: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 2), Trap())
    model[1].at, model[1].action = BEFORE, lambda x: x * math.nan
    x = torch.randn(9, 4)
    with unchanged(model), pytest.raises(NonFiniteError, match="NaN in the output of the model"):
        sylvinit.initialize_(model, x, preset="best", storage=storage)


def test_no_memory_for_the_copies() -> None:
    class Greedy(torch.Tensor):
        def clone(self, *args: Any, **kwargs: Any) -> Tensor:
            raise MemoryError

    model = small_net()
    model.register_buffer("large", torch.zeros(2).as_subclass(Greedy))
    with unchanged(model), pytest.raises(MemoryError):
        sylvinit.initialize_(model, (X, Y), preset="best")


def test_a_lazy_model_keeps_its_first_weights() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), Trap(), nn.Flatten())
    model.append(nn.LazyLinear(CLASSES))
    model[2].at, model[2].action = 3, _raise(UsersError())
    with pytest.raises(UsersError):
        sylvinit.initialize_(model, (X, Y), preset="best", microbatch=10)
    # Materializing can't be undone, but nothing else has happened to the statistics.
    assert torch.equal(model[1].running_mean, torch.zeros(8))
    assert torch.equal(model[1].running_var, torch.ones(8))
    assert int(model[1].num_batches_tracked) == 0
    assert all(module.training for module in model.modules())


# ------------------------------------------------------------------------- success leaves no traces

WRITTEN = (
    "conv1.weight",
    "conv1.bias",
    "bn1.running_mean",
    "bn1.running_var",
    "bn1.num_batches_tracked",
    "conv2.weight",
    "bn2.running_mean",
    "bn2.running_var",
    "bn2.num_batches_tracked",
    "fc.weight",
    "fc.bias",
)


@pytest.mark.parametrize("storage", ["memory", "recompute"])
def test_success_writes_what_it_should_and_nothing_else(storage: Any) -> None:
    model = small_net()
    with unchanged(model, written=WRITTEN):
        sylvinit.initialize_(model, (X, Y), microbatch=7, storage=storage, code={"conv2": "ica"})
    with unchanged(model, written=("fc.weight", "fc.bias")):
        sylvinit.initialize_head_(model, (X, Y), lam=3.0)


def test_a_shuffling_loader_leaves_the_generators_alone() -> None:
    data = torch.utils.data.TensorDataset(X, Y)
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    model = small_net()
    with unchanged(model, written=WRITTEN):
        sylvinit.initialize_(model, loader, code="kmeans")


@pytest.mark.parametrize("function", [sylvinit.initialize_, sylvinit.initialize_head_])
def test_a_dry_run_changes_nothing(function: Callable[..., sylvinit.Report]) -> None:
    model = small_net()
    with unchanged(model):
        report = function(model, (X, Y), dry_run=True)
    planned = {layer.name for layer in report.layers if layer.status == "planned"}
    assert "fc" in planned
    assert planned <= {"conv1", "conv2", "bn1", "bn2", "fc"}
    assert not report.solved
