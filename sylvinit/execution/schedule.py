"""The order of work: propagate to the next layer or normalization, finish it, go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch

from sylvinit.distributed import Ranks
from sylvinit.execution.batches import Batch
from sylvinit.execution.finite import OutputWatch
from sylvinit.execution.guard import CallerModes, ModelGuard
from sylvinit.execution.lockstep import Arrival, Propagation, Runner
from sylvinit.execution.replicas import Replicas
from sylvinit.execution.survey import Survey
from sylvinit.execution.units import LayerUnit
from sylvinit.execution.worklist import Task, Worklist
from sylvinit.model.batch_norm import Norm
from sylvinit.report import LayerReport


class _Progress:
    """What is still to be done, and which task alone is being collected for, if any."""

    def __init__(self, survey: Survey, worklist: Worklist, ranks: Ranks) -> None:
        self._task_of = worklist.task_of
        self._ranks = ranks
        self.order = worklist.in_order()
        self.calls = {
            id(task): task.calls if isinstance(task, LayerUnit) else survey.calls[task.module]
            for task in self.order
        }
        # A normalization looks at all of its input and so, in effect, at that of the layer before.
        self.checked_by_norm = {
            id(point)
            for point, after in pairwise(survey.order)
            if isinstance(after, Norm) and id(after) in self._task_of
        }
        self.reports: dict[int, LayerReport] = {}
        self.only: Task | None = None

    def unfinished(self) -> list[Task]:
        """In order of their first calls."""
        return [task for task in self.order if id(task) not in self.reports]

    def task(self, point: Any) -> Task:
        """The unit of a layer, or the normalization itself."""
        return self._task_of[id(point)]

    def first(self, reached: Iterable[Task]) -> Task | None:
        """The first task that microbatches of any rank have reached; None at the end of all."""
        indices = (self.order.index(task) for task in reached)
        index = self._ranks.least("the next layer", min(indices, default=None))
        return None if index is None else self.order[index]

    def pending(self, point: Any) -> bool:
        """Whether a microbatch has to stop at this layer or normalization."""
        task = self._task_of.get(id(point))
        if task is None or id(task) in self.reports:
            return False
        return self.only is None or task is self.only

    def purpose(self) -> str:
        """What the model is run for."""
        task = self.only or next(iter(self.unfinished()), None)
        if task is None:
            return "to its end, after the last layer had been solved"
        unit = isinstance(task, LayerUnit)
        verb, kind = ("solve", task.layers[0].kind) if unit else ("calibrate", task.kind)
        return f"to {verb} {task.name or '(model)'} ({kind})"

    def collect(self, arrival: Arrival, batch: Batch) -> None:
        task = self.task(arrival.point)
        if isinstance(task, LayerUnit):
            if id(arrival.point) not in self.checked_by_norm:
                task.watch(arrival)
            task.collect(arrival, batch)
        else:
            task.collect(arrival.x)


def solve_in_order(
    survey: Survey,
    worklist: Worklist,
    batches: list[Batch],
    call: Callable[[Batch], Any],
    caller: CallerModes,
    replicas: Replicas,
    recompute: bool,
    done: Callable[[LayerReport], None],
) -> dict[int, LayerReport]:
    """Finish every unit and normalization, in the order of their first calls.

    All microbatches are held where they are while a task is finished. A task that is called
    more than once needs the inputs of all its calls before its weight is known: the microbatches
    run to the end with the weights they have, the task is finished from the sum, and all start
    again. They also start again, after every task, where the forward puts tensors made of the old
    weights in the place of parameters (``torch.func.functional_call``), and with ``recompute``,
    where nothing but the inputs is held. Reports are given by the id of the task.

    With several ranks each has its own microbatches; what they have collected is merged, and the
    task is finished on the leading rank and written on all.
    """
    guard = replicas.guard
    progress = _Progress(survey, worklist, replicas.ranks)
    for task in progress.order:  # before anything runs, for modules may be called again
        if isinstance(task, Norm) and task.gain is not None:
            guard.save([task.module.weight])
            task.write_gain()
    outputs = OutputWatch()
    propagation = Propagation(
        call, survey.names, survey.points, progress.pending, caller, outputs.look, progress.purpose
    )
    runners: list[Runner] = []
    with propagation.attached() as state:
        try:
            while True:
                if recompute:
                    task = _collect_by_replay(propagation, progress, batches)
                else:
                    runners = runners or list(propagation.start(batches))
                    task = _collect_in_lockstep(propagation, progress, runners)
                if task is None:
                    outputs.check()
                    break
                report = _finish(task, replicas)
                if isinstance(task, LayerUnit) and report.status == "solved":
                    for layer in task.layers:
                        guard.accept(layer.owner)
                        state.accept(layer.owner)
                torch.clear_autocast_cache()  # a module's own autocast has cast the old weight
                progress.reports[id(task)] = report
                done(report)
                if progress.calls[id(task)] > 1 or state.replaces_weights:
                    runners = _abandon(runners)
                    for unfinished in progress.unfinished():
                        unfinished.reset()
        finally:
            survey.most_calls = propagation.calls
            _abandon(runners)
    return progress.reports


def _abandon(runners: list[Runner]) -> list[Runner]:
    for runner in runners:
        runner.abandon()
    return []


def _collect_in_lockstep(
    propagation: Propagation, progress: _Progress, runners: list[Runner]
) -> Task | None:
    """Bring every microbatch to where it has to stop; the first task there, or None at the end."""
    for runner in runners:
        waits = runner.arrival is not None and progress.pending(runner.arrival.point)
        if runner.finished or waits:
            continue
        arrival = propagation.advance(runner)
        if arrival is not None:
            progress.collect(arrival, runner.batch)
    task = progress.first(progress.task(x.arrival.point) for x in runners if x.arrival is not None)
    if task is not None and progress.calls[id(task)] > 1:
        progress.only = task  # all of its calls, up to the end of every microbatch
        try:
            for runner in runners:
                while not runner.finished:
                    arrival = propagation.advance(runner)
                    if arrival is not None:
                        progress.collect(arrival, runner.batch)
        finally:
            progress.only = None
    return task


def _collect_by_replay(
    propagation: Propagation, progress: _Progress, batches: list[Batch]
) -> Task | None:
    """Run one microbatch after the other up to the next task; that task, or None at the end."""
    try:
        # None stands for the end of the forward. Tasks that no microbatch reaches are passed over.
        for task in [*progress.unfinished(), None]:
            progress.only = task
            reached = False
            for runner in propagation.start(batches):
                try:
                    while (arrival := propagation.advance(runner)) is not None:
                        reached = True
                        progress.collect(arrival, runner.batch)
                        if progress.calls[id(progress.task(arrival.point))] == 1:
                            break
                finally:
                    runner.abandon()
            if progress.first([task] if reached and task is not None else []) is not None:
                return task
        return None
    finally:
        progress.only = None


def _finish(task: Task, replicas: Replicas) -> LayerReport:
    ranks = replicas.ranks
    if ranks.alone:
        return _finish_here(task, replicas.guard)
    total = ranks.total("the rows of a layer", task.count)
    whole = ranks.reduce("the moments of a layer", lambda: task.packed(total), task.merge)
    found, written = None, []
    if ranks.leads and whole:
        report = _finish_here(task, replicas.guard)
        found = report, task.held_out if isinstance(task, LayerUnit) else None
        written = task.written() if report.status in ("solved", "calibrated") else []
    report, held_out = replicas.share(found, written)
    task.reset()
    if isinstance(task, LayerUnit):
        task.held_out = held_out
    return report


def _finish_here(task: Task, guard: ModelGuard) -> LayerReport:
    if isinstance(task, LayerUnit):
        return task.finish(guard)
    begin = time.perf_counter()
    for name in task.buffers:
        guard.keep_buffer(task.module, name)
    report = LayerReport(task.name, task.kind, "calibrated", d_in=task.module.num_features)
    report.rows = task.count
    report.d_out = report.d_in
    report.std_before, report.std_after = task.finish()
    report.notes = task.notes()
    task.reset()
    report.seconds = time.perf_counter() - begin
    return report
