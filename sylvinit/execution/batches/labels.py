"""Labels: where they stand in a batch, how many there are, and what classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import DataError, LabelError

LABEL_KEYS = ("labels", "label", "targets", "target", "y")


def split_labels(item: Any) -> tuple[Any, Any]:
    """The inputs and the labels of a batch, None where it has none.

    Raises:
        DataError: a tuple or list of neither one nor two members.
    """
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
            f"a batch has {len(item)} members, and nothing says which are inputs and which labels; "
            "use (inputs, labels), where inputs may be a tuple of arguments or a list with one "
            "tensor for each sample, or use a dict of keyword arguments. forward_fn= may pick some"
        )
    return item, None


def count_labels(labels: Any) -> int | None:
    """For how many samples there are labels; None if there are none, or they do not say."""
    single = isinstance(labels, (Tensor, np.ndarray)) and labels.ndim == 0
    return len(labels) if hasattr(labels, "__len__") and not single else None


def read_labels(labels: Any, inputs: Any, size: int, start: int) -> Tensor | None:
    """Labels as a tensor with an entry for each of the ``size`` samples of the inputs.

    Mappings, one for each sample (boxes and masks of a detection model), are nothing that a code
    could use: None.

    Raises:
        LabelError: their number is another one, or they are no numbers.
    """
    mappings = isinstance(labels, (list, tuple)) and any(isinstance(x, Mapping) for x in labels)
    try:
        tensor = None if mappings else torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LabelError(
            f"labels must be integers, one per sample (batch at sample {start}): {error}"
        ) from error
    count = count_labels(labels)
    if count != size:
        what = f"{count} mappings" if tensor is None else f"labels of shape {tuple(tensor.shape)}"
        hint = ""
        if count is None:
            hint = "; a dataset that yields single samples needs a torch.utils.data.DataLoader"
        elif isinstance(inputs, (list, tuple)):
            hint = (
                "; its list of inputs is read as the model's arguments, for it had no entry for "
                "each label in the first batch, or entries that are as long as the labels there"
            )
        raise LabelError(
            f"labels must have one entry per sample: the batch at sample {start} has {size} "
            f"samples and {what}{hint}"
        )
    return tensor
