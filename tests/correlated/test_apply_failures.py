"""correlated_init_ where it must not or cannot write: errors, parametrizations, wrappers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from correlation_problems import smooth_correlation
from driver_helpers import Snapshot, Trap, small_net, unchanged
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sylvinit import correlated_init_, correlated_normal_, input_correlation, priors
from sylvinit.correlated import apply as driver
from sylvinit.errors import (
    CorrelationError,
    DataError,
    ModelError,
    OptionError,
    OptionTypeError,
    SylvinitError,
)
from sylvinit.execution.guard import ModelGuard
from sylvinit.model import ConvLayer, LinearLayer

PRIOR = priors.load("resnet10-cifar10")


def net(last: nn.Module | None = None) -> nn.Sequential:
    """Small_net with weight norm in the middle and perhaps another layer at the end."""
    model = nn.Sequential(small_net(), parametrizations.weight_norm(nn.Conv2d(4, 4, 3)))
    model.append(nn.Linear(4, 4) if last is None else last)
    model[1].weight_hook = model[1].register_forward_hook(lambda *_: None)
    return model


def differences(before: Snapshot, model: nn.Module) -> list[str]:
    """All but where parametrized weights lie: torch gives their originals other memory."""
    found = before.differences(Snapshot.of(model))
    return [name for name in found if not name.startswith("tensors: 1.param")]


class Absolute(nn.Module):
    """A parametrization that has no negative numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()

    def right_inverse(self, x: Tensor) -> Tensor:
        return x


def _parametrized(last: nn.Module, parametrization: Any) -> nn.Module:
    if isinstance(parametrization, nn.Module):
        parametrize.register_parametrization(last, "weight", parametrization)
        return last
    return parametrization(last)


# ----------------------------------------------------------------------------- failures half way


@pytest.mark.parametrize(
    "parametrization", [Absolute(), parametrizations.spectral_norm, parametrizations.orthogonal]
)
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 3, 3), lambda: nn.Linear(4, 3)])
def test_a_parametrization_that_cannot_represent_the_weight(
    make: Any, parametrization: Any
) -> None:
    model = net(_parametrized(make(), parametrization))
    before = {name: value.clone() for name, value in model[2].state_dict().items()}
    report = correlated_init_(model, PRIOR)
    assert report["1"].status == "drawn"
    assert (report["2"].status, report["2"].code) == ("skipped", "")
    assert "of weight cannot" in report["2"].reason
    after = model[2].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_no_layer_that_can_be_written() -> None:
    model = nn.Sequential(_parametrized(nn.Conv2d(4, 3, 3), Absolute()), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ModelError, match="no layer with spatial filters could be drawn"):
        correlated_init_(model, PRIOR)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class UsersError(Exception):
    """Of nobody's making."""


@pytest.mark.parametrize("error", [UsersError(), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("place", ["draw", "weight", "bias", "copies"])
def test_any_other_failure(
    place: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == (1 if place == "copies" else 3):
            raise error
        return original(*args, **kwargs)

    owner, name = {
        "draw": (driver, "draw_filters"),
        "weight": (ConvLayer, "set_weight"),
        "bias": (ModelGuard, "save"),
        "copies": (ModelGuard, "remember"),
    }[place]
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, fail)
    model = net()
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    for given in (generator, None):
        calls.clear()
        before = Snapshot.of(model)
        with pytest.raises(type(error)):
            correlated_init_(model, PRIOR, generator=given)
        assert calls
        assert differences(before, model) == []
    assert torch.equal(generator.get_state(), state)


def test_weights_had_been_written_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would be empty if nothing had been written yet."""
    model, seen = net(), {}
    old = model[0].conv1.weight.detach().clone()

    def fail(layer: Any, weight: Tensor) -> None:
        if layer.name == "2":
            seen["changed"] = not torch.equal(model[0].conv1.weight, old)
            seen["training"] = any(module.training for module in model.modules())
            raise UsersError
        original(layer, weight)

    original = LinearLayer.set_weight
    monkeypatch.setattr(LinearLayer, "set_weight", fail)
    with pytest.raises(UsersError):
        correlated_init_(model, PRIOR)
    assert seen == {"changed": True, "training": False}
    assert torch.equal(model[0].conv1.weight, old)


# --------------------------------------------------------------------------------- odd but accepted


def test_weight_norm() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3))
    generator = torch.Generator().manual_seed(0)
    report = correlated_init_(model, PRIOR, generator=generator)
    generator.manual_seed(0)
    wanted = correlated_normal_(torch.empty(4, 4, 3, 3), PRIOR, generator=generator)
    # g v / |v| rounds a few times: 3 units in the last place of float32.
    torch.testing.assert_close(model[0].weight, wanted, rtol=4e-7, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (report["0"].status, report["0"].code) == ("drawn", "correlated")
    model[0].parametrizations.weight.original0.requires_grad_(False)
    assert "frozen" in correlated_init_(model, PRIOR)["0"].reason


def test_weights_recomputed_by_hooks_are_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3))
    with unchanged(model, written=("1.weight", "1.bias")):
        report = correlated_init_(model, PRIOR, generator=torch.Generator().manual_seed(0))
    assert "under torch.nn.utils.spectral_norm" in report["0"].reason


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers(wrap: Any) -> None:
    plain, inside = small_net(), small_net()
    correlated_init_(plain, PRIOR, generator=torch.Generator().manual_seed(0))
    outer = wrap(nn.Sequential(wrap(inside)) if wrap is torch.compile else inside)
    report = correlated_init_(outer, PRIOR, generator=torch.Generator().manual_seed(0))
    names = {layer.name.removeprefix("0.") for layer in report.layers}
    assert names == {"conv1", "conv2", "fc", "frozen"}
    assert all(map(torch.equal, plain.parameters(), inside.parameters()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_layout_and_precision_are_kept(dtype: torch.dtype) -> None:
    plain = small_net()
    correlated_init_(plain, PRIOR, generator=torch.Generator().manual_seed(0))
    model = small_net(dtype=dtype).to(memory_format=torch.channels_last)
    with unchanged(
        model, written=("conv1.weight", "conv1.bias", "conv2.weight", "fc.weight", "fc.bias")
    ):
        correlated_init_(model, PRIOR, generator=torch.Generator().manual_seed(0))
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    drawn = plain.conv1.weight.detach().double()
    # The plain weights have been rounded to float32, the others to their own precision.
    bound = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    found = model.conv1.weight.detach().double()
    tiny = 6e-8 if dtype == torch.float16 else 0.0  # the spacing of its subnormal numbers
    torch.testing.assert_close(found, drawn, rtol=bound, atol=tiny)


def test_modes_of_the_caller() -> None:
    plain = small_net()
    correlated_init_(plain, PRIOR, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        inference = small_net()
        correlated_init_(inference, PRIOR, generator=torch.Generator().manual_seed(0))
    again = small_net()
    for model in (inference, again):
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            correlated_init_(model, generator=torch.Generator().manual_seed(0))
        assert all(map(torch.equal, plain.parameters(), model.parameters()))


def test_matrices_of_the_layers_own_inputs() -> None:
    """Both halves together, with no trained network."""
    x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = nn.functional.avg_pool2d(x, 3, stride=1)
    model = small_net()
    found = input_correlation(model, x, patches="all")
    report = correlated_init_(model, found, generator=torch.Generator().manual_seed(0))
    assert [report[name].code for name in ("conv1", "conv2")] == ["correlated"] * 2
    # Averages over windows that overlap in 6 of 9 pixels; 0.15 of 1 for 20 images and padding.
    assert float(found["conv1"][0, 1]) == pytest.approx(2 / 3, abs=0.15)


# ---------------------------------------------------------------------------------------- bad input

GAP = np.eye(9)
GAP[0, 1] = 0.1
NEGATIVE = np.eye(9) * 1.12 - 0.12


@pytest.mark.parametrize(
    ("corr", "options", "error", "message"),
    [
        (np.eye(9)[:8], {}, CorrelationError, r"square matrix .* \(8, 9\)"),
        (np.eye(8), {}, CorrelationError, "8 taps belongs to no square kernel"),
        (GAP, {}, CorrelationError, "must be symmetric"),
        (2 * np.eye(9), {}, CorrelationError, "ones on the diagonal"),
        (np.full((9, 9), math.nan), {}, CorrelationError, "NaN"),
        (NEGATIVE, {"strength": 1.1}, CorrelationError, r"choose a strength below 1\.04"),
        (PRIOR, {"strength": -1}, OptionError, "strength must be finite and at least 0"),
        (PRIOR, {"strength": math.nan}, OptionError, "strength must be finite"),
        (PRIOR, {"strength": "1"}, OptionTypeError, "strength must be a number"),
        (PRIOR, {"gain": -1}, OptionError, "gain must be finite and positive"),
        (PRIOR, {"mode": "fan_avg"}, OptionError, "mode must be one of"),
        (PRIOR, {"bias": "he"}, OptionError, r"bias must be one of \['zero', 'keep'\]"),
        (PRIOR, {"generator": 0}, OptionTypeError, "generator must be a torch.Generator"),
        (PRIOR, {"include": "conv9"}, OptionError, "include: the pattern 'conv9' matches no layer"),
        (PRIOR, {"exclude": ["fc", "x*"]}, OptionError, r"'x\*' matches no layer; names are conv1"),
        (PRIOR, {"include": [1]}, OptionTypeError, "include: patterns must be strings"),
        (PRIOR, {"exclude": 1}, OptionTypeError, "exclude must be a pattern or a list of patterns"),
        (PRIOR, {"include": "fc"}, ModelError, "no spatial filters to draw"),
        (PRIOR, {"exclude": "conv*"}, ModelError, "no spatial filters to draw"),
        ("resnet11", {}, OptionError, "expected one of .*resnet10-cifar10.* got 'resnet11'"),
        ("missing.txt", {}, DataError, r"cannot read missing\.txt"),
        ({}, {}, OptionError, "at least one pattern"),
        ({1: PRIOR}, {}, OptionTypeError, "patterns must be strings, got 1"),
        ({"conv7": PRIOR}, {}, OptionError, "'conv7' matches no layer; names are conv1, conv2"),
        ({"fc": PRIOR}, {}, OptionError, "'fc' matches no layer"),
        ({"conv1": None}, {}, OptionTypeError, "corr must be a matrix of real numbers"),
        ({"conv1": [[1.0]]}, {}, CorrelationError, "at least two taps"),
        ([], {}, CorrelationError, "must be a square matrix"),
        ([PRIOR, np.eye(8)], {}, CorrelationError, "8 taps"),
        ([PRIOR, 3], {}, CorrelationError, "must be a square matrix"),
        (None, {}, OptionTypeError, "corr must be a matrix of real numbers, got NoneType"),
        (small_net(), {}, OptionTypeError, "got Sequential"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_bad_input(
    corr: Any, options: dict[str, Any], error: type[SylvinitError], message: str, dry_run: bool
) -> None:
    model = small_net()
    with unchanged(model), pytest.raises(error, match=message):
        correlated_init_(model, corr, dry_run=dry_run, **options)


def test_a_dry_run_is_asked_for_by_a_flag() -> None:
    model = small_net()
    with unchanged(model), pytest.raises(OptionTypeError, match="dry_run must be True or False"):
        correlated_init_(model, dry_run="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Conv2d(3, 3, 1)), "no spatial filters to draw"),
        (nn.Conv2d(3, 3, 3).requires_grad_(False), "no spatial filters to draw"),
        (nn.ConvTranspose2d(3, 3, 3), "no spatial filters to draw"),
        (nn.Sequential(nn.ReLU()), "the model has no parameters"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.LazyLinear(3)), "1 is lazy and has no weight yet"),
        (nn.LazyConv2d(3, 3), "the model is lazy"),
        (nn.Conv2d(3, 3, 3, device="meta"), "on the meta device"),
        (nn.Sequential(nn.BatchNorm2d(3, device="meta"), nn.Conv2d(3, 3, 3)), "meta device"),
    ],
)
def test_models_that_cannot_be_drawn(model: nn.Module, message: str) -> None:
    with unchanged(model), pytest.raises(ModelError, match=message):
        correlated_init_(model, PRIOR)


def test_what_is_no_model() -> None:
    with pytest.raises(OptionTypeError, match=r"model must be a torch\.nn\.Module, got Tensor"):
        correlated_init_(torch.zeros(3, 3, 3, 3), PRIOR)  # type: ignore[arg-type]


def test_a_forward_is_not_needed() -> None:
    """No module runs."""
    model = nn.Sequential(nn.Conv2d(2, 2, 3), Trap())
    model[1].at, model[1].action = 0, pytest.fail
    correlated_init_(model, smooth_correlation((3, 3)), generator=torch.Generator())
    assert next(model[1].counter) == 0
