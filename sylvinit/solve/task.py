"""What is asked of a weight, and how it is done: solved, scaled, written, reported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sylvinit.backends.memory import memory_for
from sylvinit.codes import Code, Logistic, OneHot, Ridge
from sylvinit.errors import ModelError
from sylvinit.model import Layer
from sylvinit.model.obstacles import PARAMETRIZED
from sylvinit.moments.row_labels import LabelKind
from sylvinit.moments.sampling import stream_key
from sylvinit.moments.statistics import LayerStatistics
from sylvinit.report import LayerReport
from sylvinit.solve.classifier import solve_classifier
from sylvinit.solve.equation import LayerSolution, solve_layer
from sylvinit.solve.feature_scales import too_small, unlike_scales
from sylvinit.solve.ridge import solve_ridge
from sylvinit.solve.scaling import GROWTH, output_std, scale_rows

_SHARES = 64  # of the input's variance, in the report
# Least part of a head's solution. On three tables, ten splits of samples that were neither trained
# on nor tested on, MLPs ended 0.6 points of R2 higher with about a third of it than with all, and
# nowhere lower by more than 0.4; on the smallest table 2.4 higher.
SHRINKING = 1 / 3


class _Backup(Protocol):
    """Remembers parameters before they are written, and puts them back."""

    def save(self, parameters: list[nn.Parameter]) -> None: ...

    def restore(self, module: nn.Module, parameters: list[nn.Parameter]) -> None: ...


@dataclass(frozen=True)
class LayerTask:
    """What is asked of a weight."""

    code: Code
    lam: float
    patches: int | None  # per sample; None for all
    seed: int  # of the patch positions and of the code
    skip: int  # code entries that earlier siblings have taken
    head: bool  # whether this is the head with a code of given labels
    labels: LabelKind  # of its rows, if the code needs some
    balanced: bool  # whether a logistic head has equal priors
    rescale: bool  # to unit output variance; never the last layer
    units: TargetUnits | None = None  # of the targets
    share: float = 1.0  # of the solution, for one of several heads that add up to it
    shrunk: bool = False  # a head of targets, toward the scale of its own start's outputs


@dataclass(frozen=True)
class TargetUnits:
    """Targets y = center + scale * s of the standardized ones s, float64 (targets,) each."""

    center: Tensor
    scale: Tensor
    numbers: Tensor  # bool (targets,), not for two classes as -1 and 1 and what never varies

    def restore(self, solution: LayerSolution) -> None:
        """From weights and biases for s to those for y; without a bias, y = scale * s."""
        groups, outputs = solution.bias.shape
        scale, center = (
            x.to(solution.bias).view(groups, outputs) for x in (self.scale, self.center)
        )
        solution.weight = solution.weight * scale[:, :, None]
        solution.bias = solution.bias * scale + center


def without_equation(layers: list[Layer], task: LayerTask) -> bool:
    """Whether the head is fitted in another way than by the layers' equation."""
    return isinstance(task.code, (Logistic, Ridge)) and _why_equation(layers, task) is None


def _why_equation(layers: list[Layer], task: LayerTask) -> str | None:
    """Why a logistic or ridge code is solved for by the equation, or None if it is not."""
    if not task.head:
        return "not the head"
    if layers[0].get_weight().shape[0] > 1:
        return "an equation for each group"
    if not writable_biases(layers):
        return "no bias" if layers[0].get_bias() is None else "no bias that may be written"
    return None


def writable_biases(layers: list[Layer]) -> list[Layer]:
    """The layers that have a bias whose parameters may be written."""
    return [
        layer
        for layer in layers
        if layer.get_bias() is not None
        and layer.obstacle("bias") is None
        and all(parameter.requires_grad for parameter in layer.parameters("bias"))
    ]


def solve_and_write(
    layers: list[Layer],
    task: LayerTask,
    stats: LayerStatistics,
    inputs: torch.dtype,
    backup: _Backup,
) -> LayerReport:
    """Solve for the weight that layers share, write it and their biases, and report.

    ``stats`` are of the layers' input, which was rounded to the type ``inputs``.

    Raises:
        SolverError: the equation could not be solved.
        DeviceMemoryError: there is no memory for it.
    """
    first = layers[0]
    old_weight = first.get_weight()
    groups, outputs, features = old_weight.shape
    what = f"the equation of {first.name} ({outputs} x {stats.d}, {stats.groups} groups)"
    square = 0 if isinstance(task.code, OneHot) else outputs**2  # of a one-hot code a diagonal
    with memory_for(what, stats.groups * (square + (2 * outputs + stats.d) * stats.d) * 8):
        solution = _solve(layers, task, stats, outputs)
        if task.units is not None:
            if task.shrunk:
                _shrink(solution, task.units, stats, output_std(old_weight, stats))
            task.units.restore(solution)
        if task.share != 1.0:
            solution.weight, solution.bias = (
                solution.weight * task.share,
                solution.bias * task.share,
            )
            if solution.deviation is not None:
                solution.deviation = solution.deviation * task.share
    if task.rescale:
        scaled = scale_rows(solution.weight, stats, inputs, old_weight, solution.deviation)
        solution.weight, solution.bias = scaled.weight, scaled.bias
        solution.deviation = scaled.deviation
        if scaled.rounding:
            solution.notes.append(
                f"{scaled.rounding} rows not scaled: their output may be rounding of the inputs"
            )
        if scaled.bounded:
            solution.notes.append(
                f"{scaled.bounded} rows kept short: the inputs vary so little that rows of unit "
                f"output variance are more than {GROWTH:.0f} times as long as the layer's own"
            )
    forced = first.row_scales(solution.weight)
    if forced is not None:
        if solution.deviation is not None:
            solution.deviation = solution.deviation * forced
        solution.weight, solution.bias = (
            solution.weight * forced[:, :, None],
            solution.bias * forced,
        )
    solution.notes.extend(first.notes())
    # For the report alone: products as precise as the rows are enough.
    rows = torch.float32 if stats.rows_eps > torch.finfo(torch.float64).eps else torch.float64
    before, after = output_std(old_weight.to(rows), stats), solution.deviation
    if after is None:
        after = output_std(solution.weight, stats)
    shares = stats.known_shares() if solution.shares is None else solution.shares
    report = LayerReport(
        name=first.name,
        kind=first.kind,
        status="solved",
        code=task.code.name,
        lam=math.nan if without_equation(layers, task) else task.lam,
        d_in=features,
        d_out=outputs,
        groups=groups,
        rows=stats.n,
        rank=solution.rank,
        spectrum=[] if shares is None else shares.mean(dim=0)[:_SHARES].tolist(),
        filled=solution.filled_components + int(solution.mixed.sum(dim=1).max()),
        residual=solution.residual,
        std_before=float(before.square().mean().sqrt()),
        std_after=float(after.square().mean().sqrt()),
        notes=solution.notes,
    )
    if bool(solution.empty.all()):
        report.reason = "dead inputs: they never vary, so there is nothing to solve for"
    else:
        try:
            _write(layers, solution, old_weight, backup)
        except ModelError as error:  # a parametrization that cannot hold the solution
            backup.restore(first.owner, first.parameters("weight"))
            report.reason, report.remarks[PARAMETRIZED.kind] = str(error), report.kind
    if report.reason:
        report.status, report.std_after = "skipped", report.std_before
    _remark(report, layers, task, solution, stats)
    return report


def _solve(
    layers: list[Layer], task: LayerTask, stats: LayerStatistics, outputs: int
) -> LayerSolution:
    code = task.code
    if without_equation(layers, task):
        if isinstance(code, Logistic):
            return solve_classifier(
                stats, outputs, strength=code.strength, steps=code.steps, balanced=task.balanced
            )
        return solve_ridge(stats, outputs)
    return solve_layer(
        stats,
        code,
        outputs,
        task.lam,
        seed=stream_key(task.seed, layers[0].name, -1)[0],
        skip=task.skip,
        constant=task.head and bool(writable_biases(layers)),
        fill=not task.head,
    )


def _shrink(
    solution: LayerSolution, units: TargetUnits, stats: LayerStatistics, own: Tensor
) -> None:
    """Multiply a solution for standardized numbers by the root of own over solved deviation.

    At least by SHRINKING, at most by 1. Squared errors of outputs that fit already hardly train the
    layers before them: networks on tables ended lower from the whole solution.
    """
    numbers = units.numbers.to(own.device).view(own.shape)
    solved = output_std(solution.weight, stats)[numbers].square().sum()
    wanted = (own / units.scale.to(own).view(own.shape))[numbers].square().sum()
    if not bool(solved > 0):
        return
    factor = min(1.0, max(SHRINKING, float((wanted / solved) ** 0.25)))
    factors = torch.where(numbers, factor, 1.0).to(solution.bias)
    solution.weight = solution.weight * factors[:, :, None]
    solution.bias = solution.bias * factors
    if solution.deviation is not None:
        solution.deviation = solution.deviation * factors
    if factor < 1:
        solution.notes.append(
            f"{factor:.2f} of the solution, about the mean of the targets: the rest is left to "
            "training, and initialize_head_ writes all of it"
        )


def _write(
    layers: list[Layer], solution: LayerSolution, old_weight: Tensor, backup: _Backup
) -> None:
    empty = solution.empty[:, None]
    first = layers[0]
    backup.save(first.parameters("weight"))
    first.set_weight(torch.where(empty[:, :, None], old_weight, solution.weight))
    for layer in writable_biases(layers):
        bias = layer.get_bias()
        if bias is not None:
            backup.save(layer.parameters("bias"))
            layer.set_bias(torch.where(empty, bias.double(), solution.bias))


def _remark(
    report: LayerReport,
    layers: list[Layer],
    task: LayerTask,
    solution: LayerSolution,
    stats: LayerStatistics,
) -> None:
    """Notes on what makes a solution less useful than it could be."""
    otherwise = without_equation(layers, task)
    if isinstance(task.code, (Logistic, Ridge)) and not otherwise:
        why = _why_equation(layers, task)
        kind = "one-hot" if isinstance(task.code, Logistic) else "targets'"
        report.notes.append(f"{why}: the {kind} equation is solved instead")
    if stats.constant:
        total = report.groups * report.d_in
        report.remarks["dead inputs"] = f"{stats.constant} of {total} never vary"
    if report.status == "skipped":
        return  # what else is wrong with the equation does not matter
    if any(layer.get_bias() is not None for layer in layers) and not writable_biases(layers):
        report.notes.append("its bias is frozen and left alone")
    if report.rank < report.d_out and not task.head:
        report.remarks["rank < d_out"] = f"rank {report.rank}, {report.d_out} outputs"
    if report.rows < report.d_in:
        report.remarks["fewer rows than features"] = f"{report.rows} for {report.d_in}"
    if task.head and isinstance(task.code, OneHot):
        kind, detail = "features of unlike scale", unlike_scales(stats)
        if not otherwise:
            kind, detail = "features too small for lam", too_small(stats, task.lam)
        if detail is not None:
            report.remarks[kind] = detail
    if solution.dropped:
        report.remarks["near-singular equation"] = f"{solution.dropped} pairs dropped"
