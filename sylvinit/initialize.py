"""The public drivers."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn
from tqdm.auto import tqdm

from sylvinit.codes import Code
from sylvinit.errors import ModelError, SylvinitWarning
from sylvinit.execution.batches import (
    Batch,
    Classes,
    call_model,
    find_classes,
    label_problem,
    read_batches,
)
from sylvinit.execution.guard import CallerModes, ModelGuard
from sylvinit.execution.schedule import solve_in_order
from sylvinit.execution.survey import Survey, find_points, materialize, run_survey
from sylvinit.execution.worklist import Worklist, make_worklist
from sylvinit.model.modules import check_module, device_of
from sylvinit.moments.rows import RowToSample
from sylvinit.options import ForwardFn, Options, PresetName
from sylvinit.report import LayerReport, Report

_log = logging.getLogger(__name__)

MISSED = "it did not run on the two survey samples, which decide what is solved"

# What each kind of weakness that a layer remarks on means, or what can be done about it.
_ADVICE = {
    "dead inputs": "features constant in these data: borders, units that are never active",
    "rank < d_out": "on these data the outputs depend on each other linearly, whatever the weights",
    "fewer rows than features": "more samples help, or more patches= where a sample has several",
    "features of unlike scale": "standardize them, or take head_code='onehot'",
    "features too small for lam": "scale them, or take a larger lam or head_code='logistic'",
    "near-singular equation": "the solution of least norm was taken; nothing need be done",
}


# Arguments that initialize_head_ does not have.
_HEAD_ALONE = {
    "preset": "paper",
    "code": None,
    "include": None,
    "exclude": None,
    "storage": "memory",
    "siblings": "split",
    "calibrate_norm": False,
    "rescale": None,
    "branch_gain": None,
}


def initialize_(
    model: nn.Module,
    data: Any,
    *,
    preset: PresetName = "best",
    code: str | Code | Mapping[str, str | Code] | None = None,
    head: str | None = None,
    head_code: str | Code = "auto",
    lam: float | Mapping[str, float] | None = None,
    patches: int | Literal["all"] | None = None,
    include: str | list[str] | tuple[str, ...] | None = None,
    exclude: str | list[str] | tuple[str, ...] | None = None,
    microbatch: int | None = None,
    max_samples: int | None = None,
    storage: Literal["memory", "recompute"] = "memory",
    siblings: Literal["split", "same"] = "split",
    calibrate_norm: bool = True,
    rescale: Literal["variance", "none"] | None = None,
    branch_gain: float | Literal["depth", "none"] | None = None,
    seed: int = 0,
    backend: str = "auto",
    progress: bool | None = None,
    dry_run: bool = False,
    forward_fn: ForwardFn | None = None,
    row_to_sample: RowToSample | None = None,
) -> Report:
    """Initialize a network from its data, in place, layer by layer in execution order.

    The weight W of each layer solves A W + W B = Q with A = E[s s^T], B = lam E[x x^T] and
    Q = (1 + lam) E[s x^T]. Here x are the patches of the layer's own input under the layers
    already solved, and s their latent code ("Data-driven Weight Initialization with Sylvester
    Solvers", eq. 2). No gradients are taken; the data pass through the network once.

    Args:
        model: any module. Wrappers (torch.compile, DataParallel) are looked through.
        data: a tensor, a 2-tuple (inputs, labels), a mapping of keyword arguments, or an iterable
            of such batches, read once. Labels are int64 (samples,). Mappings and named tuples hold
            them under "labels", "label", "targets", "target" or "y"; other targets in a mapping
            (those of a language model) are used only by a code that needs them. An
            "attention_mask" in a mapping drops padding tokens. The first two samples decide which
            layers are solved and how many calls of each are waited for.
        preset: the values of code, head_code, lam, patches, rescale and branch_gain where they are
            not given.
            "best": PCA codes, one-hot for the head, lam 10, 10 patches, rows scaled to unit output
            variance. "paper": the same with rows as they solve the equation; without normalization
            their outputs grow from layer to layer. "frozen": for deep networks whose hidden layers
            will not be trained (the highest accuracy before training of a ResNet-20 on CIFAR-10).
            As "best" with 30 patches, entries in pairs of opposite sign where a rectifier follows,
            and discriminant directions of the samples' mean patches before principal components
            (components alone in the first layer, without labels, and above 4,096 classes).
        code: "pca", "lda", "ica", "kmeans", "onehot", "correlated", "discriminant", a
            :class:`sylvinit.Code`, or a mapping from name patterns to those (the first match
            decides; layers without one use the preset's). None: the preset's.
        head: name of the classifier. None: the layer whose last call is the last of all, or no
            layer if a product with other parameters follows it.
        head_code: code of the head. "auto" is one-hot if there are labels and the head has an
            output for every class, else ``code``. "logistic" is for features that come from
            elsewhere, see :func:`initialize_head_`; on features made here, from the same samples,
            its scores are so large that training can fail.
        lam: weight of the encoding loss, positive, or a mapping from name patterns. None: 10.
        patches: random patches (for Linear layers: rows) per sample and layer, or "all". None: the
            preset's, 10 ("frozen": 30).
        include, exclude: fnmatch patterns over the names of layers and normalizations.
        microbatch: samples that pass through the network together. None: the batches of the
            iterable; data in one piece are split into about 3 MiB of inputs (16 to 256 samples, up
            to 2,048 vectors).
        max_samples: use at most so many samples.
        storage: "memory" holds the live activations of all samples. "recompute" holds only the
            inputs and runs the network again for each layer. It is also for models whose forward
            keeps tensors elsewhere than in attributes of its modules: in a global variable, a
            closure, a list within a list.
        siblings: layers with the same input (q, k, v; branches) take successive components
            ("split") or the same ones ("same").
        calibrate_norm: set running statistics of batch normalizations to those of the whole data.
        rescale: "variance" scales the rows of hidden layers to unit output variance and chooses
            biases that center the outputs. Networks without normalization need it; in others it
            helps training, whose steps then change all filters alike. "none" leaves rows as they
            solve the equation. None: the preset's.
        branch_gain: scale of the batch normalization that ends a residual branch, before its
            output is added to a shortcut: a number, "depth" for L^(-1/2) with L such sums in the
            network, or "none" to leave it. It is written where the normalization is calibrated and
            the layer before it is solved. None: the preset's, "depth" for "frozen" and "none" for
            the others. ("depth" may help trainings of ResNets at a high rate, and harms short ones
            at a low rate.)
        seed: of patch positions and codes. Global random states are neither used nor changed.
        backend: "auto", "cpu", "torch" or "cuda".
        progress: whether to show a bar. None: on terminals.
        dry_run: report what would be done and change nothing. Only lazy modules, and those that the
            first forward makes, are materialized.
        forward_fn: (model, inputs) -> anything, if the model is not called as model(inputs).
        row_to_sample: for layers whose input is not batch first: (layer name, input, samples) ->
            the sample of every entry of the input's leading axes, or -1 for entries to drop. It
            replaces the padding mask, too. None from it means the usual rule. (Without it
            time-first inputs are an error, but not if time and batch are flattened into one axis:
            nobody can see their order.)

    Returns:
        A :class:`sylvinit.Report`; print it.

    Raises:
        OptionError, OptionTypeError: an argument is out of its domain or of the wrong type.
        DataError, LabelError: the data are empty, not finite or inconsistent; labels are missing.
        ModelError: meta device, mixed devices, no layer that can be solved, no such head.
        RowLayoutError: rows of a layer cannot be assigned to samples.
        NonFiniteError: NaN or Inf appeared in an activation.
        SolverError: an equation could not be solved.
        Exception: whatever the model's forward or the data raise. In every case, Ctrl-C included,
            the model is left bit for bit as it was, with the attributes that a forward changes.
            (Lazy modules stay materialized. What a forward itself writes into tensors that are not
            buffers, and into containers within containers, is not seen.)
    """
    options = Options.checked(locals())
    return _initialize(model, data, options)


def initialize_head_(
    model: nn.Module,
    data: Any,
    *,
    head: str | None = None,
    lam: float = 10.0,
    head_code: str | Code = "onehot",
    patches: int | Literal["all"] = 10,
    microbatch: int | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    backend: str = "auto",
    progress: bool | None = None,
    dry_run: bool = False,
    forward_fn: ForwardFn | None = None,
    row_to_sample: RowToSample | None = None,
) -> Report:
    """Solve only the classifier, from the features that the rest of the network already provides.

    ``head_code="logistic"`` is the more accurate one where features come from elsewhere: linear
    discriminant analysis with the ridge of least leave-one-out error, and a few steps of logistic
    regression from there, in which lam has no part. It wants features of like scale (a network's
    are; standardize raw tables). The one-hot head wants variances that, times lam, are not small
    beside the frequencies of the classes: scale embeddings of norm 1 by sqrt(d).

    Everything else is left alone, running statistics included. Arguments, result and errors are
    those of :func:`initialize_`; ``data`` needs labels unless ``head_code`` does without, and a
    head that cannot be solved (frozen, tied to an embedding) is a ``ModelError``.
    """
    options = Options.checked({**_HEAD_ALONE, **locals()}, head_only=True)
    return _initialize(model, data, options)


def _initialize(model: nn.Module, data: Any, options: Options) -> Report:
    begin = time.perf_counter()
    model = check_module(model)
    caller = CallerModes.present()
    device = device_of(model)
    with ModelGuard(model) as guard:
        batches = read_batches(data, microbatch=options.microbatch, max_samples=options.max_samples)

        def call(batch: Batch) -> Any:
            return call_model(model, batch, device, options.forward_fn)

        if materialize(model, batches[0], call, caller):
            guard.restore_forward()
            guard.remember()
        survey = _survey(model, batches[0], call, caller, guard, options)
        if not survey.layers:
            raise ModelError(
                "the forward pass reached no layer that can be solved (Linear, Conv, "
                "MultiheadAttention, ...); register its type with sylvinit.register_layer"
            )
        classes = _classes(batches, options)
        worklist = make_worklist(survey, options, classes)
        if options.dry_run:
            reports = _planned(survey, worklist)
        else:
            units = {id(unit): unit for unit in worklist.unit_of.values()}
            total = len(units) + len(worklist.norms)
            hidden = None if options.progress is None else not options.progress
            with tqdm(total=total, desc="sylvinit", unit="layer", disable=hidden) as bar:

                def done(report: LayerReport) -> None:
                    bar.update()
                    bar.set_postfix_str(report.name)
                    _log.debug("%s: %s %s", report.name, report.status, report.reason)

                reports = solve_in_order(
                    survey,
                    worklist,
                    batches,
                    call,
                    caller,
                    guard,
                    options.storage == "recompute",
                    done,
                )
        report = _report(survey, worklist, reports, batches, options)
        report.seconds = time.perf_counter() - begin
        _warn(report, worklist, batches)  # in the guard, for users who turn warnings into errors
    _log.info("initialized %d layers in %.2f s", len(report.solved), report.seconds)
    return report


def _survey(
    model: nn.Module,
    batch: Batch,
    call: Callable[[Batch], Any],
    caller: CallerModes,
    guard: ModelGuard,
    options: Options,
) -> Survey:
    """What runs on the first samples, including modules that their forward makes."""
    survey = find_points(model)
    for _ in range(2):
        run_survey(survey, batch, call, caller)
        guard.restore_forward()  # a mask that was cached for two samples would not fit the others
        if not guard.remember():
            break
        survey = find_points(model)
    else:  # makes new ones in every forward
        run_survey(survey, batch, call, caller)
        guard.restore_forward()
    options.check_patterns(*survey.point_names())
    return survey


def _classes(batches: list[Batch], options: Options) -> Classes | str:
    """The classes in the data, or why there are none that a code could use.

    Labels that nothing asks for need not be class labels; they are ignored. So are targets of other
    kinds that were found by name, unless a code was asked for that needs labels.
    """
    codes = [*options.code.values(), options.head_code]
    needed = any(code is not None and code.needs_labels for code in codes)
    wanted = needed or options.head_code is None or options.preset.supervised
    if batches[0].labels is None:
        return "data has no labels"
    if not wanted:
        return "no code uses labels"
    problem = label_problem(batches)
    if problem is not None and batches[0].named and not needed:
        return problem
    return find_classes(batches)


def _planned(survey: Survey, worklist: Worklist) -> dict[int, LayerReport]:
    reports: dict[int, LayerReport] = {}
    for unit in {id(unit): unit for unit in worklist.unit_of.values()}.values():
        groups, outputs, features = unit.layers[0].get_weight().shape
        report = LayerReport(unit.name, unit.layers[0].kind, "planned", code=unit.task.code.name)
        report.lam, report.d_in, report.d_out, report.groups = (
            unit.lam,
            features,
            outputs,
            groups,
        )
        reports[id(unit)] = report
    for norm in worklist.norms.values():
        reports[id(norm)] = LayerReport(norm.name, norm.kind, "planned", notes=norm.notes())
    return reports


def _report(
    survey: Survey,
    worklist: Worklist,
    reports: dict[int, LayerReport],
    batches: list[Batch],
    options: Options,
) -> Report:
    """Reports in execution order, tied layers beside their first, everything else last."""
    report = Report(samples=sum(batch.size for batch in batches), head=worklist.head)
    skipped = dict(worklist.skipped)
    missed = survey.most_calls.keys() - survey.calls.keys()
    late = [point.name for module in missed for point in survey.points[module]]
    late = sorted(name for name in late if options.selects(name) and not options.head_only)
    for name in late:
        skipped[name].reason = MISSED
    if late:
        worklist.warnings.append(f"skipped, for {MISSED}: {', '.join(late)}")
    told: set[int] = set()
    for point in survey.order:
        unit = worklist.unit_of.get(id(point))
        key = id(unit) if unit is not None else id(point)
        if key in reports and key not in told:
            told.add(key)
            report.layers.append(reports[key])
            _note_more_calls(reports[key], point.module, survey)
        elif unit is not None and key in told:
            text = f"shares its weight with {unit.name}"
            report.layers.append(LayerReport(point.name, point.kind, "skipped", text))
        elif point.name in skipped:
            report.layers.append(skipped.pop(point.name))
        else:
            text = "reached by the first samples alone but by no whole microbatch"
            report.layers.append(LayerReport(point.name, point.kind, "skipped", text))
    report.layers.extend(skipped.values())
    report.settings = options.settings()
    return report


def _note_more_calls(report: LayerReport, module: nn.Module, survey: Survey) -> None:
    """Only the first call is waited for where the first samples made no other."""
    most = survey.most_calls[module]
    if survey.calls[module] == 1 and most > 1:
        report.notes.append(
            f"done from its first call alone: it ran once on the first samples, but up to {most} "
            "times on others"
        )


def _warn(report: Report, worklist: Worklist, batches: list[Batch]) -> None:
    """Collect remarks of all layers by kind, and raise each kind once as a warning."""
    report.warnings.extend(worklist.warnings)
    kinds: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.status == "skipped":  # what else is wrong with the equation does not matter then
            layer.remarks = {k: v for k, v in layer.remarks.items() if k == "dead inputs"}
        for kind, detail in layer.remarks.items():
            kinds.setdefault(kind, []).append(f"{layer.title} ({detail})")
    for kind, places in kinds.items():
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        report.warnings.append(f"{kind}: {', '.join(places[:3])}{more}; {_ADVICE[kind]}")
    if batches[0].labels is not None and not worklist.uses_labels:
        report.warnings.append("labels were given but no code used them")
    for text in report.warnings:
        warnings.warn(text, SylvinitWarning, stacklevel=4)
