"""The user's data, read once into microbatches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sylvinit.errors import DataError, LabelError, OptionTypeError
from sylvinit.execution.batches.batch import Batch
from sylvinit.execution.batches.labels import split_labels
from sylvinit.execution.batches.values import map_tensors, tensors_in

# Inputs of a microbatch where the data come in one piece: large enough for the arithmetic to be
# efficient, small enough for a layer's activations to stay in the caches (256 images of 32 x 32).
_MICROBATCH_BYTES = 3 * 2**20
_MICROBATCH_RANGE = (16, 256)
# Vectors take so little arithmetic each that the microbatches themselves cost more.
_MICROBATCH_OF_VECTORS = 2048


def _default_microbatch(batch: Batch) -> int:
    tensors = tensors_in(batch.inputs)
    size = sum(x.nbytes for x in tensors) / batch.size
    least, most = _MICROBATCH_RANGE
    if all(x.ndim < 3 and x.is_floating_point() for x in tensors):
        most = _MICROBATCH_OF_VECTORS
    return min(max(int(_MICROBATCH_BYTES / max(size, 1)), least), most)


def read_batches(
    data: Any, *, microbatch: int | None = None, max_samples: int | None = None
) -> list[Batch]:
    """Read the data once.

    Args:
        data: a tensor, a 2-tuple (inputs, labels), one mapping, or an iterable of batches.
        microbatch: batches are split into pieces of at most this many samples.
        max_samples: stop after so many.

    Raises:
        DataError: there are no samples, or a batch has an unknown form or inputs that are not
        finite.
        LabelError: a batch has another number of labels than samples, or things that are no labels.
        OptionTypeError: ``data`` is none of the above.
    """
    whole = isinstance(data, (Tensor, np.ndarray, Mapping)) or (
        isinstance(data, tuple) and (len(data) == 2 or hasattr(data, "_fields"))
    )
    if whole:
        items: Iterable[Any] = [data]
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, nn.Module)):
        items = data
    else:
        raise OptionTypeError(
            "data must be a tensor, a tuple (inputs, labels) or an iterable of batches, got "
            f"{type(data).__name__}"
        )
    batches: list[Batch] = []
    start = 0
    for item in items:
        batch = _batch(item, start)
        if max_samples is not None:
            batch = batch.head(max_samples - start)
        if batch.size == 0:
            continue
        if batches:
            _check_alike(batches[0], batch)
        step = microbatch or (_default_microbatch(batch) if whole else batch.size)
        batches.extend(
            batch.part(begin, min(begin + step, batch.size)) for begin in range(0, batch.size, step)
        )
        start += batch.size
        if max_samples is not None and start >= max_samples:
            break
    if not batches:
        raise DataError("data is empty: at least one sample is needed")
    if len({batch.labels is None for batch in batches}) > 1:
        raise LabelError("some batches have labels and some have none; give all or none of them")
    return batches


def _check_alike(first: Batch, batch: Batch) -> None:
    """Refuse a list [inputs, labels], which would be taken for two batches of inputs."""
    a, b = first.inputs, batch.inputs
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or batch.labels is not None:
        return
    if a.ndim != b.ndim or a.is_floating_point() != b.is_floating_point():
        raise DataError(
            f"data: the batch at sample {batch.start} has inputs of {b.ndim} axes ({b.dtype}), "
            f"the first one of {a.ndim} ({a.dtype}); a list is read as batches, so give inputs "
            "with labels as a tuple (inputs, labels)"
        )


def _batch(item: Any, start: int) -> Batch:
    inputs, labels = split_labels(item)
    # Inference tensors cannot be given to autograd: they are copied.
    inputs = map_tensors(inputs, lambda x: x.clone() if x.is_inference() else x)
    found = tensors_in(inputs)
    if not found:
        raise DataError(f"a batch holds no tensor (batch at sample {start}: {type(item).__name__})")
    if any(x.is_meta for x in found):
        raise DataError("data holds meta tensors, which have no values; pass real ones")
    _check_finite(inputs, start)
    size = found[0].shape[0] if found[0].ndim else 0
    if labels is not None:
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise LabelError(
                f"labels must be integers, one per sample (batch at sample {start}): {error}"
            ) from error
        if labels.ndim == 0 or labels.shape[0] != size:
            raise LabelError(
                f"labels must have one entry per sample: the batch at sample {start} has {size} "
                f"samples and labels of shape {tuple(labels.shape)}"
            )
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    # A 3-D or 4-D mask says which token sees which, not which tokens are padding.
    padding = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == size
    mask = (mask != 0).cpu() if padding else None
    return Batch(inputs, labels, mask, start, size, named=isinstance(item, Mapping))


def _check_finite(value: Any, start: int, name: str = "") -> None:
    """No NaN anywhere; Inf only in additive attention masks, which are known by their names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, start, key)
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", [name] * len(value))
        for key, item in zip(names, value, strict=True):
            _check_finite(item, start, key)
    elif isinstance(value, Tensor) and value.is_floating_point():
        masks = "mask" in name or "bias" in name
        good = ~value.isnan() if masks else value.isfinite()
        if not bool(good.all()):
            first = int((~good).nonzero()[0, 0]) if value.ndim else 0
            raise DataError(
                f"data holds NaN or Inf, first in sample {start + first}; drop such samples"
            )
