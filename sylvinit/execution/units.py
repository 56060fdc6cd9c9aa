"""A unit: all layers that share one weight, the moments of all their calls, and one solution."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sylvinit.backends import Backend
from sylvinit.backends.memory import memory_for
from sylvinit.codes import Code, Logistic, OneHot, needs_sample_means
from sylvinit.errors import ModelError
from sylvinit.execution.batches import Batch
from sylvinit.execution.finite import InputWatch, non_finite_input
from sylvinit.execution.guard import ModelGuard
from sylvinit.execution.lockstep import Arrival
from sylvinit.model import Layer
from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments.collect import add_sample_means
from sylvinit.moments.patch_source import PatchSource, add_all, add_rows, add_sampled
from sylvinit.moments.rows import RowToSample, assign_rows
from sylvinit.moments.sampling import Key, stream_key
from sylvinit.moments.statistics import LayerStatistics, SampleStatistics, layer_statistics
from sylvinit.moments.streaming import PatchMoments, product_precision
from sylvinit.report import LayerReport
from sylvinit.solve.classifier import solve_classifier
from sylvinit.solve.equation import LayerSolution, solve_layer
from sylvinit.solve.feature_scales import too_small, unlike_scales
from sylvinit.solve.scaling import output_std, scale_rows


@dataclass(frozen=True)
class Plan:
    """What is asked of a unit.

    Attributes:
        code: of its outputs.
        lam: weight of the encoding loss.
        patches: per sample, or None for all.
        seed: of the patch positions and of the code.
        skip: code entries that earlier siblings have taken.
        head: whether this is the classifier with one-hot codes.
        classes: number of classes, if the code needs them.
        rescale: scale rows to unit output variance; never those of the last layer.
    """

    code: Code
    lam: float
    patches: int | None
    seed: int
    skip: int
    head: bool
    classes: int
    rescale: bool


class LayerUnit:
    """The layers behind one weight (several if it is tied), solved once from all their inputs."""

    def __init__(
        self,
        layers: list[Layer],
        calls: int,
        plan: Plan,
        backend: Backend,
        row_to_sample: RowToSample | None,
    ) -> None:
        self.layers = layers
        self.calls = calls
        self.plan = plan
        self.seconds = 0.0
        self._backend, self._row_to_sample = backend, row_to_sample
        self.reset()

    @property
    def name(self) -> str:
        """Name of the first layer."""
        return self.layers[0].name

    @property
    def fits_likelihood(self) -> bool:
        """Whether the labels' likelihood is fitted in place of the layer's equation."""
        return isinstance(self.plan.code, Logistic) and self._why_one_hot() is None

    @property
    def lam(self) -> float:
        """Weight of the encoding loss; nan where there is no such loss."""
        return math.nan if self.fits_likelihood else self.plan.lam

    @property
    def _arithmetic(self) -> str | None:
        """Of the patch_gram operator, if this backend has it."""
        return "3xtf32" if self._backend.name == "cuda" else None

    def reset(self) -> None:
        """Forget what was collected."""
        self._moments: PatchMoments | None = None
        self._means: PatchMoments | None = None
        self._rows_of_means = 0
        self._channels: int | None = None
        self._dtype = torch.float64  # of the inputs, the coarsest of all calls
        self._raw = True  # all of them are the data themselves
        self._inputs = InputWatch()

    def watch(self, arrival: Arrival) -> None:
        """Look for NaN and Inf in an input.

        Raises:
            NonFiniteError: there is some; where looking would wait, :meth:`finish` raises it.
        """
        self._inputs.look(arrival.x, arrival.point.name, arrival.point.kind)

    def collect(self, arrival: Arrival, batch: Batch) -> None:
        """Add the rows or patches of one microbatch at one call."""
        begin = time.perf_counter()
        layer: Layer = arrival.point
        if torch.finfo(arrival.x.dtype).eps > torch.finfo(self._dtype).eps:
            self._dtype = arrival.x.dtype
        if self._raw:
            self._raw = arrival.x.dtype.itemsize >= 4 and batch.holds(arrival.x)
        labels = batch.labels_on(arrival.x.device) if self.plan.classes else None
        key = stream_key(self.plan.seed, layer.name, arrival.call)
        if layer.geometry is None:
            self._collect_rows(layer, arrival.x, batch, labels, key)
        else:
            self._collect_patches(layer.geometry, arrival, batch, labels, key)
        self.seconds += time.perf_counter() - begin

    def _accumulator(self, d_in: int, groups: int, dtype: torch.dtype) -> PatchMoments:
        if self._moments is None:
            plan = self.plan
            self._moments = PatchMoments(
                d_in,
                groups=groups,
                classes=plan.classes,
                reservoir=plan.code.reservoir,
                precision=product_precision(dtype, d_in * groups),
            )
        return self._moments

    def _collect_rows(
        self, layer: Layer, x: Tensor, batch: Batch, labels: Tensor | None, key: Key
    ) -> None:
        rows = assign_rows(
            layer.name,
            x,
            batch.size,
            features=1,
            mask=batch.mask,
            row_to_sample=self._row_to_sample,
        )
        source = PatchSource(x.reshape(-1, x.shape[-1]), None, 1, (), rows, labels)
        moments = self._accumulator(x.shape[-1], 1, x.dtype)
        add_rows(moments, source, key, batch.start, self.plan.patches, self._arithmetic)
        self._collect_means(moments, source, key, batch.start)

    def _collect_patches(
        self,
        geometry: PatchGeometry,
        arrival: Arrival,
        batch: Batch,
        labels: Tensor | None,
        key: Key,
    ) -> None:
        layer, x = arrival.point, arrival.x
        out_size = layer.output_size(arrival.args, arrival.kwargs, tuple(x.shape[2:]))
        rows = assign_rows(
            layer.name,
            x,
            batch.size,
            features=x.ndim - 1,
            width=math.prod(out_size),
            row_to_sample=self._row_to_sample,
        )
        self._channels = channels = x.shape[1] // layer.groups
        source = PatchSource(x, geometry, layer.groups, out_size, rows, labels)
        moments = self._accumulator(channels * geometry.taps, layer.groups, x.dtype)
        if self.plan.patches is None:
            add_all(moments, source, key, batch.start, self._arithmetic)
        else:
            add_sampled(moments, source, key, batch.start, self.plan.patches, self._arithmetic)
        self._collect_means(moments, source, key, batch.start)

    def _collect_means(
        self, moments: PatchMoments, source: PatchSource, key: Key, start: int
    ) -> None:
        """Add the mean row of every sample, if the code wants them."""
        if not needs_sample_means(self.plan.code):
            return
        if self._means is None:
            self._means = PatchMoments(
                moments.d_in,
                groups=moments.groups,
                classes=moments.classes,
                precision=moments.precision,
            )
        self._rows_of_means += add_sample_means(self._means, source, key, start, self.plan.patches)

    def finish(self, guard: ModelGuard) -> LayerReport:
        """Solve from everything collected, write the weights, and report.

        Raises:
            NonFiniteError: the input of the layer holds NaN or Inf.
            SolverError: the equation could not be solved.
        """
        begin = time.perf_counter()
        first = self.layers[0]
        self._inputs.check(first.name, first.kind)
        plan = self.plan
        with memory_for(f"the moments of {self.name}", self._moment_bytes()):
            moments = self._canonical(self._moments)
            stats, dead = self._statistics(moments)
        old_weight, old_bias = first.get_weight(), first.get_bias()
        held, old_weight = old_weight.dtype, old_weight.double()
        groups, outputs, _ = old_weight.shape
        seed = stream_key(plan.seed, self.name, -1)[0]
        what = f"the equation of {self.name} ({outputs} x {stats.d}, {stats.groups} groups)"
        with memory_for(what, stats.groups * (outputs + stats.d) ** 2 * 8):
            solution = (
                solve_classifier(stats, outputs, strength=plan.code.strength, steps=plan.code.steps)
                if isinstance(plan.code, Logistic) and self.fits_likelihood
                else solve_layer(
                    stats,
                    plan.code,
                    outputs,
                    plan.lam,
                    seed=seed,
                    skip=plan.skip,
                    constant=plan.head and bool(self._biased()),
                    fill=not plan.head,
                )
            )

        if plan.rescale:
            scaled = scale_rows(solution.weight, stats, self._dtype, held)
            solution.weight, solution.bias = scaled.weight, scaled.bias
            if scaled.rounding:
                solution.notes.append(
                    f"{scaled.rounding} rows not scaled: their output may be rounding of the inputs"
                )
            if scaled.too_large:
                solution.notes.append(f"{scaled.too_large} rows not scaled: too large for {held}")
        before, after = output_std(old_weight, stats), output_std(solution.weight, stats)
        report = LayerReport(
            name=self.name,
            kind=first.kind,
            status="solved",
            code=plan.code.name,
            lam=self.lam,
            d_in=moments.d_in,
            d_out=outputs,
            groups=groups,
            patches=moments.n,
            rank=solution.rank,
            filled=solution.filled_components + int(solution.mixed.sum(dim=1).max()),
            residual=solution.residual,
            std_before=float(before.square().mean().sqrt()),
            std_after=float(after.square().mean().sqrt()),
            notes=list(solution.notes),
        )
        if bool(solution.empty.all()):
            report.status = "skipped"
            report.reason = "dead inputs: they never vary, so there is nothing to solve for"
            report.std_after = report.std_before
        else:
            try:
                self._write(solution, old_weight, old_bias, guard)
            except ModelError as error:  # a parametrisation that cannot hold the solution
                guard.restore(first.owner, first.parameters("weight"))
                report.status, report.reason = "skipped", str(error)
                report.std_after = report.std_before
        self._remark(report, dead, solution, stats)
        self.seconds += time.perf_counter() - begin
        report.seconds = self.seconds
        self.reset()
        return report

    def _moment_bytes(self) -> int:
        """Of the moments of the rows and of those of their means by sample."""
        rows, means = self._moments, self._means
        if rows is None:
            return 0
        held = [rows] if means is None else [rows, means]
        # Where rows are fewer than features, they and their means stay as they are.
        dual = self.plan.code.reducible and rows.n < rows.d_in
        return sum(8 * m.groups * m.d_in * (m.n if dual else m.d_in) for m in held)

    def _statistics(self, moments: PatchMoments) -> tuple[LayerStatistics, int]:
        """Statistics of the input, and how many of its features never vary."""
        # Rows that are still held are asked first: the mean and the covariance would use them up.
        columns = moments.columns()
        finite = columns is None or bool(columns.isfinite().all())
        if finite:
            geometry = self.layers[0].geometry
            stats = layer_statistics(
                moments,
                self._backend,
                reduce=self.plan.code.reducible,
                kernel=() if geometry is None else geometry.kernel,
                raw=self._raw,
            )
            if needs_sample_means(self.plan.code):
                means = self._canonical(self._means)
                stats.samples = SampleStatistics.of(means, self._rows_of_means, stats.basis)
            if bool(stats.covariance.isfinite().all()):
                if columns is None:
                    return stats, int((stats.covariance.diagonal(dim1=1, dim2=2) <= 0).sum())
                return stats, int((columns == columns[:, :1]).all(dim=1).sum())
        raise non_finite_input(self.name, self.layers[0].kind)

    def _canonical(self, moments: PatchMoments | None) -> PatchMoments:
        """The moments with features in the order of the weight: channels first, then taps."""
        if moments is None:
            raise ModelError(f"layer {self.name} received no rows from the data")
        if self._channels is None:
            return moments
        return moments.transposed(moments.d_in // self._channels)

    def _write(
        self,
        solution: LayerSolution,
        old_weight: Tensor,
        old_bias: Tensor | None,
        guard: ModelGuard,
    ) -> None:
        dead = solution.empty[:, None]
        weight = torch.where(dead[:, :, None], old_weight, solution.weight)
        layer = self.layers[0]
        guard.save(layer.parameters("weight"))
        layer.set_weight(weight)
        for layer in self._biased():
            bias = layer.get_bias()
            if bias is not None:
                guard.save(layer.parameters("bias"))
                layer.set_bias(torch.where(dead, bias.double(), solution.bias))

    def _biased(self) -> list[Layer]:
        """The layers with a bias that may be written."""
        return [
            layer
            for layer in self.layers
            if layer.get_bias() is not None
            and all(parameter.requires_grad for parameter in layer.parameters("bias"))
        ]

    def _why_one_hot(self) -> str | None:
        """Why logistic codes are solved for as one-hot ones, or None if they are not."""
        if not self.plan.head:
            return "not the head"
        if self.layers[0].get_weight().shape[0] > 1:
            return "an equation for each group"
        if not self._biased():
            return "no bias" if self.layers[0].get_bias() is None else "no bias that may be written"
        return None

    def _remark(
        self, report: LayerReport, dead: int, solution: LayerSolution, stats: LayerStatistics
    ) -> None:
        """Notes on what makes a solution less useful than it could be."""
        if isinstance(self.plan.code, Logistic) and not self.fits_likelihood:
            report.notes.append(f"{self._why_one_hot()}: the one-hot equation is solved instead")
        if dead:
            report.remarks["dead inputs"] = f"{dead} of {report.groups * report.d_in} never vary"
        if any(layer.get_bias() is not None for layer in self.layers) and not self._biased():
            report.notes.append("its bias is frozen and left alone")
        if report.rank < report.d_out and not self.plan.head:
            report.remarks["rank < d_out"] = f"rank {report.rank}, {report.d_out} outputs"
        if report.patches < report.d_in:
            report.remarks["fewer rows than features"] = f"{report.patches} for {report.d_in}"
        if self.plan.head and isinstance(self.plan.code, (Logistic, OneHot)):
            kind, detail = "features of unlike scale", unlike_scales(stats)
            if not self.fits_likelihood:
                kind, detail = "features too small for lam", too_small(stats, self.plan.lam)
            if detail is not None:
                report.remarks[kind] = detail
        if solution.dropped:
            report.remarks["near-singular equation"] = f"{solution.dropped} pairs dropped"
