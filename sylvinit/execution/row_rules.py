"""Whose the rows of every layer's input are: seen by replacing one sample, not guessed from shapes.

In evaluation mode samples do not influence each other. So the model runs on a few samples, and once
more with one of them replaced: the rows that change belong to that one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sylvinit.execution.backup import TensorBackup
from sylvinit.execution.batches import Batch
from sylvinit.execution.guard import CallerModes, ModelGuard, forward_modes, same_random_numbers
from sylvinit.execution.notes import noted
from sylvinit.execution.survey import SURVEY_SAMPLES, Survey
from sylvinit.model import Layer
from sylvinit.model.modules import is_hidden
from sylvinit.moments.rows import BATCH_FIRST, RowRule

_OTHER_SAMPLES = 3  # by which rules are confirmed
_CANDIDATES = 64  # in which another sample is looked for
# Samples that are replaced where samples see each other. Of rows that are sorted over all samples,
# some stay where they were by chance, but hardly those of each of so many.
_REPLACED = 8
# Change of a row, relative to its size, that may be rounding where sums are taken in another order
# every time. On the CPU they are not, and deep networks at their own start (branches scaled by
# 1e-5) pass on so little of the data that every bit counts.
_ROUNDING = 2.0**-21
# The same, in units of the type, where no rule fits otherwise: sums of other rows are taken in
# another order as well (experts, whose rows are more or fewer when a sample is replaced).
_COARSE = 2.0**8

# A layer's id and the number of the call.
Place = tuple[int, int]
# By the bits that have changed, and by changes above rounding.
Candidates = tuple["RowRule | None", "RowRule | None"]
Shapes = tuple[tuple[int, ...], ...]


@dataclass
class RowRules:
    """The rules of layers' inputs, for every shape of the model's; None where rows follow none."""

    found: dict[Shapes, dict[Place, RowRule | None]] = field(default_factory=dict)
    constant: set[int] = field(default_factory=set)  # layers whose input does not depend on data
    # Layers of which only the output at the last token of a sample reaches the model's output.
    last_tokens: set[int] = field(default_factory=set)

    def of(self, layer: Layer, call: int, batch: Batch) -> RowRule | None:
        """The rule of a layer at a call; what was not seen is like the first batch and call."""
        found = self.found.get(_shapes(batch)) or next(iter(self.found.values()), {})
        return found.get((id(layer), call), found.get((id(layer), 0), BATCH_FIRST))


@dataclass(frozen=True)
class _Print:
    """A number that tells a row from another one."""

    value: Tensor  # (rows,)
    rounding: Tensor  # (2, rows), as fine and as coarse as it may be
    batch_first: bool


def find_row_rules(
    survey: Survey,
    batches: list[Batch],
    call: Callable[[Batch], Any],
    caller: CallerModes,
    guard: ModelGuard,
) -> RowRules:
    """Run the model twice on the first samples of a batch, the second time with one replaced.

    Done once more for inputs of every other shape where the number of rows does not tell what
    becomes of a rule. Where no two of the samples differ, every input counts as batch first.
    """
    rules = RowRules()
    look = _Look(survey, call, caller, guard)
    for batch in (batch for batch in batches if batch.size > 1):
        shapes = _shapes(batch)
        if shapes not in rules.found:
            rules.found[shapes] = _rules_of(look, batch, rules.constant, first=not rules.found)
        first = next(iter(rules.found.values())).values()
        if not any(rule and rule.outer > 1 and rule.inner > 1 for rule in first):
            break
    return rules


def _shapes(batch: Batch) -> Shapes:
    return tuple(tuple(shape[1:]) for shape in batch.shapes())


def _rules_of(
    look: _Look, batch: Batch, constant: set[int], *, first: bool
) -> dict[Place, RowRule | None]:
    """The rules for one shape; layers that look constant for the first one join ``constant``."""
    samples = batch.size if look.survey.whole else SURVEY_SAMPLES
    others = {index: batch.other_sample(index, _CANDIDATES) for index in range(samples)}
    others = {index: other for index, other in others.items() if other is not None}
    if 1 not in others:
        return {}
    found, unchanged = _compare_some(look, batch, others)
    if first:
        found.update(_nobodys(look.survey, found, unchanged))
        # Inputs that samples share, such as the edges of a graph, are data and are not replaced.
        shared = any(shape[:1] != (batch.size,) for shape in batch.shapes())
        still: set[int] = set()
        before: dict[Place, _Print] = {}
        if unchanged and not (look.survey.whole and shared):
            before, after = (look(x.head(samples)) for x in (batch, batch.replaced(others)))
            _, still = _compare(before, after, min(samples, batch.size))
        silent = unchanged & still - {at for (at, _), x in before.items() if bool(x.value.any())}
        if silent:  # more may arrive once the layers before are solved
            heard, unheard = _compare_some(replace(look, loud=True), batch, others)
            silent -= unheard
            found.update((at, rule) for at, rule in heard.items() if at[0] in silent)
        constant.update((unchanged & still) - silent)
        # The others see rows of other samples alone (experts).
        found.update(((layer, 0), None) for layer in unchanged - still)
    return found


def _compare_some(
    look: _Look, batch: Batch, others: Mapping[int, int]
) -> tuple[dict[Place, RowRule | None], set[int]]:
    """Rules from a few samples or a whole batch, and ids of layers of which no row has changed."""
    if look.survey.whole:
        return _compare_each(look, batch, others)
    rules, unchanged = _compare_few(look, batch, others)
    return {at: fine or coarse for at, (fine, coarse) in rules.items()}, unchanged


def _compare_few(
    look: _Look, batch: Batch, others: Mapping[int, int]
) -> tuple[dict[Place, Candidates], set[int]]:
    """Rules from two samples, confirmed by three, and ids of layers of which no row has changed."""
    replaced = batch.replaced({1: others[1]})
    samples = SURVEY_SAMPLES
    rules, unchanged = _compare(look(batch.head(samples)), look(replaced.head(samples)), samples)
    with suppress(Exception):  # a model that does not take so many
        samples = min(_OTHER_SAMPLES, batch.size)
        before = look(batch.head(samples))
        again, _ = _compare(before, look(replaced.head(samples)), samples)
        rules = {at: _agreed(x, again.get(at, x)) for at, x in rules.items()}
        if others[1] == 0:  # the two differ
            after = look(batch.replaced({0: 1, 1: 0}).head(samples))
            for at, candidates in rules.items():
                changed = _changed(before.get(at), after.get(at))
                rules[at] = _moved_along(candidates, changed, samples)
    return rules, unchanged


def _compare(
    before: Mapping[Place, _Print], after: Mapping[Place, _Print], samples: int
) -> tuple[dict[Place, Candidates], set[int]]:
    """Rules, and ids of the layers of which no row has changed."""
    found: dict[Place, Candidates] = {}
    for place in before.keys() | after.keys():
        changed = _changed(before.get(place), after.get(place))
        if changed is None or changed.numel() == 0 or bool(changed.any()):
            found[place] = _fitted(changed, samples, 1, before.get(place))
    return found, {layer for layer, _ in before} - {layer for layer, _ in found}


def _nobodys(
    survey: Survey, found: Mapping[Place, RowRule | None], unchanged: set[int]
) -> Iterator[tuple[Place, None]]:
    """Experts, as the survey of more samples has seen them: no rows of these, or another number."""
    if survey.samples < SURVEY_SAMPLES:  # it was another batch
        return
    for layer in survey.layers:
        place, shape = (id(layer), 0), survey.shapes[id(layer)]
        rows = prod(shape[:-1]) if layer.geometry is None else shape[0]
        rule = found.get(place)
        unseen = place not in found and not {id(layer)} & (unchanged | survey.hidden)
        if unseen or (rule is not None and rule.fitted(rows, survey.samples) is None):
            yield place, None


def _compare_each(
    look: _Look, batch: Batch, others: Mapping[int, int]
) -> tuple[dict[Place, RowRule | None], set[int]]:
    """The same from all samples of a batch, where the model takes no fewer.

    A rule is confirmed by replacing another sample, in place of another number of samples.
    """
    before = look(batch)
    changes: dict[Place, dict[int, Tensor | None]] = {}
    rules: dict[Place, Candidates] = {}
    for index in islice(others, _REPLACED):
        after = look(batch.replaced({index: others[index]}))
        for place in before.keys() | after.keys():
            changed = _changed(before.get(place), after.get(place))
            changes.setdefault(place, {})[index] = changed
            if changed is None or changed.numel() == 0 or bool(changed.any()):
                rule = _fitted(changed, batch.size, index, before.get(place))
                rules[place] = _agreed(rule, rules.get(place, rule))
        if index != next(iter(others)) and all(map(any, rules.values())):
            break
    found = {at: fine or coarse for at, (fine, coarse) in rules.items()}
    for place, rule in found.items():
        if rule is None and place in before and before[place].batch_first:
            found[place] = _rule_of_mixed(changes[place], batch.size)
    return found, {layer for layer, _ in before} - {layer for layer, _ in found}


def _fitted(changed: Tensor | None, samples: int, replaced: int, x: _Print | None) -> Candidates:
    if changed is None or x is None:
        return None, None
    fine, coarse = (
        fit_rule(rows, samples, replaced, batch_first=x.batch_first) if bool(rows.any()) else None
        for rows in changed
    )
    # That rounding changes all rows does not mean that the model mixes its samples.
    only_rounding = bool(changed[0].all()) and bool(changed[1].any())
    return (coarse if only_rounding else fine), coarse


def _agreed(one: Candidates, two: Candidates) -> Candidates:
    fine, coarse = (a if a == b else None for a, b in zip(one, two, strict=True))
    return fine, coarse


def _moved_along(candidates: Candidates, changed: Tensor | None, samples: int) -> Candidates:
    """Rules by which rows change places with the first two samples.

    Rows that are sorted over all samples stay where they are, and those of a random order may move
    to another sample's.
    """
    if changed is None:
        return candidates

    def kept(rule: RowRule | None, rows: Tensor) -> RowRule | None:
        if rule is None or bool(rows.all()):  # the model mixes its samples
            return rule
        owned = torch.from_numpy(rule.owners(samples) < 2)
        return rule if bool(rows.any()) and not bool((rows & ~owned).any()) else None

    return kept(candidates[0], changed[0]), kept(candidates[1], changed[1])


def _rule_of_mixed(changes: Mapping[int, Tensor | None], samples: int) -> RowRule | None:
    """Batch first, for samples that see each other (the nodes of a graph), or None.

    That is if some of a sample's own rows have changed, whichever was replaced; for one of them,
    all units may be inactive.
    """
    own, each = 0, 1
    for index, changed in changes.items():
        if changed is None:
            return None
        rows = changed[int(bool(changed[1].any()))].unflatten(0, (samples, -1))
        own, each = own + bool(rows[index].any()), rows.shape[1]
    return RowRule(1, each) if own >= min(len(changes), _REPLACED - 1) else None


def fit_rule(changed: Tensor, samples: int, replaced: int, *, batch_first: bool) -> RowRule | None:
    """The rule by which the rows that changed belong to the sample that was replaced.

    Rows that belong to it and did not change (a class token before the first attention) fit any
    rule. Where all rows have changed, the model mixes its samples (normalization by the statistics
    of the batch), and the shape has to do.

    Args:
        changed: bool (rows,), some of them.
        samples: that the model ran on.
        replaced: which of them was replaced.
        batch_first: whether the first axis of the input is as long as the batch.
    """
    each, rest = divmod(len(changed), samples)
    if rest:
        return None
    if samples > 1 and bool(changed.all()):
        return RowRule(1, each) if batch_first else None
    for outer in range(1, each + 1):
        if each % outer == 0:
            rule = RowRule(outer, each // outer)
            owned = torch.from_numpy(rule.owners(samples) == replaced)
            if not bool((changed & ~owned).any()):
                return rule
    return None


@dataclass(frozen=True)
class _Look:
    """Prints of the inputs of all layers at all calls, when the model runs on a batch."""

    survey: Survey
    call: Callable[[Batch], Any]
    caller: CallerModes
    guard: ModelGuard
    loud: bool = False  # with weights of a usual size in place of the model's

    def __call__(self, batch: Batch) -> dict[Place, _Print]:
        found: dict[Place, _Print] = {}
        calls: Counter[nn.Module] = Counter()
        asking = False

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            nonlocal asking
            if asking:  # a layer for its input, for which it may call its module
                return
            number = calls[module]
            calls[module] += 1
            for layer in self.survey.points[module]:
                if not isinstance(layer, Layer):
                    continue
                asking = True
                try:
                    x = layer.input(args, kwargs)
                finally:
                    asking = False
                if not is_hidden(x):
                    found[id(layer), number] = _print_of(layer, x, batch.size)

        with ExitStack() as stack:
            stack.callback(self.guard.restore_forward)
            stack.enter_context(_without_zeros(next(iter(self.survey.names)), loud=self.loud))
            for module in self.survey.points:
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(same_random_numbers())
            stack.enter_context(forward_modes(self.caller))
            stack.enter_context(noted(batch, "to see whose the rows of layers' inputs are"))
            self.call(batch)
        return found


@contextmanager
def _without_zeros(model: nn.Module, *, loud: bool) -> Iterator[None]:
    """Parameters that are all zero have other values: nothing would get through, and be seen.

    ``loud``: so have all weights. Biases stay zero: they stop nothing, and what small weights pass
    on would drown in others.
    """
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        for name, parameter in model.named_parameters():
            dense = parameter.is_floating_point() and parameter.layout == torch.strided
            dense &= not name.endswith("bias") and parameter.numel() > 0
            matrix = loud and parameter.ndim > 1
            if dense and (matrix or not bool(parameter.any())):
                stack.callback(TensorBackup(parameter).restore)
                noise = torch.randn(parameter.shape, generator=generator)
                if matrix:
                    noise /= noise[0].numel() ** 0.5
                with torch.inference_mode(parameter.is_inference()), torch.no_grad():
                    parameter.copy_(noise)
        yield


def _print_of(layer: Layer, x: Tensor, samples: int) -> _Print:
    features = 1 if layer.geometry is None else x.ndim - 1
    rows = x.detach().reshape(-1, x.shape[x.ndim - features :].numel()).cpu().double()
    waves = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64).mul(2.3).cos()
    units = torch.tensor(
        [0.0 if x.device.type == "cpu" else _ROUNDING, _COARSE * torch.finfo(x.dtype).eps]
    )
    rounding = rows.abs().sum(dim=1) * units[:, None]
    return _Print(rows @ waves, rounding, len(x) == samples)


def _changed(one: _Print | None, two: _Print | None) -> Tensor | None:
    """Which rows differ, by fine and coarse rounding, (2, rows); None where their number does."""
    if one is None or two is None or one.value.shape != two.value.shape:
        return None
    # Not "above": NaN counts as a change, for the layer to be looked at and named.
    return ~((one.value - two.value).abs() <= torch.maximum(one.rounding, two.rounding))
