"""The initialisations that are compared, by name."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from architectures import to_channels_last, to_layout
from config import Arm, ConfigError
from data import limit
from initialisers.table import BASELINES
from meaning import CORRELATED, DAMPING, HEAD, PRESET, SYLVINIT, arguments_from
from torch import nn

import sylvinit
from sylvinit.demo.tasks import he_init_
from sylvinit.demo.training import calibrate_norm
from sylvinit.io.datasets import Samples
from sylvinit.solve import scaling

_WARM: set[str] = set()


def initialise(model: nn.Module, arm: Arm, samples: Samples, seed: int) -> float:
    """Initialise ``model`` in place.

    PyTorch's own random weights are first replaced with He's, normal: what an initialiser leaves
    alone is the same in all arms of a seed. "...+head" then solves the last layer.

    Args:
        model: the network.
        arm: a name of ``initialisers.table.BASELINES``, "sylvinit" or "correlated", any of them
            with "+head". ``settings`` are arguments of the initialiser, "head" those of the solved
            head, "augmented": true adds the mirror images, "per_class" takes fewer images,
            "branch_gain" is given to the last batch norm of every residual branch, by sylvinit
            as its argument. "norms_of" is another arm, {"initialiser": ..., "settings": ...}, whose
            weights the convolutions get the norms of: to tell scale from direction behind batch
            norm, which takes the scale away again (a solved head is not solved once more).
            "damping" takes the place of sylvinit's own constant in the scaling of rows.
            "head_scale" multiplies weight and bias of the last layer in the end, 0 for scores of 0.
        samples: on the device of ``model``.
        seed: of everything random.

    Returns:
        The seconds that it took, the other arm's included where its norms are taken.

    Raises:
        ConfigError: a gain of branches, not by sylvinit, for a network that has none; a scale of
            the head where there is no linear layer.
    """
    he_init_on_cpu(model, seed)
    settings = arguments_from(arm.settings)
    samples = limit(samples, arm.settings.get("per_class"), seed)
    begin = now(samples)
    if arm.settings.get("augmented"):
        samples = with_mirror_images(samples)
    base, plus, _ = arm.initialiser.partition("+")
    head_settings = arguments_from(settings.pop(HEAD, {})) if plus else {}
    gain = arm.settings.get("branch_gain")
    with warnings.catch_warnings():
        # That there are few samples is the point of these experiments.
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        if base == SYLVINIT and gain is not None:
            settings["branch_gain"] = gain
        other = arm.settings.get("norms_of")
        example = None
        if other is not None:
            example = copy.deepcopy(model)
            initialise(example, Arm("", **other), samples, seed)
        with damped(arm.settings.get(DAMPING, scaling.DAMPING)):
            _apply(model, base, samples, seed, settings)
        if example is not None:
            match_norms(model, example)
            if base == SYLVINIT:  # it leaves running statistics, which are no longer right
                calibrate_norm(model, samples.inputs)
        if base != SYLVINIT:  # after it, for others may give batch norm its defaults
            set_branch_gain(model, gain)
        if plus:
            calibrate_norm(model, samples.inputs)
            sylvinit.initialize_head_(
                model, (samples.inputs, samples.labels), seed=seed, progress=False, **head_settings
            )
        if "head_scale" in arm.settings:
            scale_head(model, arm.settings["head_scale"])
    return now(samples) - begin


@contextlib.contextmanager
def damped(share: float) -> Iterator[None]:
    """Scale rows of solved layers with another damping than sylvinit's own."""
    own = scaling.DAMPING
    scaling.DAMPING = share
    try:
        yield
    finally:
        scaling.DAMPING = own


@torch.no_grad()
def set_branch_gain(model: nn.Module, gain: float | None) -> None:
    """Give the scales of the batch norms that end a residual branch one value; None: leave them."""
    if gain is None:
        return
    # The blocks of two convolutions of these experiments; those of three end in another.
    found = [getattr(block, "bn2", None) for block in model.modules() if not hasattr(block, "bn3")]
    last = [norm for norm in found if isinstance(norm, nn.BatchNorm2d)]
    if not last:
        raise ConfigError(f"branch_gain: {type(model).__name__} has no residual branches")
    for norm in last:
        norm.get_parameter("weight").fill_(gain)


@torch.no_grad()
def scale_head(model: nn.Module, factor: float) -> None:
    """Multiply the parameters of the last linear layer."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ConfigError(f"head_scale: {type(model).__name__} has no linear layer")
    for parameter in layers[-1].parameters():
        parameter.mul_(factor)


@torch.no_grad()
def match_norms(model: nn.Module, example: nn.Module) -> None:
    """Scale every convolution, with its bias, so that its weight has the norm of another's.

    Args:
        model: changed in place.
        example: a network of the same modules.
    """
    for layer, other in zip(model.modules(), example.modules(), strict=True):
        if isinstance(layer, nn.Conv2d) and isinstance(other, nn.Conv2d):
            factor = other.weight.norm() / layer.weight.norm()
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    tensor.mul_(factor)


def warm_up(model: nn.Module, arm: Arm, samples: Samples) -> None:
    """Initialise a copy with two images a class, so that no time includes that of first calls.

    Nothing is done a second time in a process, nor for baselines that are torch alone or take so
    long that first calls are nothing beside them.
    """
    name = f"{arm.initialiser} {arm.settings} {type(model).__name__}"
    if name in _WARM or (arm.initialiser in BASELINES and arm.initialiser != "lsuv"):
        return
    _WARM.add(name)
    initialise(copy.deepcopy(model), arm, limit(samples, 2, 0), 0)


def he_init_on_cpu(model: nn.Module, seed: int) -> None:
    """He's weights, the same on every device: the random numbers come from the CPU."""
    device = next(model.parameters()).device
    he_init_(model.cpu(), seed)
    model.to(device)


def with_mirror_images(samples: Samples) -> Samples:
    """Images (N, C, H, W) and their mirror images, 2 N in all."""
    inputs = torch.cat([samples.inputs, samples.inputs.flip(3)])
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    return Samples(inputs, torch.cat([samples.labels, samples.labels]))


def now(samples: Samples) -> float:
    """Seconds, once the device has done everything that it was given."""
    if samples.inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _apply(
    model: nn.Module, name: str, samples: Samples, seed: int, settings: dict[str, Any]
) -> None:
    data = (samples.inputs, samples.labels)
    if name == SYLVINIT:
        options: dict[str, Any] = {"preset": PRESET} | settings
        sylvinit.initialize_(model, data, seed=seed, progress=False, **options)
    elif name == CORRELATED:
        generator = torch.Generator().manual_seed(seed)
        sylvinit.correlated_init_(model, generator=generator, **settings)
    else:
        # Packages of others expect filters in PyTorch's own layout.
        to_layout(model, torch.contiguous_format)
        BASELINES[name](model, data, seed)
        to_channels_last(model)
