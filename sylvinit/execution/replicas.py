"""The same model on every rank: compared before, and written alike.

What is compared are lines of text, so that the first difference can be said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sylvinit.distributed import Message, Ranks
from sylvinit.errors import DataError, LabelError, ModelError
from sylvinit.execution.batches import Batch
from sylvinit.execution.guard import ModelGuard
from sylvinit.execution.row_rules import RowRules
from sylvinit.execution.survey import Survey
from sylvinit.model import Layer
from sylvinit.report import Report

SAME_ORDER = (
    "the first two samples of every rank decide, so these have to run the same layers: give every "
    "rank a part of the same data, or exclude= what depends on it"
)
_UNDO = "undo"
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Replicas:
    """The replicas of a model; what the leading rank writes, :meth:`share` writes on all others."""

    def __init__(self, model: nn.Module, ranks: Ranks, guard: ModelGuard) -> None:
        self.model, self.ranks, self.guard = model, ranks, guard
        self._compared: set[str] = set()

    def compare(self) -> None:
        """Raise RankError unless all ranks' parameters and buffers are equal, new ones since."""
        if self.ranks.alone:
            return
        lines = [
            f"{name}: {_described(holder._parameters.get(key, holder._buffers.get(key)))}"
            for name, (holder, key) in self._places().items()
            if name not in self._compared
        ]
        self._compared.update(self._places())
        remedy = (
            "every rank needs the same model: build it from the same torch.manual_seed, or "
            "torch.distributed.broadcast its parameters and buffers"
        )
        self.ranks.agree("models", lines, remedy)

    def share(self, found: Any, written: list[Tensor]) -> Any:
        """Write on every rank what the leading one has written.

        Args:
            found: of the leading rank, None on the others; returned on all.
            written: parameters and buffers that it has written.
        """
        if self.ranks.alone:
            return found
        message = None
        if self.ranks.leads and found is not None:
            names = {id(_held(*place)): name for name, place in self._places().items()}
            message = Message((found, [names[id(x)] for x in written]), written)
        message = self.ranks.broadcast("what was written", message)
        if not self.ranks.leads:
            self._write(message)
        return message.meta[0]

    def undo(self) -> None:
        """Put back all that was written, on every rank."""
        self.guard.undo()
        if len(self.ranks.members) < self.ranks.size:
            message = Message((_UNDO, [])) if self.ranks.leads else None
            self.ranks.broadcast("what was written", message)

    def share_report(self, report: Report | None) -> Report:
        """The report of the leading rank, which is the last that it says."""
        if self.ranks.alone and report is not None:
            return report
        message = None if report is None else Message((report, []))
        return self.ranks.broadcast("what was written", message).meta[0]

    def follow(self) -> Report:
        """Write what the leading rank writes, to the end; for a rank that has no samples."""
        for message in self.ranks.follow():
            if isinstance(message.meta[0], Report):
                return message.meta[0]
            if message.meta[0] == _UNDO:
                self.guard.undo()
            self._write(message)
        raise ModelError("the leading rank has sent no report")  # follow() does not end

    def _write(self, message: Message) -> None:
        places = self._places()
        for name, values in zip(message.meta[1], message.tensors, strict=True):
            if name not in places or is_lazy(_held(*places[name])):
                raise ModelError(
                    f"rank {self.ranks.rank} has no samples, and {name} is made by the model's "
                    "first forward; give every rank a sample, or run the model once before"
                )
            holder, key = places[name]
            target = _held(holder, key)
            if isinstance(target, nn.Parameter):
                self.guard.save([target])
            else:
                self.guard.keep_buffer(holder, key)
            with torch.inference_mode(target.is_inference()), torch.no_grad():
                target.copy_(values)

    def _places(self) -> dict[str, tuple[nn.Module, str]]:
        """The module and attribute of every parameter and buffer, by its name."""
        return {
            f"{prefix}.{key}" if prefix else key: (module, key)
            for prefix, module in self.model.named_modules()
            for held in (module._parameters, module._buffers)
            for key, tensor in held.items()
            if tensor is not None
        }


def _held(module: nn.Module, key: str) -> Tensor:
    held = module._parameters.get(key)
    return module._buffers[key] if held is None else held  # type: ignore[return-value]


def _described(x: Tensor | None) -> str:
    """Type, shape and a sum over the bits of a tensor."""
    if x is None or is_lazy(x):
        return "lazy"
    text = f"{x.dtype} {tuple(x.shape)}" + (", trained" if x.requires_grad else "")
    if x.layout != torch.strided or type(x.data) is not Tensor or x.is_quantized:
        return text
    whole = x.detach().contiguous().reshape(-1)
    bits = whole.view(_INTEGERS[min(whole.dtype.itemsize, 8)])
    return f"{text}, bits that add up to {int(bits.sum(dtype=torch.int64))}"


def in_one_stream(batches: list[Batch], most: int | None, ranks: Ranks) -> list[Batch]:
    """The batches of this rank with the numbers of samples that those of lower ranks leave.

    Ranks without samples are no members any more; no more than ``most`` samples are kept in all.

    Raises:
        DataError: no rank has samples.
        LabelError: some ranks have labels and some have none.
    """
    if ranks.alone:
        return batches
    own = sum(batch.size for batch in batches)
    labeled = batches[0].labels is not None if batches else None
    kinds = [_kinds(batch) for batch in batches[:1]]
    found = ranks.gather("numbers of samples", (own, labeled, kinds))
    counts = [count for count, _, _ in found]
    limit = sum(counts) if most is None else most
    ranks.choose_members([r for r, n in enumerate(counts) if n and sum(counts[:r]) < limit])
    if not ranks.members:
        raise DataError("data is empty on every rank: at least one sample is needed")
    if len({labeled for _, labeled, _ in found} - {None}) > 1:
        raise LabelError("the data of some ranks have labels and of some none; give all or none")
    start = sum(counts[: ranks.rank])
    moved = [replace(batch, start=start + batch.start) for batch in batches]
    kept = [batch.head(limit - batch.start) for batch in moved if batch.start < limit]
    if ranks.rank in ranks.members:
        ranks.agree("kinds of data", kinds[0], "give every rank a part of the same data")
    return kept


def _kinds(batch: Batch) -> list[str]:
    return sorted({f"a tensor of {x.ndim} axes, {x.dtype}" for x in batch.tensors()})


def share_rules(rules: RowRules, survey: Survey, ranks: Ranks) -> RowRules:
    """The rules that the first rank with such a shape has found, on all ranks."""
    if ranks.alone:
        return rules
    points = [point for found in survey.points.values() for point in found]
    place = {id(point): index for index, point in enumerate(points)}
    own = {
        shapes: {(place[layer], call): rule for (layer, call), rule in found.items()}
        for shapes, found in rules.found.items()
    }
    constant = sorted(place[layer] for layer in rules.constant)
    shared = RowRules()
    last = {place[layer] for layer in rules.last_tokens}
    found_by = ranks.gather("rules of rows", (own, constant, last))
    last = set.intersection(*(their_last for _, _, their_last in found_by))
    shared.last_tokens.update(id(points[index]) for index in last)
    for theirs, unchanged, _ in found_by:
        if theirs and not shared.found:
            shared.constant.update(id(points[index]) for index in unchanged)
        for shapes, found in theirs.items():
            if shapes not in shared.found:
                shared.found[shapes] = {
                    (id(points[index]), call): rule for (index, call), rule in found.items()
                }
    return shared


def survey_lines(survey: Survey) -> Iterator[str]:
    """What decides on the order of work."""
    inputs: dict[object, int] = {}
    for point in survey.order:
        kinds = [f"{survey.calls[point.module]} calls"]
        if isinstance(point, Layer):
            first = inputs.setdefault(survey.inputs[id(point)], len(inputs))
            kinds.append(f"input {first}")
        kinds += ["hidden"] if id(point) in survey.hidden else []
        for name in ("rectified", "addends", "bypassed"):
            kinds += [name] if point.module in getattr(survey, name) else []
        yield f"{point.name} ({point.kind}): {', '.join(kinds)}"
    yield f"last layer {survey.last and survey.last.name}"
    yield f"parameter behind the last layer: {survey.final_parameter}"
    yield f"{len(survey.branches)} residual branches"
    for shares in survey.sums:
        yield f"output: {[(survey.names[x], share) for x, share in shares.items()]}"


def share_calls(survey: Survey, ranks: Ranks) -> None:
    """How often modules were called at most, over all ranks."""
    if ranks.alone:
        return
    modules = list(survey.points)
    own = {modules.index(module): calls for module, calls in survey.most_calls.items()}
    for calls in ranks.gather("calls", own):
        for index, most in calls.items():
            survey.most_calls[modules[index]] = max(survey.most_calls[modules[index]], most)
