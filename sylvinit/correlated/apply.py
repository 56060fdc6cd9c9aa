"""Correlated filters for every convolution of a model."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sylvinit.checks import Selection, check_choice, check_number
from sylvinit.correlated.choice import Job, assign_matrices, choose_layers
from sylvinit.correlated.draw import KAIMING_GAIN, check_drawing, draw_filters, rewound_on_failure
from sylvinit.distributed import Message, Ranks, join
from sylvinit.errors import ModelError, SylvinitWarning
from sylvinit.execution.guard import ModelGuard
from sylvinit.execution.replicas import Replicas
from sylvinit.execution.shards import unsharded
from sylvinit.model.modules import check_module, device_of
from sylvinit.priors.matrix import FilterCorrelation
from sylvinit.report import Report

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def correlated_init_(
    model: nn.Module,
    corr: Any = "resnet10-cifar10",
    *,
    strength: float = 1.0,
    gain: float = KAIMING_GAIN,
    mode: str = "fan_in",
    bias: Literal["zero", "keep"] = "zero",
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    generator: torch.Generator | None = None,
    dry_run: bool = False,
    process_group: ProcessGroup | Literal["world"] | None = None,
) -> Report:
    """Draw the weights of a model with spatially correlated filters, in place.

    Convolutions get :func:`sylvinit.correlated_normal_` with their matrix ("Correlated
    Initialization for Correlated Data", algorithm 1 with eq. 17). Layers without spatial filters
    (1x1 convolutions, Linear, attention projections) and convolutions without a matrix get He's
    normal distribution of the same gain and mode, which is the same with R = I. Normalizations,
    embeddings, transposed convolutions and weights whose parametrization allows no drawn value
    (spectral_norm) are left alone. The data are not looked at;
    :func:`sylvinit.input_correlation` makes matrices from data.

    Args:
        model: any module. Wrappers (torch.compile, DataParallel) are looked through.
        corr: where R comes from:

            - a matrix, as from :func:`sylvinit.filter_correlation`: (taps, taps). For kernels of
              another size one is made by :func:`sylvinit.correlated.resample_correlation`, which
              the report says. A plain matrix, which does not say its kernel, is that of the square
              one, or of a layer of as many taps where there is no square one or the layer is not
              two-dimensional;
            - the name of a built-in one, see :func:`sylvinit.priors.available`, or the path of a
              file of :func:`sylvinit.priors.save`;
            - a mapping from name patterns to these: the first that matches a layer's name decides,
              a layer without one gets He's distribution. ``filter_correlation(...,
              per_layer=True)`` fits a network of the same names;
            - a list of them, from the first layer with spatial filters to the last: every layer
              takes the one at its relative depth, so the networks may differ in depth.
        strength: factor on the entries off the diagonal (table 5), see
            :func:`sylvinit.correlated.scale_correlation`; 0 is Kaiming normal.
        gain: of the activation, for all layers; sqrt(2) is that of ReLU.
        mode: "fan_in" or "fan_out", see :func:`sylvinit.correlated_normal_`.
        bias: "zero" sets the biases of the layers drawn to zero, "keep" leaves them.
        include, exclude: fnmatch patterns over layer names; other layers are left alone.
        generator: of the random numbers; None takes torch's global one, so ``torch.manual_seed``
            makes a call reproducible, on every device alike.
        dry_run: report what would be done and draw nothing.
        process_group: "world" or a group of torch.distributed, whose ranks call this together: all
            take the random state of its rank 0 and end with the same weights and state. None: this
            process alone.

    Returns:
        A :class:`sylvinit.Report`; the code of a layer is "correlated" or "he".

    Raises:
        CorrelationError: a matrix is no correlation matrix, or its entries add up to zero or less
            at this strength.
        ModelError: there are no spatial filters that can be written, or the model is lazy or on
            the meta device.
        OptionError, OptionTypeError: an argument is out of its domain or of the wrong type.
        RankError: another rank has failed, or ranks have different models or arguments.
        Exception: in every case the model and the random state are as they were.
    """
    with join(process_group, model, stacklevel=3).together() as ranks, unsharded(model, ranks):
        return _correlated_init(
            model, corr, strength, gain, mode, bias, include, exclude, generator, dry_run, ranks
        )


def _correlated_init(
    model: nn.Module,
    corr: Any,
    strength: float,
    gain: float,
    mode: str,
    bias: str,
    include: str | Iterable[str] | None,
    exclude: str | Iterable[str] | None,
    generator: torch.Generator | None,
    dry_run: bool,
    ranks: Ranks,
) -> Report:
    begin = time.perf_counter()
    model = check_module(model)
    strength = check_number("strength", strength)
    gain = check_drawing(gain, mode, generator)
    check_choice("bias", bias, ("zero", "keep"))
    selection = Selection.of(include, exclude)
    device_of(model)  # raises where there is nothing to write to
    with ModelGuard(model):  # a parametrized weight may change buffers when it is computed
        choice = choose_layers(model, selection)
    caveats = assign_matrices(corr, choice, strength)
    settings: dict[str, Any] = {"corr": _described(corr), "strength": strength, "gain": gain}
    settings |= {"mode": mode, "bias": bias, **selection.settings(), "dry_run": bool(dry_run)}
    ranks.agree("arguments", [f"{settings}"], "pass the same arguments on every rank")
    for text in caveats if ranks.rank == 0 else []:
        warnings.warn(text, SylvinitWarning, stacklevel=3)
    if not dry_run:
        with rewound_on_failure(generator):
            _take_random_state(generator, ranks)
            # All of them first: the guard below puts torch's global random state back.
            drawn = [_draw(job, gain, mode, generator) for job in choice.jobs]
            with ModelGuard(model) as guard:
                Replicas(model, ranks, guard).compare()
                for job, weight in zip(choice.jobs, drawn, strict=True):
                    _write(job, weight, bias == "zero", guard)
                spatial = [job.report for job in choice.jobs if job.spatial]
                if all(report.status != "drawn" for report in spatial):
                    raise ModelError(
                        "no layer with spatial filters could be drawn: " + spatial[0].reason
                    )
                Replicas(model, ranks, guard).compare()  # processors may round in other ways
                ranks.commit()
    else:
        ranks.commit()
    layers = [job.report for job in choice.jobs] + choice.skipped
    seconds = time.perf_counter() - begin
    return Report(layers, seconds=seconds, warnings=caveats, settings=settings)


def _take_random_state(generator: torch.Generator | None, ranks: Ranks) -> None:
    """The random state of the leading rank."""
    source = torch.default_generator if generator is None else generator
    message = Message(None, [source.get_state()]) if ranks.leads else None
    if not ranks.alone:
        state = ranks.broadcast("the random state", message).tensors[0]
        source.set_state(state.cpu().clone())  # which reads past the beginning of a view


def _described(corr: Any) -> str:
    if isinstance(corr, (str, PathLike)):
        return str(corr)
    if isinstance(corr, Mapping):
        return f"{len(corr)} matrices by name"
    if isinstance(corr, FilterCorrelation):
        return f"a matrix of {corr.filters} filters"
    return f"a {type(corr).__name__}"


def _draw(job: Job, gain: float, mode: str, generator: torch.Generator | None) -> Tensor:
    """The weight as (groups, outputs, features), in its own precision."""
    matrix = job.matrix
    if matrix is None:
        matrix = torch.eye(math.prod(job.kernel), dtype=torch.float64, device="cpu")
    shape = job.shape if job.kernel else (*job.shape, 1)
    weight = draw_filters(shape, matrix, gain=gain, mode=mode, generator=generator)
    stored = (job.report.groups, job.report.d_out, job.report.d_in)
    return weight.reshape(stored).to(job.device, job.dtype)


def _write(job: Job, weight: Tensor, zero_bias: bool, guard: ModelGuard) -> None:
    layer, report = job.layer, job.report
    parameters = layer.parameters("weight")
    guard.save(parameters)
    try:
        layer.set_weight(weight)
    except ModelError as error:
        # A parametrization that no drawn weight fits, as orthogonal or of unit spectral norm.
        guard.restore(layer.owner, parameters)
        report.status, report.reason, report.code = "skipped", str(error), ""
        return
    guard.accept(layer.owner)  # with what weight normalization has computed
    report.status = "drawn"
    bias = layer.get_bias()
    if not zero_bias or bias is None:
        return
    if parametrize.is_parametrized(layer.owner, layer.tensors()["bias"]):
        report.notes.append("its bias is parametrized and left alone")
        return
    parameters = layer.parameters("bias")
    if not all(parameter.requires_grad for parameter in parameters):
        report.notes.append("its bias is frozen and left alone")
        return
    guard.save(parameters)
    layer.set_bias(torch.zeros_like(bias))
