"""From a survey and the options to units: what will be solved, as what, and what is left alone."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from sylvinit.backends import choose
from sylvinit.codes import Code, OneHot
from sylvinit.errors import LabelError, ModelError
from sylvinit.execution.batches import Classes
from sylvinit.execution.survey import Survey
from sylvinit.execution.units import LayerUnit, Plan
from sylvinit.model import Layer
from sylvinit.model.batch_norm import Norm, reason_to_skip, uses_batch_statistics
from sylvinit.model.modules import memory_key, parameter_holders
from sylvinit.moments.rows import assign_rows
from sylvinit.options import Options
from sylvinit.report import LayerReport

# Sums are kept for every class up to the largest label, so labels that are hashes must not get by.
MAX_CLASSES = 2**20
# A preset uses class means in every layer only where they are few beside the moments.
_MOST_DISCRIMINANT_CLASSES = 2**12
_HIDDEN = "its input cannot be looked at inside of torch.vmap and the like"


@dataclass
class Work:
    """What the driver has to do.

    Attributes:
        unit_of: the unit of every layer to be solved, by the layer's id.
        norms: normalisations to be calibrated, by their id.
        skipped: reports on what is left alone, by the name of the layer or module.
        head: name of the classifier, or None if it is not solved.
        uses_labels: whether any code does.
        warnings: found while planning.
    """

    unit_of: dict[int, LayerUnit] = field(default_factory=dict)
    norms: dict[int, Norm] = field(default_factory=dict)
    skipped: dict[str, LayerReport] = field(default_factory=dict)
    head: str | None = None
    uses_labels: bool = False
    warnings: list[str] = field(default_factory=list)


def find_head(survey: Survey, options: Options) -> Layer | None:
    """The classifier: the layer named by ``head=``, or the one whose last call was the last.

    None where a product outside of all layers comes after that.

    Raises:
        ModelError: there is no such layer, or it never ran.
    """
    if options.head is None:
        return None if survey.final_parameter is not None else survey.last
    for layer in survey.layers:
        if layer.name == options.head:
            return layer
    if options.head in survey.names.values():
        raise ModelError(
            f"head={options.head!r} is not a layer that ran and can be solved; those are "
            f"{_names(survey.layers)}"
        )
    raise ModelError(
        f"head={options.head!r} names no module; the layers are {_names(survey.layers)}"
    )


def _names(layers: list[Layer]) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names if len(names) <= 8 else ["...", *names[-8:]])


def make_work(survey: Survey, options: Options, classes: Classes | str) -> Work:
    """Units, norms and everything that is left alone.

    Args:
        survey: of the model.
        options: checked arguments.
        classes: in the data, or why there are none.

    Raises:
        LabelError: a code needs labels and there are none, or they exceed the head's outputs.
        ModelError: see :func:`find_head`; or the head is all there is to solve and cannot be.
    """
    work = Work()
    head = find_head(survey, options)
    if head is None and survey.final_parameter is not None:
        text = (
            "the classifier seems to be no layer, for a product with the parameter "
            f"{survey.final_parameter} follows the last one, {_names(survey.layers[-1:])}"
        )
        if options.head_only:
            raise ModelError(f"{text}; name the layer that is meant with head=")
        if isinstance(classes, Classes):
            work.warnings.append(f"{text}: no head is solved; head= names one")
    groups = _by_weight(survey, options, head, work)
    work.head = _solvable_head(head, options, work)
    taken: dict[tuple[object, ...], int] = {}
    for layers in groups:
        unit = _unit(layers, survey, options, head, classes, taken, work)
        for layer in layers:
            work.unit_of[id(layer)] = unit
    batch_norms = [norm.name for norm in survey.norms if uses_batch_statistics(norm.module)]
    if batch_norms:
        work.warnings.append(
            "normalisation by the statistics of the microbatch, so that the weights depend on "
            f"microbatch=: {', '.join(batch_norms)}"
        )
    for norm in survey.norms:
        reason = reason_to_skip(norm.module) or _unwanted(norm, options)
        if reason is None and id(norm) in survey.hidden:
            reason = _HIDDEN
        if reason is None:
            work.norms[id(norm)] = norm
        else:
            work.skipped[norm.name] = LayerReport(norm.name, norm.kind, "skipped", reason)
    _plan_gains(survey, options, work)
    _report_rest(survey, work)
    return work


def _plan_gains(survey: Survey, options: Options, work: Work) -> None:
    """Which normalizations get a scale: those that end branches whose last layer is solved."""
    gain = options.gain_of_branches(len(survey.branches))
    solved = {layer.module for layer in survey.layers if id(layer) in work.unit_of}
    ends = {branch.norm for branch in survey.branches if branch.layer in solved}
    holders = parameter_holders(survey.names)
    norms = [norm for norm in work.norms.values() if norm.module in ends]
    for norm in norms:
        weight = norm.module._parameters.get("weight")  # else none, or computed from others
        # Another holder would get the gain, too, and need not end a branch.
        if weight is not None and len(holders[memory_key(weight)]) == 1:
            norm.gain = gain
    asked = options.branch_gain not in ("none", options.preset.branch_gain)
    if asked and all(norm.gain is None for norm in norms):
        work.warnings.append(
            "branch_gain has no effect: no batch normalization that is calibrated and has a scale "
            "of its own ends a residual branch whose last layer is solved"
        )


def _unwanted(norm: Norm, options: Options) -> str | None:
    """Why the arguments leave a normalisation out."""
    if options.head_only:
        return "not the head"
    if not options.calibrate_norm:
        return "not asked for: calibrate_norm is false"
    return None if options.selects(norm.name) else "not selected by include and exclude"


def _solvable_head(head: Layer | None, options: Options, work: Work) -> str | None:
    """Name of the head, or None, with a warning, if it is left alone although it was selected."""
    if head is None or head.name not in work.skipped:
        return None if head is None else head.name
    text = f"the head {head.name or '(model)'} is not solved: {work.skipped[head.name].reason}"
    if options.head_only:
        raise ModelError(f"{text}; name another layer with head=, or untie or unfreeze this one")
    if options.selects(head.name):
        work.warnings.append(text)
    return None


def _by_weight(
    survey: Survey, options: Options, head: Layer | None, work: Work
) -> list[list[Layer]]:
    """Layers that may be solved, grouped by the weight they share, in order of the first call."""
    holders = parameter_holders(survey.names)
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in survey.layers:
        reason = _reason(layer, survey, options, head)
        if reason is None:
            key = (*map(memory_key, layer.parameters("weight")), layer.slot)
            groups.setdefault(key, []).append(layer)
        else:
            work.skipped[layer.name] = LayerReport(layer.name, layer.kind, "skipped", reason)
    chosen: list[list[Layer]] = []
    for layers in groups.values():
        reason = _shared_reason(layers, survey, holders)
        if reason is None:
            chosen.append(layers)
            continue
        for layer in layers:
            work.skipped[layer.name] = LayerReport(layer.name, layer.kind, "skipped", reason)
    return chosen


def _reason(layer: Layer, survey: Survey, options: Options, head: Layer | None) -> str | None:
    """Why a layer that ran is not solved."""
    if options.head_only and layer is not head:
        return "not the head"
    if not options.selects(layer.name):
        return "not selected by include and exclude"
    if id(layer) in survey.hidden:
        return _HIDDEN
    return layer.reason_to_keep()


def _check_layout(layer: Layer, survey: Survey, options: Options) -> None:
    """Ask already now whether rows can be assigned to samples.

    Larger batches may happen to have as many samples as time steps, and get by.

    Raises:
        RowLayoutError: they cannot.
    """
    if options.row_to_sample is None:
        x = torch.empty(survey.shapes[id(layer)], device="meta")
        features = 1 if layer.geometry is None else x.ndim - 1
        assign_rows(layer.name, x, survey.samples, features=features)


def _shared_reason(
    layers: list[Layer], survey: Survey, holders: dict[Hashable, list[nn.Module]]
) -> str | None:
    """Why a weight that several modules hold is not solved."""
    shapes = {
        (type(layer), tuple(layer.get_weight().shape), tuple(p.stride() for p in parameters))
        for layer in layers
        for parameters in (layer.parameters("weight"),)
    }
    if len(shapes) > 1:
        return "its weight is tied to a layer that uses it in another shape"
    owners = {layer.owner for layer in layers}
    for owner in tuple(owners):
        if parametrize.is_parametrized(owner):
            # The tensors behind a parametrised weight lie in modules of its own.
            owners.update(owner.parametrizations.modules())  # type: ignore[union-attr]
    for parameter in layers[0].parameters("weight"):
        for module in holders.get(memory_key(parameter), []):
            if module not in owners:
                kind = type(module).__name__
                return f"its weight is tied to {survey.names[module]} ({kind}), which is not solved"
    return None


def _unit(
    layers: list[Layer],
    survey: Survey,
    options: Options,
    head: Layer | None,
    classes: Classes | str,
    taken: dict[tuple[object, ...], int],
    work: Work,
) -> LayerUnit:
    first = layers[0]
    weight = first.get_weight()
    for layer in layers:
        _check_layout(layer, survey, options)
    is_head = head is not None and head in layers
    code = (
        _head_code(options, first, survey, classes, work)
        if is_head
        else _hidden_code(options, first, survey, classes, work)
    )
    outputs = weight.shape[1]
    all_outputs = outputs * weight.shape[0]
    if code.needs_labels:
        if isinstance(classes, str):
            raise LabelError(
                f"code {code.name!r} of layer {first.name} needs labels and {classes}; pass "
                "(inputs, labels)"
            )
        _check_classes(classes.count, code, first, all_outputs)
        work.uses_labels = True
    solves_head = is_head and isinstance(code, OneHot)
    skip = 0
    if options.siblings == "split" and not solves_head:
        key = (survey.inputs[id(first)], code.name)
        skip = taken.get(key, 0)
        taken[key] = skip + outputs
    count = 0 if isinstance(classes, str) else classes.count
    plan = Plan(
        code=code,
        lam=options.lam(first.name),
        patches=options.patches,
        seed=options.seed,
        skip=skip,
        head=solves_head,
        classes=count if code.needs_labels else 0,
        rescale=options.rescale == "variance" and not is_head,
    )
    calls = sum(survey.calls[module] for module in {layer.module for layer in layers})
    backend = choose(options.backend, weight.device)
    unit = LayerUnit(layers, calls, plan, backend, options.row_to_sample)
    if solves_head and not isinstance(classes, str) and classes.present < all_outputs:
        rest = "never win" if unit.fits_likelihood else "are zero"
        work.warnings.append(
            f"fewer classes in the data than outputs of the head: {classes.present} of "
            f"{all_outputs}; the other outputs of {first.name or '(model)'} {rest}"
        )
    return unit


def _check_classes(count: int, code: Code, layer: Layer, outputs: int) -> None:
    if isinstance(code, OneHot) and count > outputs:
        raise LabelError(
            f"labels go up to {count - 1}, but layer {layer.name} has only {outputs} outputs for "
            "one-hot codes"
        )
    if count > MAX_CLASSES:
        raise LabelError(
            f"labels go up to {count - 1}, more than code {code.name!r} can count; number the "
            "classes from 0"
        )


def _hidden_code(
    options: Options, layer: Layer, survey: Survey, classes: Classes | str, work: Work
) -> Code:
    """The code that was asked for, else that of the preset."""
    code = options.code(layer.name)
    if code is not None:
        return code
    count = 0 if isinstance(classes, str) else classes.count
    few = count <= _MOST_DISCRIMINANT_CLASSES
    first, rectified = layer is survey.layers[0], layer.module in survey.rectified
    code = options.preset.hidden(first=first, labelled=count > 0 and few, rectified=rectified)
    if not few and options.preset.supervised and not first:
        text = (
            f"labels go up to {count - 1}: with more than {_MOST_DISCRIMINANT_CLASSES:,} classes "
            f"preset {options.preset.name!r} uses no labels in hidden layers; number the classes "
            "from 0 without gaps, or ask for code='discriminant'"
        )
        if text not in work.warnings:
            work.warnings.append(text)
    return code


def _head_code(
    options: Options, head: Layer, survey: Survey, classes: Classes | str, work: Work
) -> Code:
    """The head's code: as asked; else the preset's if the labels allow it, else a hidden one."""
    if options.head_code is not None:
        return options.head_code
    weight = head.get_weight()
    outputs = weight.shape[0] * weight.shape[1]
    if isinstance(classes, str):
        cause = classes
    elif outputs >= classes.count:
        return options.preset.labelled_head
    else:
        cause = f"{classes.count} classes, {outputs} outputs"
    code = _hidden_code(options, head, survey, classes, work)
    work.warnings.append(
        f"the head {head.name or '(model)'} is solved with code {code.name!r} and not one-hot: "
        f"{cause}"
    )
    return code


def _report_rest(survey: Survey, work: Work) -> None:
    """Modules that hold parameters and of which nothing has been said yet."""
    ran = set(survey.calls)
    for module, points in survey.points.items():
        if module in ran:
            continue
        for point in points:
            reason = "its forward was not called"
            report = LayerReport(point.name, point.kind, "skipped", reason)
            work.skipped.setdefault(point.name, report)
    spoken = set(survey.points)
    for points in survey.points.values():
        spoken.update(point.owner for point in points if isinstance(point, Layer))
    for module in tuple(spoken):
        if parametrize.is_parametrized(module):
            spoken.update(module.parametrizations.modules())  # type: ignore[union-attr]
    for module, name in survey.names.items():
        kind = type(module).__name__
        reason = reason_to_skip(module)
        if reason is None and any(p is not None for p in module._parameters.values()):
            reason = f"no layer type is registered for {kind}; its parameters are kept"
        if reason is None or module in spoken:
            continue
        work.skipped.setdefault(name, LayerReport(name, kind, "skipped", reason))
