"""From a survey and the options to units: what is solved, as what, and what is left alone."""

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
from sylvinit.execution.units import LayerUnit
from sylvinit.model import Layer
from sylvinit.model.batch_norm import Norm, reason_to_skip
from sylvinit.model.modules import memory_key, parameter_holders
from sylvinit.moments.rows import assign_rows
from sylvinit.options import Options
from sylvinit.report import LayerReport
from sylvinit.solve.task import LayerTask

# Sums are kept for every class up to the largest label, so labels that are hashes must not get by.
MAX_CLASSES = 2**20
# A preset uses class means in every layer only where they are few beside the moments.
_MOST_DISCRIMINANT_CLASSES = 2**12
_HIDDEN = "its input cannot be looked at inside of torch.vmap and the like"


@dataclass
class Worklist:
    """What is solved and calibrated, and what is not.

    Attributes:
        unit_of: the unit of every layer to be solved, by the layer's id.
        norms: normalizations to be calibrated, by their id.
        skipped: reports on what is left alone, by the name of the layer or module.
        head: name of the classifier, or None if it is not solved.
        uses_labels: whether any code does.
        warnings: for the user.
    """

    unit_of: dict[int, LayerUnit] = field(default_factory=dict)
    norms: dict[int, Norm] = field(default_factory=dict)
    skipped: dict[str, LayerReport] = field(default_factory=dict)
    head: str | None = None
    uses_labels: bool = False
    warnings: list[str] = field(default_factory=list)

    def skip(self, item: Layer | Norm, reason: str) -> None:
        """Leave a layer or normalization alone."""
        self.skipped[item.name] = LayerReport(item.name, item.kind, "skipped", reason)


def make_worklist(survey: Survey, options: Options, classes: Classes | str) -> Worklist:
    """Units, normalizations and everything that is left alone.

    Args:
        survey: of the model.
        options: checked arguments.
        classes: in the data, or why there are none.

    Raises:
        LabelError: a code needs labels and there are none, or they exceed the head's outputs.
        ModelError: the head that is asked for never ran or is no layer, or the head is all there is
            to solve and cannot be.
    """
    worklist = Worklist()
    head = _find_head(survey, options, classes, worklist)
    groups = _by_weight(survey, options, head, worklist)
    worklist.head = _solvable_head(head, options, worklist)
    taken: dict[tuple[object, ...], int] = {}
    for layers in groups:
        unit = _unit(layers, survey, options, head, classes, taken, worklist)
        worklist.unit_of.update((id(layer), unit) for layer in layers)
    _select_norms(survey, options, worklist)
    _give_gains(survey, options, worklist)
    _report_rest(survey, worklist)
    return worklist


def _find_head(
    survey: Survey, options: Options, classes: Classes | str, worklist: Worklist
) -> Layer | None:
    """The classifier: the layer named by ``head=``, or the one whose last call was the last.

    None where a product outside of all layers comes after that.
    """
    if options.head is not None:
        for layer in survey.layers:
            if layer.name == options.head:
                return layer
        known = options.head in survey.names.values()
        wrong = "is not a layer that ran and can be solved" if known else "names no module"
        raise ModelError(f"head={options.head!r} {wrong}; the layers are {_names(survey.layers)}")
    if survey.final_parameter is None:
        return survey.last
    text = (
        "the classifier seems to be no layer, for a product with the parameter "
        f"{survey.final_parameter} follows the last one, {_names(survey.layers[-1:])}"
    )
    if options.head_only:
        raise ModelError(f"{text}; name the layer that is meant with head=")
    if isinstance(classes, Classes):
        worklist.warnings.append(f"{text}: no head is solved; head= names one")
    return None


def _names(layers: list[Layer]) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names if len(names) <= 8 else ["...", *names[-8:]])


def _solvable_head(head: Layer | None, options: Options, worklist: Worklist) -> str | None:
    """Name of the head, or None, with a warning, if it is left alone although it was selected."""
    if head is None or head.name not in worklist.skipped:
        return None if head is None else head.name
    reason = worklist.skipped[head.name].reason
    text = f"the head {head.name or '(model)'} is not solved: {reason}"
    if options.head_only:
        raise ModelError(f"{text}; name another layer with head=, or untie or unfreeze this one")
    if options.selects(head.name):
        worklist.warnings.append(text)
    return None


def _select_norms(survey: Survey, options: Options, worklist: Worklist) -> None:
    without = [norm.name for norm in survey.norms if norm.module.running_mean is None]
    if without:
        worklist.warnings.append(
            "normalization by the statistics of the microbatch, so that the weights depend on "
            f"microbatch=: {', '.join(without)}"
        )
    for norm in survey.norms:
        reason = reason_to_skip(norm.module)
        if reason is None and options.head_only:
            reason = "not the head"
        elif reason is None and not options.calibrate_norm:
            reason = "not asked for: calibrate_norm is false"
        elif reason is None and not options.selects(norm.name):
            reason = "not selected by include and exclude"
        elif reason is None and id(norm) in survey.hidden:
            reason = _HIDDEN
        if reason is None:
            worklist.norms[id(norm)] = norm
        else:
            worklist.skip(norm, reason)


def _give_gains(survey: Survey, options: Options, worklist: Worklist) -> None:
    """Which normalizations get a scale: those that end branches whose last layer is solved."""
    gain = options.gain_of_branches(len(survey.branches))
    solved = {layer.module for layer in survey.layers if id(layer) in worklist.unit_of}
    ends = {branch.norm for branch in survey.branches if branch.layer in solved}
    holders = parameter_holders(survey.names)
    norms = [norm for norm in worklist.norms.values() if norm.module in ends]
    for norm in norms:
        weight = norm.module._parameters.get("weight")  # else none, or computed from others
        # Another holder would get the gain, too, and need not end a branch.
        if weight is not None and len(holders[memory_key(weight)]) == 1:
            norm.gain = gain
    asked = options.branch_gain not in ("none", options.preset.branch_gain)
    if asked and all(norm.gain is None for norm in norms):
        worklist.warnings.append(
            "branch_gain has no effect: no batch normalization that is calibrated and has a scale "
            "of its own ends a residual branch whose last layer is solved"
        )


def _by_weight(
    survey: Survey, options: Options, head: Layer | None, worklist: Worklist
) -> list[list[Layer]]:
    """Layers that may be solved, grouped by the weight they share, in order of the first call."""
    holders = parameter_holders(survey.names)
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in survey.layers:
        if options.head_only and layer is not head:
            reason = "not the head"
        elif not options.selects(layer.name):
            reason = "not selected by include and exclude"
        elif id(layer) in survey.hidden:
            reason = _HIDDEN
        else:
            reason = layer.reason_to_keep()
        if reason is None:
            key = (*map(memory_key, layer.parameters("weight")), layer.slot)
            groups.setdefault(key, []).append(layer)
        else:
            worklist.skip(layer, reason)
    chosen: list[list[Layer]] = []
    for layers in groups.values():
        reason = _reason_of_sharing(layers, survey, holders)
        if reason is None:
            chosen.append(layers)
            continue
        for layer in layers:
            worklist.skip(layer, reason)
    return chosen


def _reason_of_sharing(
    layers: list[Layer], survey: Survey, holders: dict[Hashable, list[nn.Module]]
) -> str | None:
    """Why a weight that several modules hold is not solved."""
    shapes = {
        (type(layer), layer.get_weight().shape, *(p.stride() for p in layer.parameters("weight")))
        for layer in layers
    }
    if len(shapes) > 1:
        return "its weight is tied to a layer that uses it in another shape"
    owners = _with_parametrizations({layer.owner for layer in layers})
    for parameter in layers[0].parameters("weight"):
        for module in holders.get(memory_key(parameter), []):
            if module not in owners:
                kind = type(module).__name__
                return f"its weight is tied to {survey.names[module]} ({kind}), which is not solved"
    return None


def _with_parametrizations(modules: set[nn.Module]) -> set[nn.Module]:
    """The modules, and those that hold the tensors behind their parametrized weights."""
    found = set(modules)
    for module in modules:
        if parametrize.is_parametrized(module):
            found.update(module.parametrizations.modules())  # type: ignore[union-attr]
    return found


def _unit(
    layers: list[Layer],
    survey: Survey,
    options: Options,
    head: Layer | None,
    classes: Classes | str,
    taken: dict[tuple[object, ...], int],
    worklist: Worklist,
) -> LayerUnit:
    first = layers[0]
    weight = first.get_weight()
    outputs = weight.shape[1]
    all_outputs = outputs * weight.shape[0]
    if options.row_to_sample is None:
        for layer in layers:
            # Already now: larger batches may happen to have as many samples as time steps.
            x = torch.empty(survey.shapes[id(layer)], device="meta")
            features = 1 if layer.geometry is None else x.ndim - 1
            assign_rows(layer.name, x, survey.samples, features=features)
    is_head = head is not None and head in layers
    if is_head:
        code = _head_code(first, all_outputs, survey, options, classes, worklist)
    else:
        code = _hidden_code(first, survey, options, classes, worklist)
    if code.needs_labels:
        _check_classes(classes, code, first, all_outputs)
        worklist.uses_labels = True
    solves_head = is_head and isinstance(code, OneHot)
    skip = 0
    if options.siblings == "split" and not solves_head:
        key = (survey.inputs[id(first)], code.name)
        skip = taken.get(key, 0)
        taken[key] = skip + outputs
    count = 0 if isinstance(classes, str) else classes.count
    task = LayerTask(
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
    unit = LayerUnit(layers, calls, task, backend, options.row_to_sample)
    if solves_head and not isinstance(classes, str) and classes.present < all_outputs:
        rest = "never win" if unit.fits_likelihood else "are zero"
        worklist.warnings.append(
            f"fewer classes in the data than outputs of the head: {classes.present} of "
            f"{all_outputs}; the other outputs of {first.name or '(model)'} {rest}"
        )
    return unit


def _check_classes(classes: Classes | str, code: Code, layer: Layer, outputs: int) -> None:
    if isinstance(classes, str):
        raise LabelError(
            f"code {code.name!r} of layer {layer.name} needs labels and {classes}; pass "
            "(inputs, labels)"
        )
    if isinstance(code, OneHot) and classes.count > outputs:
        raise LabelError(
            f"labels go up to {classes.count - 1}, but layer {layer.name} has only {outputs} "
            "outputs for one-hot codes"
        )
    if classes.count > MAX_CLASSES:
        raise LabelError(
            f"labels go up to {classes.count - 1}, more than code {code.name!r} can count; number "
            "the classes from 0"
        )


def _hidden_code(
    layer: Layer, survey: Survey, options: Options, classes: Classes | str, worklist: Worklist
) -> Code:
    """The code that was asked for, else that of the preset."""
    code = options.code(layer.name)
    if code is not None:
        return code
    preset, first = options.preset, layer is survey.layers[0]
    count = 0 if isinstance(classes, str) else classes.count
    few = count <= _MOST_DISCRIMINANT_CLASSES
    if not few and preset.supervised and not first:
        text = (
            f"labels go up to {count - 1}: with more than {_MOST_DISCRIMINANT_CLASSES:,} classes "
            f"preset {preset.name!r} uses no labels in hidden layers; number the classes "
            "from 0 without gaps, or ask for code='discriminant'"
        )
        if text not in worklist.warnings:
            worklist.warnings.append(text)
    rectified = layer.module in survey.rectified
    return preset.hidden(first=first, labelled=count > 0 and few, rectified=rectified)


def _head_code(
    head: Layer,
    outputs: int,
    survey: Survey,
    options: Options,
    classes: Classes | str,
    worklist: Worklist,
) -> Code:
    """The head's code: as asked; else the preset's if the labels allow it, else a hidden one."""
    if options.head_code is not None:
        return options.head_code
    if isinstance(classes, str):
        cause = classes
    elif outputs >= classes.count:
        return options.preset.labelled_head
    else:
        cause = f"{classes.count} classes, {outputs} outputs"
    code = _hidden_code(head, survey, options, classes, worklist)
    worklist.warnings.append(
        f"the head {head.name or '(model)'} is solved with code {code.name!r} and not one-hot: "
        f"{cause}"
    )
    return code


def _report_rest(survey: Survey, worklist: Worklist) -> None:
    """Modules that hold parameters and of which nothing has been said yet."""
    said: set[nn.Module] = set(survey.points)
    for module, points in survey.points.items():
        said.update(point.owner for point in points if isinstance(point, Layer))
        for point in points:
            if module not in survey.calls and point.name not in worklist.skipped:
                worklist.skip(point, "its forward was not called")
    said = _with_parametrizations(said)
    for module, name in survey.names.items():
        kind = type(module).__name__
        reason = reason_to_skip(module)
        if reason is None and any(p is not None for p in module._parameters.values()):
            reason = f"no layer type is registered for {kind}; its parameters are kept"
        if reason is not None and module not in said:
            worklist.skipped.setdefault(name, LayerReport(name, kind, "skipped", reason))
