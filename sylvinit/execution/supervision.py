"""What the labels are for: which code the head gets, and how layers read the labels."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from sylvinit.codes import Code, Logistic, OneHot, Ridge, Targets, needs_sample_means, needs_targets
from sylvinit.distributed import ALONE, Ranks
from sylvinit.errors import LabelError, OptionError
from sylvinit.execution.batches import Batch
from sylvinit.execution.batches.labels import split_labels
from sylvinit.execution.batches.values import tensors_in
from sylvinit.execution.readings import (
    ClassReading,
    Head,
    TargetReading,
    read_classes,
    read_targets,
    whole_numbers,
)
from sylvinit.execution.survey import Survey
from sylvinit.model import Layer
from sylvinit.options import Options
from sylvinit.solve.task import writable_biases

Reading = ClassReading | TargetReading
# Up to so many classes their means are small beside the moments, and presets use them in any layer.
_MOST_DISCRIMINANT_CLASSES = 2**12


class Supervision:
    """The labels of the data, and what they are for a code.

    Raises:
        LabelError: the labels are none that a code which was asked for could use.
        OptionError: ``balance=True`` without classes.
    """

    def __init__(
        self, batches: list[Batch], options: Options, survey: Survey, ranks: Ranks = ALONE
    ) -> None:
        self.warnings: list[str] = []
        self._ranks = ranks
        self._batches, self._options, self._survey = batches, options, survey
        self._labels = [batch.labels for batch in batches if batch.labels is not None]
        self.classes = self._classes()
        if options.balance and isinstance(self.classes, str):
            raise OptionError(
                f"balance=True needs class labels, but {self.classes}; pass integer classes as "
                "(inputs, labels), or leave balance out"
            )

    def _classes(self) -> ClassReading | str:
        """The classes in the data, or why there are none that a code could use.

        Labels that nothing asks for need not be class labels; they are ignored.
        """
        options = self._options
        codes = [*options.code.values(), options.head_code]
        needed = any(code is not None and code.needs_labels for code in codes)
        if not self._labels:
            return "data has no labels"
        if not (needed or options.head_code is None or options.preset.supervised):
            return "no code uses labels"
        return read_classes(self._labels, options.ignore_index, self._ranks)

    # ------------------------------------------------------------------------------------- hidden

    def of_code(self, code: Code, layer: Layer) -> ClassReading:
        """How a hidden layer with a code that needs labels reads them.

        Raises:
            LabelError: they are no classes, or no classes of samples where the code needs those.
            OptionError: the code is for heads.
        """
        if needs_targets(code):
            raise OptionError(
                f"code {code.name!r} is for the head alone, and {layer.name} is not the head; pass "
                f"head_code={code.name!r}"
            )
        classes = self.classes
        if isinstance(classes, str):
            raise LabelError(
                f"code {code.name!r} of layer {layer.name} needs labels (integer classes), "
                f"but {classes}; pass (inputs, labels), or choose a code without labels"
            )
        if classes.kind.of_rows and needs_sample_means(code):
            raise LabelError(
                f"code {code.name!r} of layer {layer.name} needs one label a sample, and every row "
                "has its own; choose 'lda' or a code without labels"
            )
        return classes

    def suits_preset(self, preset: str) -> bool:
        """Whether a preset may use the labels in hidden layers."""
        classes = self.classes
        if isinstance(classes, str) or classes.kind.of_rows:
            return False
        few = classes.count <= _MOST_DISCRIMINANT_CLASSES
        if not few:
            text = (
                f"labels go up to {classes.count - 1}: with more than "
                f"{_MOST_DISCRIMINANT_CLASSES:,} classes preset {preset!r} uses no labels in "
                "hidden layers; number the classes from 0 without gaps, or ask for "
                "code='discriminant'"
            )
            if text not in self.warnings:
                self.warnings.append(text)
        return few

    # --------------------------------------------------------------------------------------- head

    def of_head(self, layer: Layer) -> tuple[Code, Reading | None] | str:
        """The head's code and how it reads the labels; or why its code is a hidden layer's.

        Raises:
            LabelError: the labels do not suit the code, the outputs or the rows of the head.
        """
        asked = self._options.head_code
        if asked is not None and not asked.needs_labels:
            return asked, None
        lenient = asked is None and not self._options.head_only
        if not self._labels and lenient:
            return "data has no labels"
        if not self._labels:
            code = asked or self._options.preset.labeled_head
            raise LabelError(
                f"code {code.name!r} of layer {layer.name} needs labels, but data has none; pass "
                "(inputs, labels)"
            )
        groups, outputs, _ = layer.get_weight().shape
        bias = bool(writable_biases([layer]))
        head = Head(layer.name, groups * outputs, layer.geometry is not None, bias)
        code, reading = self._read(head, asked)
        named = self._batches[0].named
        if isinstance(reading, str):
            if lenient and (named or not self._labels[0].is_floating_point()):
                return reading
            raise LabelError(f"labels do not suit the head {layer.name or '(model)'}: {reading}")
        if reading.kind.of_rows:
            why = self._misfit(layer, reading)
            if why is not None and lenient and named:
                return why
            if why is not None:
                raise LabelError(why)
            self._warn_of_equal_inputs()
        if isinstance(reading, TargetReading) and reading.constant:
            self.warnings.append(
                f"{reading.constant} of {head.outputs} targets never vary: those outputs of "
                f"{layer.name or '(model)'} get a bias alone"
            )
        return code, reading

    def _read(self, head: Head, asked: Code | None) -> tuple[Code, Reading | str]:
        options, classes = self._options, self.classes
        if asked is not None and needs_targets(asked):
            signs, skip = not isinstance(asked, Ridge), options.ignore_index
            return asked, self._targets(head, skip, signs)
        code = asked or options.preset.labeled_head
        first = self._labels[0]
        several = first.dtype == torch.bool and first.ndim > 1 and first.shape[1] > 1
        if asked is None and (first.is_floating_point() or several):
            targets = self._targets(head, None, True)
            if isinstance(targets, TargetReading) or isinstance(classes, str):
                return Targets(), targets
        if isinstance(classes, str):
            return code, classes
        if first.is_floating_point() and whole_numbers(first):
            self.warnings.append(
                f"labels are {first.dtype} whole numbers, and the head has {head.outputs} outputs: "
                "they are read as classes; pass integers"
            )
        if not isinstance(code, OneHot) or classes.count <= head.outputs:
            return code, self._balanced(classes, code)
        if head.outputs == 1 and classes.count == 2:
            if isinstance(code, Logistic) and head.bias:
                return code, self._balanced(classes, code)
            skip = options.ignore_index
            signs = self._targets(head, skip, True)
            return Targets(), signs if isinstance(signs, str) else self._balanced(signs, code)
        more = "" if head.outputs > 1 else "; for numbers pass floats"
        if asked is None and not options.head_only:
            return code, f"{classes.count} classes, {head.outputs} outputs{more}"
        raise LabelError(
            f"labels go up to {classes.count - 1}, but layer {head.name} has only {head.outputs} "
            f"outputs for {code.name} codes{more}"
        )

    def _targets(self, head: Head, skip: int | None, signs: bool) -> TargetReading | str:
        return read_targets(self._labels, head, ignore_index=skip, signs=signs, ranks=self._ranks)

    def _balanced(self, reading: Reading, code: Code) -> Reading:
        """The reading with rows weighted so that all classes count alike, if that is asked for.

        Logistic heads are fitted to the rows as they are, and get equal priors.
        """
        if not self._options.balance or isinstance(code, Logistic):
            return reading
        if isinstance(self.classes, str):
            return reading
        counts = torch.zeros(self.classes.count, dtype=torch.float64)
        for labels in self._labels:
            found = self.classes(labels).flatten()
            counts += torch.bincount(found[found >= 0], minlength=len(counts))
        counts = sum(self._ranks.gather("sizes of classes", counts), torch.zeros_like(counts))
        share = counts * self.classes.present / counts.sum()
        weights = torch.where(counts > 0, 1 / share, 1.0)
        return reading.with_weights(weights)

    def _misfit(self, layer: Layer, reading: Reading) -> str | None:
        """Why labels of rows do not suit the rows of the head, as the survey has seen them."""
        if self._options.row_to_sample is not None:
            return None
        shape, samples = self._survey.shapes[id(layer)], self._survey.samples
        labels = reading(self._labels[0])
        axes = tuple(labels.shape[1:-1] if reading.kind.targets else labels.shape[1:])
        if layer.geometry is not None:
            fits, have = len(shape) - 2 == len(axes), "x".join(map(str, shape[2:]))
        else:
            rows = prod(shape[:-1]) / samples
            fits = prod(axes) == rows or len(shape) - 2 == len(axes) > 1
            have = f"{rows:g}"
        if fits:
            return None
        return (
            f"labels of shape {tuple(self._labels[0].shape)} have {axes} for every sample, and the "
            f"head {layer.name or '(model)'} has {have} rows; pass one label for every row, or for "
            "every sample (several at once as floats)"
        )

    def _warn_of_equal_inputs(self) -> None:
        first, labels = self._batches[0], self._labels[0]
        seen = labels != self._options.ignore_index
        # A forward_fn is given the labels as well.
        inputs = split_labels(first.inputs)[0] if first.named else first.inputs

        def same(x: Tensor) -> bool:
            alike = x.shape == labels.shape and not x.is_floating_point()
            return alike and bool(((x.to(labels.device) == labels) | ~seen).all())

        if not labels.is_floating_point() and any(same(x) for x in tensors_in(inputs)):
            self.warnings.append(
                "labels equal the inputs, and they are not shifted: the head learns to repeat its "
                "input. For the next token pass labels that are shifted by one, -100 at the end"
            )
