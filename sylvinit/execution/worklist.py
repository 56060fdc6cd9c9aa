"""What is solved, as what, and what is left alone: from the survey, the options and the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod

from torch import nn

from sylvinit.backends import choose
from sylvinit.codes import Code, OneHot, Targets
from sylvinit.distributed import ALONE, Ranks
from sylvinit.errors import ModelError
from sylvinit.execution.batches import Batch
from sylvinit.execution.readings import ClassReading, TargetReading
from sylvinit.execution.row_rules import RowRules
from sylvinit.execution.skips import Skips, with_parametrizations
from sylvinit.execution.supervision import Supervision
from sylvinit.execution.survey import Survey
from sylvinit.execution.units import LayerUnit
from sylvinit.model import Layer
from sylvinit.model.batch_norm import Norm
from sylvinit.model.modules import memory_key, parameter_holders
from sylvinit.model.obstacles import FLAT, MAPPED, REMEDIES, Obstacle
from sylvinit.moments.row_labels import NO_LABELS
from sylvinit.moments.rows import rows_without_owner
from sylvinit.options import Options
from sylvinit.solve.task import LayerTask, writable_biases

Task = LayerUnit | Norm


class Worklist:
    """What is solved and calibrated, and what is not.

    Raises:
        LabelError: a code needs labels and there are none, or they exceed the head's outputs.
        ModelError: the head that is asked for never ran or is no layer, or the head is all there is
            to solve and cannot be.
        RowLayoutError: a code needs labels for rows that do not follow the samples.
    """

    def __init__(
        self,
        survey: Survey,
        options: Options,
        batches: list[Batch],
        rules: RowRules,
        ranks: Ranks = ALONE,
    ) -> None:
        self.task_of: dict[int, Task] = {}  # by the ids of layers and normalizations
        self.skips = Skips(survey, options)
        self.warnings: list[str] = []
        self.uses_labels = False
        self._survey, self.options = survey, options
        self._supervision = Supervision(batches, options, survey, ranks)
        self._rules, self._first_batch = rules, batches[0]
        self._holders = parameter_holders(survey.names)
        self._taken: Counter[tuple[object, ...]] = Counter()  # code entries that siblings have
        self._heads = self._find_heads()  # the last one gives its name to the report
        self._classifier = self._heads[-1] if self._heads else None  # solved or not
        groups = self._by_weight()
        self._leave_heads()
        self.head = self._heads[-1].name if self._heads else None
        for layers in groups:
            unit = self._unit(layers)
            self.task_of.update((id(layer), unit) for layer in layers)
        self.warnings.extend(dict.fromkeys(self._supervision.warnings))
        self._select_norms()
        self._give_gains()
        self.skips.add_rest()
        if survey.layers and all(id(layer) in rules.constant for layer in survey.layers):
            self.warnings.append(
                "no layer's input depends on the data, so that none is solved; what the model or "
                "forward_fn= reads of a batch must be tensors whose first axis is that of the "
                "samples, or lists of strings or other objects, one for each sample"
            )

    def in_order(self) -> list[Task]:
        """Units and normalizations, each once, in the order of their first calls."""
        tasks = (self.task_of.get(id(point)) for point in self._survey.order)
        return list({id(task): task for task in tasks if task is not None}.values())

    @property
    def head_left_out(self) -> bool:
        """Whether include and exclude leave the classifier out."""
        classifier = self._classifier
        return classifier is not None and not self.options.selects(classifier.name)

    def lines(self) -> Iterator[str]:
        """What is done to every layer, as far as it must be the same on all ranks."""
        for task in self.in_order():
            if isinstance(task, LayerUnit):
                asked, labels = task.task, task.task.labels
                yield (
                    f"{task.name}: {asked.code.name}, lam {asked.lam:g}, {asked.patches} patches, "
                    f"from component {asked.skip}, head {asked.head}, {labels.classes} classes, "
                    f"{labels.targets} targets"
                )
            else:
                yield f"{task.name}: calibrated, {task.gain}"
        for report in self.skips.reports.values():
            yield f"{report.name}: left alone, {report.reason}"

    def _unwanted(self, point: Layer | Norm) -> str | Obstacle | None:
        """Why a layer or normalization is not asked for, or cannot be looked at."""
        options = self.options
        kept = options.kept and (options.head_only or isinstance(point, Layer))
        if kept and (options.keeps_head or point not in self._heads):
            return options.kept
        if isinstance(point, Norm) and not options.calibrate_norm:
            return options.kept or "not asked for: calibrate_norm is false"
        if not options.selects(point.name):
            return "not selected by include and exclude"
        if id(point) in self._survey.hidden:
            return MAPPED
        if id(point) in self._rules.constant:
            return "its input does not depend on the data"
        return None

    def _find_heads(self) -> list[Layer]:
        """The classifier, last, those whose outputs are added to its own, and auxiliary ones.

        These are outputs of the network as the classifier's is, which is the first of them.
        """
        head = self._find_head()
        if head is None:
            return []
        whole = [x for x in self._survey.layers if self.skips.reason(x) is not FLAT]
        if head not in whole:
            return [head]
        alike = {x.module: x for x in whole if _outputs(x) == _outputs(head)}
        answers = [x for x in self._survey.sums if x.keys() & alike.keys()]
        if self.options.head is not None or not self._shares(head):
            answers = [self._shares(head)]
        elif head.module not in answers[0]:
            head = [x for module, x in alike.items() if module in answers[0]][-1]
        of_answers = {module for shares in answers for module in shares}
        return [*(x for m, x in alike.items() if m in of_answers and x is not head), head]

    def _shares(self, head: Layer) -> dict[nn.Module, float]:
        """What the network's output is a weighted sum of, if the head's output is among that."""
        return next((x for x in self._survey.sums if head.module in x), {})

    def _find_head(self) -> Layer | None:
        """The classifier: the layer named by ``head=``, or the one whose last call was the last.

        None where a product outside of all layers comes after that.
        """
        survey, options = self._survey, self.options
        why = survey.recognized.reasons
        if options.head is not None:
            for layer in survey.layers:
                if layer.name == options.head:
                    return layer
            named = [module for module, name in survey.names.items() if name == options.head]
            wrong = "is not a layer that ran and can be solved" if named else "names no module"
            wrong += "".join(f": it {why[x]}" for x in named if x in why)
            layers = _names(survey.layers)
            raise ModelError(f"head={options.head!r} {wrong}; the layers are {layers}")
        if survey.final_parameter is None:
            return survey.last
        text = (
            "the classifier seems to be no layer, for a product with the parameter "
            f"{survey.final_parameter} follows the last one, {_names(survey.layers[-1:])}"
        )
        holder = survey.final_parameter.rpartition(".")[0]
        text += "".join(
            f"; {holder} {why[x]}" for x, n in survey.names.items() if n == holder and x in why
        )
        if options.head_only:
            raise ModelError(f"{text}; name the layer that is meant with head=")
        if not isinstance(self._supervision.classes, str):
            self.warnings.append(f"{text}: no head is solved; head= names one")
        return None

    def _leave_heads(self) -> None:
        """Forget heads that cannot be solved, with a warning for those that were selected."""
        left = [head for head in self._heads if head.name in self.skips.reports]
        all_left = len(left) == len(self._heads)
        for head in reversed(left):  # the last one is what people call the head
            report = self.skips.reports[head.name]
            text = f"the head {report.title} is not solved: {report.reason}"
            if self.options.head_only and (all_left or head.name == self.options.head):
                kinds = [REMEDIES[kind] for kind in report.remarks]
                remedy = kinds[0] if kinds else "untie or unfreeze this one"
                raise ModelError(f"{text}; name another layer with head=, or {remedy}")
            if self.options.selects(head.name) and not self.options.keeps_head:
                self.warnings.append(text)
        self._heads = [head for head in self._heads if head not in left]

    def _by_weight(self) -> list[list[Layer]]:
        """Layers that may be solved, grouped by the weight they share, in order of first calls."""
        groups: dict[tuple[object, ...], list[Layer]] = {}
        for layer in self._survey.layers:
            reason = self._unwanted(layer) or self.skips.reason(layer)
            if reason is None:
                key = (*map(memory_key, layer.parameters("weight")), layer.slot)
                groups.setdefault(key, []).append(layer)
            else:
                self.skips.add(reason, layer)
        chosen: list[list[Layer]] = []
        for layers in groups.values():
            reason = self._reason_of_sharing(layers)
            if reason is None:
                chosen.append(layers)
            else:
                self.skips.add(reason, *layers)
        return chosen

    def _reason_of_sharing(self, layers: list[Layer]) -> str | None:
        """Why a weight that several modules hold is not solved."""
        uses = {
            (type(x), x.get_weight().shape, *(p.stride() for p in x.parameters("weight")))
            for x in layers
        }
        if len(uses) > 1:
            return "its weight is tied to a layer that uses it in another shape"
        owners = with_parametrizations({layer.owner for layer in layers})
        for parameter in layers[0].parameters("weight"):
            for module in self._holders.get(memory_key(parameter), []):
                if module not in owners:
                    name, kind = self._survey.names[module], type(module).__name__
                    return f"its weight is tied to {name} ({kind}), which is not solved"
        return None

    def _unit(self, layers: list[Layer]) -> LayerUnit:
        survey, options = self._survey, self.options
        first = layers[0]
        weight = first.get_weight()
        groups, outputs, _ = weight.shape
        heads = [head for head in self._heads if head in layers]
        is_head = bool(heads)
        names_report = is_head and self._heads[-1] in heads
        found = self._supervision.of_head(first) if is_head else ""
        if isinstance(found, str):
            code = self._hidden_code(first)
            reading = self._supervision.of_code(code, first) if code.needs_labels else None
            if names_report:
                self.warnings.append(
                    f"the head {first.name or '(model)'} is solved with code {code.name!r} and "
                    f"without labels: {found}"
                )
        else:
            code, reading = found
        self.uses_labels |= reading is not None
        if reading is not None and self._is_ownerless(first):
            raise rows_without_owner(first.name, survey.shapes[id(first)])
        solves_head = is_head and isinstance(code, (OneHot, Targets))
        skip = 0
        if options.siblings == "split" and not solves_head:
            key = (survey.inputs[id(first)], code.name)
            skip = self._taken[key]
            self._taken[key] += outputs
        kind = NO_LABELS if reading is None else reading.kind
        whole = solves_head and kind.of_rows and not options.patches_given
        with_bias = solves_head and bool(writable_biases(layers))
        task = LayerTask(
            code=code,
            lam=options.lam(first.name),
            patches=None if whole else options.patches,
            seed=options.seed,
            skip=skip,
            head=solves_head,
            labels=kind,
            balanced=options.balance,
            rescale=options.rescale == "variance" and not is_head,
            units=reading.units if isinstance(reading, TargetReading) else None,
            share=self._share(first) if solves_head else 1.0,
            shrunk=options.shrinks_head and isinstance(code, Targets) and with_bias,
        )
        calls = sum(survey.calls[module] for module in {layer.module for layer in layers})
        backend = choose(options.backend, weight.device)
        said = survey.recognized.notes
        notes = [said[layer.module] for layer in layers if layer.module in said]
        if solves_head and names_report and len(self._heads) > 1:
            others = [head for head in self._heads if head not in heads]
            added = all(head.module in self._shares(first) for head in others)
            how = "the network's output is a weighted sum of all" if added else "outputs as well"
            notes.append(f"heads as well: {_names(others)}; {how}")
        unit = LayerUnit(
            layers,
            calls,
            task,
            backend,
            options.row_to_sample,
            self._rules,
            notes,
            reading,
            scored=options.gated and solves_head and names_report and reading is not None,
        )
        if solves_head and isinstance(reading, ClassReading):
            rest = groups * outputs - reading.present
            if rest > 0 and groups * outputs > 1:
                kind_of_rest = "never win" if unit.without_equation else "are zero"
                self.warnings.append(
                    "fewer classes in the data than outputs of the head: "
                    f"{reading.present} of {groups * outputs}; the other outputs of "
                    f"{first.name or '(model)'} {kind_of_rest}"
                )
        return unit

    def _share(self, head: Layer) -> float:
        """The factor of every head's solution with which their weighted sum solves the equation."""
        shares = self._shares(head)
        added = [shares[other.module] for other in self._heads if other.module in shares]
        return 1 / sum(added) if len(added) > 1 else 1.0

    def _hidden_code(self, layer: Layer) -> Code:
        """The code that was asked for, else that of the preset."""
        code = self.options.code(layer.name)
        if code is not None:
            return code
        preset, first = self.options.preset, layer is self._survey.layers[0]
        labeled = preset.supervised and not first and not self._is_ownerless(layer)
        labeled = labeled and self._supervision.suits_preset(preset.name)
        rectified = layer.module in self._survey.rectified
        return preset.hidden(first=first, labeled=labeled, rectified=rectified)

    def _is_ownerless(self, layer: Layer) -> bool:
        """Whether nobody knows which rows of the layer's input belong to which sample."""
        known = self.options.row_to_sample is not None
        return not known and self._rules.of(layer, 0, self._first_batch) is None

    def _select_norms(self) -> None:
        norms = self._survey.norms
        without = [norm.name for norm in norms if norm.module.running_mean is None]
        if without:
            self.warnings.append(
                "normalization by the statistics of the microbatch, so that the weights depend on "
                f"microbatch=: {', '.join(without)}"
            )
        for norm in norms:
            reason = self.skips.reason(norm) or self._unwanted(norm)
            if reason is None:
                self.task_of[id(norm)] = norm
            else:
                self.skips.add(reason, norm)

    def _give_gains(self) -> None:
        """A scale for normalizations that end a branch whose last layer is solved."""
        options, branches = self.options, self._survey.branches
        gain = options.gain_of_branches(len(branches))
        for norm in self._survey.norms:
            norm.gain = None  # a worklist before this one may have given one
        solved = {x.module for x in self._survey.layers if id(x) in self.task_of}
        ends = {branch.norm for branch in branches if branch.layer in solved}
        norms = [x for x in self._survey.norms if id(x) in self.task_of and x.module in ends]
        for norm in norms:
            weight = norm.module._parameters.get("weight")  # else none, or computed from others
            # Another holder would get the gain, too, and need not end a branch.
            if weight is not None and len(self._holders[memory_key(weight)]) == 1:
                norm.gain = gain
        asked = options.branch_gain not in ("none", options.preset.branch_gain)
        if asked and all(norm.gain is None for norm in norms):
            self.warnings.append(
                "branch_gain has no effect: no batch normalization that is calibrated and has a "
                "scale of its own ends a residual branch whose last layer is solved"
            )


def _outputs(layer: Layer) -> int:
    return prod(layer.get_weight().shape[:2])


def _names(layers: list[Layer]) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names if len(names) <= 8 else ["...", *names[-8:]])
