"""The order of work: propagate to the next pending point, finish it, go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from sylvinit.execution.batches import Batch
from sylvinit.execution.finite import OutputWatch
from sylvinit.execution.guard import CallerModes, ModelGuard
from sylvinit.execution.lockstep import Arrival, Propagation, Runner
from sylvinit.execution.plan import Work
from sylvinit.execution.survey import Survey
from sylvinit.execution.units import LayerUnit
from sylvinit.model.batch_norm import Norm, buffers
from sylvinit.report import LayerReport

Target = LayerUnit | Norm


class _Progress:
    """What is still pending, and which target alone is being collected, if any."""

    def __init__(self, survey: Survey, work: Work) -> None:
        self._target_of: dict[int, Target] = {**work.unit_of, **work.norms}
        self.order: list[Target] = []
        self.rank: dict[int, int] = {}
        self.calls: dict[int, int] = {}
        for point in survey.order:
            target = self._target_of.get(id(point))
            if target is not None and id(target) not in self.rank:
                self.rank[id(target)] = len(self.rank)
                self.order.append(target)
                calls = (
                    target.calls if isinstance(target, LayerUnit) else survey.calls[point.module]
                )
                self.calls[id(target)] = calls
        # A normalisation looks at all of its input and so, in effect, at that of the layer before.
        self.checked_by_norm = {
            id(point) for point, after in pairwise(survey.order) if id(after) in work.norms
        }
        self.reports: dict[int, LayerReport] = {}
        self.only: Target | None = None

    def restart(self) -> None:
        """Forget what unfinished targets have collected."""
        for target in self._target_of.values():
            if id(target) not in self.reports:
                target.reset()

    def target(self, point: Any) -> Target:
        """The unit or norm behind a point."""
        return self._target_of[id(point)]

    def pending(self, point: Any) -> bool:
        """Whether a microbatch has to stop at this point."""
        target = self._target_of.get(id(point))
        if target is None or id(target) in self.reports:
            return False
        return self.only is None or target is self.only


def solve_in_order(
    survey: Survey,
    work: Work,
    batches: list[Batch],
    call: Callable[[Batch], Any],
    caller: CallerModes,
    guard: ModelGuard,
    recompute: bool,
    done: Callable[[LayerReport], None],
) -> dict[int, LayerReport]:
    """Finish every unit and norm.

    All microbatches are held where they are while a target is finished. A target that is called
    more than once needs the inputs of all its calls before its weight is known: the microbatches
    run to the end with the weights they have, the target is finished from the sum, and all start
    again. They also start again, after every target, where the forward puts tensors made of the old
    weights in the place of parameters (``torch.func.functional_call``), and with ``recompute``,
    where nothing but the inputs is held. Where forwards turn out to have found what others stored,
    everything is done once more like that.

    Returns:
        Reports by the id of the unit or norm.
    """
    for norm in work.norms.values():  # before anything runs, for modules may be called again
        if norm.gain is not None:
            guard.save([norm.module.weight])
            norm.write_gain()
    progress = _Progress(survey, work)
    outputs = OutputWatch()
    propagation = Propagation(
        call, survey.names, survey.points, progress.pending, caller, outputs.look
    )
    runners: list[Runner] = []
    with propagation.attached() as contents:
        try:
            while True:
                if recompute:
                    target = _collect_by_replay(propagation, progress, batches)
                else:
                    runners = runners or list(propagation.start(batches))
                    target = _collect_in_lockstep(propagation, progress, runners)
                if target is None:
                    outputs.check()
                    break
                report = _finish(target, guard)
                if isinstance(target, LayerUnit) and report.status == "solved":
                    for layer in target.layers:
                        guard.accept(layer.owner)
                        contents.accept(layer.owner)
                torch.clear_autocast_cache()  # a module's own autocast has cast the old weight
                progress.reports[id(target)] = report
                done(report)
                if progress.calls[id(target)] > 1 or contents.replaces_weights:
                    runners = _abandon(runners)
                    progress.restart()
        finally:
            survey.most_calls = propagation.calls
            _abandon(runners)
    names = ", ".join(sorted({survey.names[module] or "(model)" for module in contents.late}))
    if recompute or not names:
        return progress.reports
    work.warnings.append(
        "the forward stores things on modules for some microbatches only, where others have found "
        f"them ({names}): done once more with storage='recompute'"
    )
    guard.restore_all()
    return solve_in_order(survey, work, batches, call, caller, guard, True, lambda report: None)


def _abandon(runners: list[Runner]) -> list[Runner]:
    for runner in runners:
        runner.abandon()
    return []


def _waits(runner: Runner, progress: _Progress) -> bool:
    return runner.arrival is not None and progress.pending(runner.arrival.point)


def _collect_in_lockstep(
    propagation: Propagation, progress: _Progress, runners: list[Runner]
) -> Target | None:
    """Bring every microbatch to a pending point; the first target in order, or None at the end."""
    for runner in runners:
        if runner.finished or _waits(runner, progress):
            continue
        arrival = propagation.advance(runner)
        if arrival is not None:
            _collect(progress, arrival, runner.batch)
    arrivals = [runner.arrival for runner in runners if runner.arrival is not None]
    if not arrivals:
        return None
    targets = [progress.target(arrival.point) for arrival in arrivals]
    target = min(targets, key=lambda item: progress.rank[id(item)])
    if progress.calls[id(target)] > 1:
        _collect_later_calls(propagation, progress, runners, target)
    return target


def _collect_later_calls(
    propagation: Propagation, progress: _Progress, runners: list[Runner], target: Target
) -> None:
    """Run every microbatch to its end, collecting for one target only."""
    progress.only = target
    try:
        for runner in runners:
            while not runner.finished:
                arrival = propagation.advance(runner)
                if arrival is not None:
                    _collect(progress, arrival, runner.batch)
    finally:
        progress.only = None


def _collect_by_replay(
    propagation: Propagation, progress: _Progress, batches: list[Batch]
) -> Target | None:
    """Run one microbatch after the other up to the next target; that target, or None at the end."""
    unfinished = [item for item in progress.order if id(item) not in progress.reports]
    try:
        # None stands for the end of the forward. Targets that no microbatch reaches are passed
        # over.
        for target in [*unfinished, None]:
            progress.only = target
            reached = False
            for runner in propagation.start(batches):
                try:
                    arrival = propagation.advance(runner)
                    while arrival is not None:
                        reached = True
                        _collect(progress, arrival, runner.batch)
                        once = target is None or progress.calls[id(target)] == 1
                        arrival = None if once else propagation.advance(runner)
                finally:
                    runner.abandon()
            if reached:
                return target
        return None
    finally:
        progress.only = None


def _collect(progress: _Progress, arrival: Arrival, batch: Batch) -> None:
    target = progress.target(arrival.point)
    if isinstance(target, LayerUnit):
        if id(arrival.point) not in progress.checked_by_norm:
            target.watch(arrival)
        target.collect(arrival, batch)
    else:
        target.collect(arrival.x)


def _finish(target: Target, guard: ModelGuard) -> LayerReport:
    if isinstance(target, LayerUnit):
        return target.finish(guard)
    begin = time.perf_counter()
    for name in buffers(target.module):
        guard.keep_buffer(target.module, name)
    report = LayerReport(target.name, target.kind, "calibrated", d_in=target.module.num_features)
    report.patches = target.count
    report.d_out = report.d_in
    report.std_before, report.std_after = target.finish()
    report.notes = target.notes()
    target.reset()
    report.seconds = time.perf_counter() - begin
    return report
