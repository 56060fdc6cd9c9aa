"""One initialization, with some options, of a network that has been looked at."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from sylvinit.errors import NonFiniteError, SolverError
from sylvinit.execution.batches import Batch, Forward
from sylvinit.execution.guard import CallerModes
from sylvinit.execution.replicas import SAME_ORDER, Replicas
from sylvinit.execution.row_rules import RowRules
from sylvinit.execution.schedule import solve_in_order
from sylvinit.execution.survey import Survey
from sylvinit.execution.units import LayerUnit
from sylvinit.execution.worklist import Task, Worklist
from sylvinit.options import Options
from sylvinit.report import Candidate, LayerReport

_log = logging.getLogger(__name__)


@dataclass
class Attempt:
    """What was done, or, in a dry run, would be."""

    options: Options
    worklist: Worklist
    reports: dict[int, LayerReport]  # by the ids of tasks
    candidates: list[Candidate] = field(default_factory=list)  # that it was chosen from


@dataclass(frozen=True)
class Run:
    """A network, the data, and what is known of both before anything is written."""

    survey: Survey
    rules: RowRules
    batches: list[Batch]
    forward: Forward
    caller: CallerModes
    replicas: Replicas

    def worklist(self, options: Options) -> Worklist:
        """What is solved with these options, and as what."""
        ranks = self.replicas.ranks
        worklist = Worklist(self.survey, options, self.batches, self.rules, ranks)
        ranks.agree("plans", list(worklist.lines()), SAME_ORDER)
        return worklist

    def undo(self) -> None:
        """Put back all that was written."""
        self.replicas.undo()

    def attempt(self, worklist: Worklist, title: str = "sylvinit") -> Attempt:
        """Solve and calibrate everything, or plan it.

        Raises:
            NonFiniteError, SolverError: on all ranks, if on one of them.
        """
        options, tasks = worklist.options, worklist.in_order()
        for task in tasks:
            task.reset()  # normalizations may hold what an attempt that failed has collected
        if options.dry_run:
            return Attempt(options, worklist, {id(task): _planned(task) for task in tasks})
        hidden = None if options.progress is None else not options.progress
        ranks = self.replicas.ranks
        hidden = hidden if ranks.leads else True
        with (
            ranks.sharing(NonFiniteError, SolverError),
            tqdm(total=len(tasks), desc=title, unit="layer", disable=hidden) as bar,
        ):

            def done(report: LayerReport) -> None:
                bar.update()
                bar.set_postfix_str(report.name)
                _log.debug("%s: %s %s", report.name, report.status, report.reason)

            reports = solve_in_order(
                self.survey,
                worklist,
                self.batches,
                self.forward,
                self.caller,
                self.replicas,
                options.storage == "recompute",
                done,
            )
            ranks.total("the end of all layers", 0)  # nobody fails any more
        return Attempt(options, worklist, reports)


def _planned(task: Task) -> LayerReport:
    if not isinstance(task, LayerUnit):
        return LayerReport(task.name, task.kind, "planned", notes=task.notes())
    layer, code = task.layers[0], task.task.code.name
    report = LayerReport(task.name, layer.kind, "planned", code=code, lam=task.lam)
    report.groups, report.d_out, report.d_in = layer.get_weight().shape
    return report
