"""Labels: where they stand in a batch, and what classes there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sylvinit.errors import DataError, LabelError
from sylvinit.execution.batches.batch import Batch

LABEL_KEYS = ("labels", "label", "targets", "target", "y")


def split_labels(item: Any) -> tuple[Any, Any]:
    """The inputs and the labels of a batch, None where it has none."""
    if isinstance(item, Mapping):
        rest = {key: value for key, value in item.items() if key not in LABEL_KEYS}
        return rest, next((item[key] for key in LABEL_KEYS if key in item), None)
    fields = getattr(item, "_fields", None)
    if isinstance(item, tuple) and fields:
        if not any(field in LABEL_KEYS for field in fields):
            return item, None
        labels = next(getattr(item, field) for field in fields if field in LABEL_KEYS)
        rest = tuple(getattr(item, field) for field in fields if field not in LABEL_KEYS)
        return rest[0] if len(rest) == 1 else rest, labels
    if isinstance(item, (tuple, list)):
        if len(item) == 1:
            return item[0], None
        if len(item) == 2:
            return item[0], item[1]
        raise DataError(
            f"a batch of {len(item)} members cannot be told apart; use (inputs, labels), where "
            "inputs may be a tuple of arguments, or a dict of keyword arguments"
        )
    return item, None


@dataclass(frozen=True)
class Classes:
    """What the labels of all batches say.

    Attributes:
        count: the largest label plus one.
        present: number of different labels.
    """

    count: int
    present: int


def label_problem(batches: list[Batch]) -> str | None:
    """Why the labels are not class labels, one integer per sample; None if they are."""
    for batch in batches:
        labels = batch.labels
        if labels is None:
            return "data has no labels"
        if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1:
            return f"labels are {labels.dtype} {tuple(labels.shape)}, not one integer per sample"
    return None


def find_classes(batches: list[Batch]) -> Classes:
    """The classes in the data.

    Raises:
        LabelError: labels are missing, not integers, not one per sample, or negative.
    """
    problem = label_problem(batches)
    if problem is not None:
        raise LabelError(
            f"labels must be integers of shape (samples,): {problem}; for other targets pass "
            "head_code='pca' and a code without labels"
        )
    found: set[int] = set()
    for batch in batches:
        if batch.labels is not None:
            found.update(batch.labels.long().unique().tolist())
    if min(found) < 0:
        raise LabelError(f"labels must not be negative, got {min(found)}; drop those samples")
    return Classes(max(found) + 1, len(found))
