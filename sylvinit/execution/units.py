"""A unit: all layers that share one weight, the moments of all their calls, and one solution."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from sylvinit.backends import Backend
from sylvinit.codes import Ridge, needs_sample_means
from sylvinit.distributed import Message
from sylvinit.execution.batches import Batch
from sylvinit.execution.finite import InputWatch, non_finite_input
from sylvinit.execution.guard import ModelGuard
from sylvinit.execution.lockstep import Arrival
from sylvinit.execution.read_rows import last_tokens
from sylvinit.execution.row_rules import RowRules
from sylvinit.execution.supervision import Reading
from sylvinit.model import Layer
from sylvinit.moments.collect import InputCollector
from sylvinit.moments.row_sample import RowSample
from sylvinit.moments.rows import RowToSample
from sylvinit.moments.statistics import without_constant
from sylvinit.report import LayerReport
from sylvinit.solve.held_out import HeldOut, held_out
from sylvinit.solve.task import LayerTask, solve_and_write, without_equation, writable_biases

# Rows that heads are compared on, and how many a sample gives of its own where it has more.
_SCORED_ROWS, _SCORED_DRAWS = 2000, 10


class LayerUnit:
    """The layers behind one weight (several if it is tied), solved once from all their inputs."""

    def __init__(
        self,
        layers: list[Layer],
        calls: int,
        task: LayerTask,
        backend: Backend,
        row_to_sample: RowToSample | None,
        rules: RowRules,
        notes: list[str],
        reading: Reading | None,
        *,
        scored: bool = False,
    ) -> None:
        self.layers = layers
        self.calls = calls
        self.task = task
        self.name = layers[0].name
        self.notes = notes  # on its layers, for the report
        self.seconds = 0.0
        self.is_expert = False  # whether it was given rows that belong to no sample
        self._backend, self._row_to_sample, self._rules = backend, row_to_sample, rules
        self._reading, self._scored = reading, scored
        self.held_out: HeldOut | None = None  # how well a head does here, once it is solved
        self.reset()

    @property
    def is_scored(self) -> bool:
        """Whether rows are kept for a score."""
        return self._scored

    @property
    def without_equation(self) -> bool:
        """Whether the head is fitted in another way than by the layers' equation."""
        return without_equation(self.layers, self.task)

    @property
    def lam(self) -> float:
        """Weight of the encoding loss; nan where there is no such loss."""
        return math.nan if self.without_equation else self.task.lam

    def reset(self) -> None:
        """Forget what was collected."""
        self._watch = InputWatch()
        self._row_note = ""  # on inputs that are not batch first
        ridge = self.without_equation and isinstance(self.task.code, Ridge)
        self._inputs = InputCollector(
            self.name,
            patches=self.task.patches,
            seed=self.task.seed,
            labels=self.task.labels,
            reservoir=self.task.code.reservoir,
            sample_means=needs_sample_means(self.task.code),
            row_to_sample=self._row_to_sample,
            arithmetic="3xtf32" if self._backend.name == "cuda" and not ridge else None,
            precision=torch.float64 if ridge else None,
            sample=RowSample(_SCORED_ROWS, _SCORED_DRAWS) if self._scored else None,
        )

    def watch(self, arrival: Arrival) -> None:
        """Raise NonFiniteError for NaN or Inf; where looking would wait, :meth:`finish` does."""
        self._watch.look(arrival.x, arrival.point.name, arrival.point.kind)

    def collect(self, arrival: Arrival, batch: Batch) -> None:
        """Add the rows or patches of one microbatch at one call."""
        begin = time.perf_counter()
        layer, x = arrival.point, arrival.x
        rule = self._rules.of(layer, arrival.call, batch)
        seen = self._row_to_sample is None  # else it is the caller's word
        if seen and rule is None:
            self._row_note = "its rows belong to no sample: all are taken"
        elif seen and rule is not None and rule.outer > 1:
            row = "j" if rule.inner == 1 else f"(j // {rule.inner})"
            self._row_note = f"row j belongs to sample {row} mod N, for N samples"
        self._inputs.add(
            layer,
            x,
            arrival.call,
            layer.output_size(arrival.args, arrival.kwargs, tuple(x.shape[2:])),
            size=batch.size,
            start=batch.start,
            labels=None if self._reading is None else batch.read(self._reading, x.device),
            rule=rule,
            mask=self._mask(layer, x, batch),
            raw=self._inputs.raw and x.dtype.itemsize >= 4 and batch.holds(x),
        )
        self.is_expert |= self._inputs.ownerless
        self.seconds += time.perf_counter() - begin

    def _mask(self, layer: Layer, x: Tensor, batch: Batch) -> Tensor | None:
        """Which tokens count: those that are no padding, of a head maybe the last ones alone."""
        if not self.task.head or self.task.labels.of_rows or self._row_to_sample is not None:
            return batch.mask
        if id(layer) not in self._rules.last_tokens:
            if layer.geometry is None and x.ndim == 3 and x.shape[1] > 1 and not self._row_note:
                self._row_note = "all rows of a sample are taken with its label"
            return batch.mask
        self._row_note = "only the last token of a sample is read: the others are left out"
        return last_tokens(batch.mask, batch.size, x.shape[1])

    @property
    def count(self) -> int:
        """Rows or patches collected."""
        return self._inputs.count

    def packed(self, total: int) -> Message:
        """What was collected, for :meth:`merge` elsewhere, where all have ``total`` rows."""
        self._watch.check(self.name, self.layers[0].kind)
        inputs = self._inputs.packed(total)
        return Message((inputs.meta, self.is_expert, self._row_note), inputs.tensors)

    def merge(self, message: Message) -> None:
        """Add what another process has collected, of the samples that follow."""
        inputs, is_expert, note = message.meta
        device = self.layers[0].get_weight().device
        self._inputs.merge(Message(inputs, message.tensors), device)
        self.is_expert |= is_expert
        self._row_note = self._row_note or note

    def written(self) -> list[Tensor]:
        """The parameters that a solution is written to."""
        roles = [("weight", self.layers), ("bias", writable_biases(self.layers))]
        return [x for role, layers in roles for layer in layers for x in layer.parameters(role)]

    def finish(self, guard: ModelGuard) -> LayerReport:
        """Solve from everything collected, write the weights, and report.

        Raises:
            NonFiniteError, SolverError: inputs are not finite; the equation could not be solved.
        """
        begin = time.perf_counter()
        kind = self.layers[0].kind
        self._watch.check(self.name, kind)
        rows, outputs = self.count, self.layers[0].get_weight().shape[1]
        if self.is_expert and rows < outputs:
            few = f"{rows} rows, fewer than its {outputs} outputs" if rows else "no rows"
            self.reset()
            return LayerReport(self.name, kind, "skipped", f"an expert that got {few}")
        stats = self._inputs.statistics(self._backend, self.task.code.reducible)
        if stats is None:
            raise non_finite_input(self.name, kind)
        if self.layers[0].centers_rows:
            stats = without_constant(stats)
        sampled = None if self._inputs.sample is None else self._inputs.sample.rows()
        self.held_out = None if sampled is None else held_out(sampled)
        report = solve_and_write(self.layers, self.task, stats, self._inputs.dtype, guard)
        notes = [*self.notes, self._row_note, self._inputs.note]
        report.notes.extend(note for note in notes if note)
        self.seconds += time.perf_counter() - begin
        report.seconds = self.seconds
        self.reset()
        return report
