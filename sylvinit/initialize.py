"""The public drivers."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from sylvinit.codes import Code
from sylvinit.distributed import join
from sylvinit.errors import SylvinitWarning
from sylvinit.execution.account import nothing_to_solve, report_of
from sylvinit.execution.attempt import Run
from sylvinit.execution.batches import Forward, Padding, read_batches
from sylvinit.execution.gate import choose
from sylvinit.execution.guard import CallerModes, ModelGuard
from sylvinit.execution.read_rows import has_tokens, reads_last_tokens
from sylvinit.execution.replicas import (
    SAME_ORDER,
    Replicas,
    in_one_stream,
    share_calls,
    share_rules,
    survey_lines,
)
from sylvinit.execution.row_rules import find_row_rules
from sylvinit.execution.shards import unsharded
from sylvinit.execution.survey import survey_model
from sylvinit.model.modules import check_module, device_of
from sylvinit.model.obstacles import module_obstacle
from sylvinit.moments.rows import RowToSample
from sylvinit.options import ForwardFn, Options, PaddingMask, PresetName
from sylvinit.report import Report
from sylvinit.sylvester.lapack import blas_seldom

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_log = logging.getLogger(__name__)


def initialize_(
    model: nn.Module,
    data: Any,
    *,
    preset: PresetName = "auto",
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
    padding_mask: PaddingMask | None = None,
    ignore_index: int = -100,
    balance: bool = False,
    process_group: ProcessGroup | Literal["world"] | None = None,
) -> Report:
    """Initialize a network from its data, in place, layer by layer in execution order.

    The weight W of each layer solves A W + W B = Q with A = E[s s^T], B = lam E[x x^T] and
    Q = (1 + lam) E[s x^T]. Here x are the patches of the layer's own input under the layers
    already solved, and s their latent code ("Data-driven Weight Initialization with Sylvester
    Solvers", eq. 2). No gradients are taken; the data pass through the network once.

    Args:
        model: any module. Wrappers (torch.compile, DataParallel) are looked through.
        data: a tensor, a 2-tuple (inputs, labels), a mapping of keyword arguments, an iterable of
            such batches, read once, or a map-style dataset (torch's, Hugging Face's) of samples,
            read in order. Inputs are a tensor, a tuple of arguments, or a list with one tensor for
            each label (detection, bags of instances), which the model is given as a list; where
            all of them are as long as the labels in the first batch, they are arguments, if the
            forward takes so many.
            Labels are classes, integers (n,) or (n, 1); a class for every row of the head, integers
            (n, ...) (label maps, tokens); or targets of its outputs, floats (n,), (n, t) or (n, t,
            ...), NaN for unknown ones: numbers, several labels at once (0 and 1), soft labels.
            Mappings and named tuples hold them under "labels", "label", "targets", "target" or "y",
            and if they do not suit the head, they are left aside with a warning. Labels in a
            mapping reach the model where its forward requires them: as an argument without a
            default, or as the tokens of a decoder that is given no other input; ``forward_fn``
            always gets them. The first two samples decide which layers are solved and how many
            calls of each are waited for; where the forward fails on them (a fixed batch size, a
            graph), or experts get none of them, the first batch does. A graph is a batch of its
            own: give an iterable with its nodes as samples.
        preset: the values of code, head_code, lam, patches, rescale and branch_gain where they are
            not given.
            "auto": the network's own start or "best": both are run on the data, and the features
            before the head are compared. The own start is kept where a head does better on it with
            samples that it has not seen: the held-out error of a ridge regression of the labels
            (ten folds of the samples, at most 2,000 rows) is lower by 1.5 standard errors of the
            difference. Where the features of "best" spread over more than 2.5 times as many
            directions and so may be noise, it is kept unless "best" is ahead by as much; but not in
            networks without batch norm that read their inputs in windows (a first convolution,
            patches), if its own error is above 0.5. With batch norm the own start is also tried
            with statistics of the data. The head is solved either way; behind an own body, a head
            of numbers (with a bias and the default head_code) is written as its solution times the
            root of own over solved deviation of its outputs, from 1/3 to 1.
            ``report.candidates`` has the scores. Without a head that is solved from labels, "best"
            for networks of convolutions with batch norm or without any normalization, and nothing
            for others. With a code, include, exclude or rescale of yours it is "best", without a
            comparison.
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
        head_code: code of the head. "auto" is "onehot" for classes with an output each, "targets"
            for numbers and for two classes with one output (-1 and 1, as are columns of only 0 and
            1), else ``code``. Targets are standardized inside, so that their units do not matter.
            "logistic" (classes) and "ridge" (numbers) are for features that come from elsewhere,
            see :func:`initialize_head_`; on features made here, from the same samples, logistic
            scores are so large that training can fail.
        lam: weight of the encoding loss, positive, or a mapping from name patterns. None: 10.
        patches: random patches (for Linear layers: rows) per sample and layer, or "all". None: the
            preset's, 10 ("frozen": 30); a head whose rows have labels of their own takes all.
        include, exclude: fnmatch patterns over the names of layers and normalizations. Layers whose
            weight is zero and whose output is added to something made without them (adapters)
            stay zero unless include names nothing else.
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
            helps training, whose steps then change all filters alike. It is damped for rows in
            which features cancel each other, and no row becomes longer than 30 times the longest
            that the layer had (or than 1). "none" leaves rows as they solve the equation. None: the
            preset's.
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
        row_to_sample: (layer name, input, samples) -> the sample of every entry of the input's
            leading axes, or -1 for entries to drop; it replaces the padding mask, too. None from it
            means the usual rule. It is seldom needed: the model is run on a few samples twice, once
            with one of them replaced, and the rows that change are that sample's (batch first, time
            first, windows, frames and views in the batch). Where rows follow no rule, codes without
            labels take all of them.
        padding_mask: which tokens are padding, and dropped: the name of an input (a key of a
            mapping, an argument of the forward), or a function of the inputs. A mask (samples,
            length) is true at real tokens, or at padding if its name ends in "padding_mask", as
            torch.nn has it; integers (samples,) are lengths. None: the "attention_mask" of a
            mapping, if it has that shape. A layer's rows are dropped where each sample has as many
            as the mask is long.
        ignore_index: integer labels of this value are left out, as are their rows.
        balance: whether all classes count alike in the head, however many rows they have: rows are
            weighted by n / (C n_c), and a logistic head gets equal priors.
        process_group: "world" or a group of torch.distributed: its ranks call this together, each
            with a replica of the model and its own part of the data. Parts count as one after the
            other, in rank order, and may be empty; ``max_samples`` is that of all. The moments of
            the ranks are merged, every layer is solved once, and all ranks get the same bits, those
            of one process on all data but for rounding. No samples leave a rank, except for the
            rows of layers with fewer rows than features and bounded random samples of rows ("ica",
            "kmeans"; at most 2,000 of the head's for preset "auto"). All ranks return the report;
            warnings are of rank 0. A model under ``fully_shard`` (FSDP2) over the same ranks is
            whole on every rank for the time of the call, and sharded after it. None: this process
            alone.

    Returns:
        A :class:`sylvinit.Report`; print it.

    Raises:
        OptionError, OptionTypeError: an argument is out of its domain or of the wrong type.
        DataError, LabelError: the data are empty, not finite, inconsistent or not what the model
            takes; labels are missing, or suit neither the code nor the head's outputs and rows.
        ModelError: parameters that are DTensors and not by ``fully_shard`` over the ranks of the
            group, offloaded or on the meta device, mixed devices, no layer that can be solved, no
            such head.
        RowLayoutError: a code needs labels for rows that do not follow the samples.
        NonFiniteError: NaN or Inf appeared in an activation.
        SolverError: an equation could not be solved.
        RankError: another rank has failed, or ranks have different models or options.
        Exception: whatever the model's forward or the data raise; the forward's has a note that
            says what the model was called with, and for which layer. In every case, Ctrl-C
            included, the model is left bit for bit as it was, with the attributes that a forward
            changes. (Lazy modules stay materialized. What a forward itself writes into tensors that
            are not buffers, and into containers within containers, is not seen.)
    """
    return _initialize(model, data, locals())


def initialize_head_(
    model: nn.Module,
    data: Any,
    *,
    head: str | None = None,
    lam: float = 10.0,
    head_code: str | Code = "auto",
    patches: int | Literal["all"] | None = None,
    microbatch: int | None = None,
    max_samples: int | None = None,
    storage: Literal["memory", "recompute"] = "memory",
    seed: int = 0,
    backend: str = "auto",
    progress: bool | None = None,
    dry_run: bool = False,
    forward_fn: ForwardFn | None = None,
    row_to_sample: RowToSample | None = None,
    padding_mask: PaddingMask | None = None,
    ignore_index: int = -100,
    balance: bool = False,
    process_group: ProcessGroup | Literal["world"] | None = None,
) -> Report:
    """Solve only the classifier, from the features that the rest of the network already provides.

    ``head_code="ridge"`` is the more accurate one for numbers where features come from elsewhere:
    for every target the ridge of least leave-one-out error. ``head_code="logistic"`` is that for
    classes: linear discriminant analysis with the ridge of least leave-one-out error, and a few
    steps of logistic regression from there. lam has no part in either. The logistic head wants
    features of like scale (a network's are; standardize raw tables). The one-hot head wants
    variances that, times lam, are not small beside the frequencies of the classes: scale embeddings
    of norm 1 by sqrt(d).

    Everything else is left alone, running statistics included. Arguments, result and errors are
    those of :func:`initialize_`; ``data`` needs labels unless ``head_code`` does without, and a
    head that cannot be solved (frozen, tied to an embedding) is a ``ModelError``. With
    ``storage="recompute"`` no more than the inputs and one microbatch is in memory, for a second
    forward pass.
    """
    # What it has no argument for is as initialize_ has it by default, but for these two.
    fixed = {**(initialize_.__kwdefaults__ or {}), "preset": "paper", "calibrate_norm": False}
    return _initialize(model, data, {**fixed, **locals()}, head_only=True)


def _initialize(
    model: nn.Module, data: Any, given: Mapping[str, Any], *, head_only: bool = False
) -> Report:
    begin = time.perf_counter()
    with join(given["process_group"], model, stacklevel=4).together() as ranks:
        options = Options.checked(given, head_only=head_only)
        ranks.agree("options", list(options.lines()), "pass the same arguments on every rank")
        caller = CallerModes.present()
        model = check_module(model)
        with unsharded(model, ranks):
            forward = Forward(model, device_of(model), options.forward_fn)
            with blas_seldom(), ModelGuard(model) as guard:
                replicas = Replicas(model, ranks, guard)
                report = _solve_all(data, options, forward, caller, replicas)
                report.seconds = time.perf_counter() - begin
                if ranks.rank == 0:  # in the guard, for users who turn warnings into errors
                    for text in report.warnings:
                        warnings.warn(text, SylvinitWarning, stacklevel=3)
                ranks.commit()
    _log.info("initialized %d layers in %.2f s", len(report.solved), report.seconds)
    return report


def _solve_all(
    data: Any, options: Options, forward: Forward, caller: CallerModes, replicas: Replicas
) -> Report:
    ranks, guard = replicas.ranks, replicas.guard
    replicas.compare()
    padding = Padding(options.padding_mask)
    batches = read_batches(
        data,
        forward,
        padding=padding,
        microbatch=options.microbatch,
        max_samples=options.max_samples,
        may_be_empty=not ranks.alone,
    )
    batches = in_one_stream(batches, options.max_samples, ranks)
    if not batches:
        return replicas.follow()
    survey = survey_model(replicas.model, batches[0], forward, caller, guard)
    replicas.compare()  # what the first forward has made
    ranks.agree("orders of layers", list(survey_lines(survey)), SAME_ORDER)
    layers, norms = survey.point_names()
    others = [name for module, name in survey.names.items() if module_obstacle(module)]
    options.check_patterns(layers, [*norms, *others])
    if not survey.layers:
        raise nothing_to_solve(survey, options)
    rules = find_row_rules(survey, batches, forward, caller, guard)
    head = next((x for x in survey.layers if x.name == options.head), survey.last)
    if (
        head is not None
        and options.row_to_sample is None
        and has_tokens(survey, head, batches[0].labels)
        and reads_last_tokens(head, batches, forward, caller, guard)
    ):
        rules.last_tokens.add(id(head))
    rules = share_rules(rules, survey, ranks)
    run = Run(survey, rules, batches, forward, caller, replicas)
    worklist = run.worklist(options)
    attempt = choose(run, worklist) if options.gated else run.attempt(worklist)
    if padding.warning is not None and options.row_to_sample is None:
        attempt.worklist.warnings.append(padding.warning)
    share_calls(survey, ranks)
    said = ranks.gather("warnings", attempt.worklist.warnings)
    attempt.worklist.warnings = list(dict.fromkeys(text for texts in said for text in texts))
    samples = ranks.total("the samples", sum(batch.size for batch in batches))
    report = None
    if ranks.leads:
        report = report_of(run, attempt)
        report.settings, report.samples = options.settings(), samples
    return replicas.share_report(report)
