"""The user's data, read once into microbatches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from sylvinit.errors import DataError, LabelError, OptionTypeError
from sylvinit.execution.batches.batch import Batch
from sylvinit.execution.batches.forward import Forward
from sylvinit.execution.batches.labels import count_labels, read_labels, split_labels
from sylvinit.execution.batches.map_style import batches_of, is_map_style
from sylvinit.execution.batches.nested import SampleLists, refuse_packed
from sylvinit.execution.batches.padding import Padding
from sylvinit.execution.batches.values import (
    SampleList,
    count_samples,
    map_tensors,
    tensors_in,
)

# Inputs of a microbatch where the data come in one piece: large enough for the arithmetic to be
# efficient, small enough for a layer's activations to stay in the caches (256 images of 32 x 32).
_MICROBATCH_BYTES = 3 * 2**20
_MICROBATCH_RANGE = (16, 256)
# Vectors take so little arithmetic each that the microbatches themselves cost more.
_MICROBATCH_OF_VECTORS = 2048


def read_batches(
    data: Any,
    forward: Forward,
    *,
    padding: Padding | None = None,
    microbatch: int | None = None,
    max_samples: int | None = None,
    may_be_empty: bool = False,
) -> list[Batch]:
    """Read the data once.

    Args:
        data: a tensor, a 2-tuple (inputs, labels), one mapping, a map-style dataset, or an iterable
            of batches.
        forward: what the batches are for.
        padding: how padding tokens are found; None if nobody asks for them.
        microbatch: batches are split into pieces of at most this many samples.
        max_samples: stop after so many.
        may_be_empty: whether there may be no samples.

    Raises:
        DataError: there are no samples, or a batch has an unknown form or inputs that are not
        finite or that the forward does not take.
        LabelError: a batch has another number of labels than samples, or things that are no labels.
        OptionError: ``padding`` asks for an input that is not there.
        OptionTypeError: ``data`` is none of the above.
    """
    dataset = is_map_style(data)
    reader = _Reader(forward, padding, dataset)

    def size_for(first: Any) -> int:
        size = microbatch or _default_microbatch(reader.read(first, 0))
        return size if max_samples is None else min(size, max_samples)

    if isinstance(data, Mapping) and any(map(is_map_style, data.values())):
        names = ", ".join(map(str, data))
        raise DataError(f"data is a mapping of datasets ({names}); pass one of them")
    one = not dataset and _is_one_batch(data)
    if dataset:
        data = batches_of(data, size_for)
    elif one:
        data = [data]
    elif not isinstance(data, Iterable) or isinstance(data, (str, bytes, nn.Module)):
        raise OptionTypeError(
            "data must be a tensor, a tuple (inputs, labels), a map-style dataset or an iterable "
            f"of batches, got {type(data).__name__}"
        )
    elif isinstance(data, list):
        _refuse_pair(data)
    batches: list[Batch] = []
    start = 0
    for item in data:
        batch = reader.read(item, start)
        if max_samples is not None:
            batch = batch.head(max_samples - start)
        if batch.size == 0:
            continue
        if batches:
            _check_alike(batches[0], batch)
        step = microbatch or (_default_microbatch(batch) if one else batch.size)
        batches.extend(
            batch.part(begin, min(begin + step, batch.size)) for begin in range(0, batch.size, step)
        )
        start += batch.size
        if max_samples is not None and start >= max_samples:
            break
    if not batches and not may_be_empty:
        raise DataError("data is empty: at least one sample is needed")
    if len({batch.labels is None for batch in batches}) > 1:
        raise LabelError("some batches have labels and some have none; give all or none of them")
    return batches


def _is_one_batch(data: Any) -> bool:
    if isinstance(data, tuple):
        return len(data) == 2 or hasattr(data, "_fields")
    return isinstance(data, (Tensor, np.ndarray, Mapping))


def _default_microbatch(batch: Batch) -> int:
    tensors = tensors_in(batch.inputs)
    size = sum(x.nbytes for x in tensors) / batch.size
    least, most = _MICROBATCH_RANGE
    if all(x.ndim < 3 and x.is_floating_point() for x in tensors):
        most = _MICROBATCH_OF_VECTORS
    return min(max(int(_MICROBATCH_BYTES / max(size, 1)), least), most)


def _refuse_pair(data: list[Any]) -> None:
    """Refuse [inputs, targets], which would be taken for two batches of inputs."""
    if len(data) != 2 or not all(isinstance(x, (Tensor, np.ndarray)) for x in data):
        return
    first, second = (tuple(x.shape) for x in data)
    if first and second and first[0] == second[0]:
        raise DataError(
            f"data is a list of two tensors of equal length, {first} and {second}: inputs with "
            "labels are a tuple (inputs, labels), and two batches of inputs are a list of tuples "
            "[(first,), (second,)]"
        )


def _check_alike(first: Batch, batch: Batch) -> None:
    """Refuse lists of inputs and labels of other kinds, which would be batches of inputs, too."""
    a, b = first.inputs, batch.inputs
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or batch.labels is not None:
        return
    if a.ndim != b.ndim or a.is_floating_point() != b.is_floating_point():
        raise DataError(
            f"data: the batch at sample {batch.start} has inputs of {b.ndim} axes ({b.dtype}), "
            f"the first one of {a.ndim} ({a.dtype}); a list is read as batches, so give inputs "
            "with labels as a tuple (inputs, labels)"
        )


class _Reader:
    """Makes a :class:`Batch` of what data hold; what is decided on the first one is kept."""

    def __init__(self, forward: Forward, padding: Padding | None, dataset: bool) -> None:
        self._forward, self._padding, self._dataset = forward, padding, dataset
        self._lists = SampleLists(forward.takes)

    def read(self, item: Any, start: int) -> Batch:
        inputs, labels = split_labels(item)
        named = isinstance(item, Mapping)
        if isinstance(item, Mapping):
            inputs |= {key: item[key] for key in self._forward.label_keys(item)}
        refuse_packed(inputs, start)
        inputs = self._lists.marked(inputs, count_labels(labels), start)
        # Inference tensors cannot be given to autograd: they are copied.
        inputs = map_tensors(inputs, lambda x: x.clone() if x.is_inference() else x)
        found = tensors_in(inputs)
        if not found:
            raise DataError(
                f"a batch holds no tensor (batch at sample {start}: {type(item).__name__}); a "
                "dataset that yields single samples needs a torch.utils.data.DataLoader, and text "
                "a tokenizer in its collate_fn"
            )
        if any(x.is_meta for x in found):
            raise DataError("data holds meta tensors, which have no values; pass real ones")
        if named:
            self._forward.check_names(inputs, dataset=self._dataset)
        by_name = self._forward.named(inputs)
        _check_finite(by_name, start)
        size = count_samples(inputs)
        if labels is not None:
            labels = read_labels(labels, inputs, size, start)
        mask = None
        if self._padding is not None and size:
            mask = self._padding.mask(inputs, by_name, size, start)
        return Batch(inputs, labels, mask, start, size, named)


def _check_finite(value: Any, start: int, name: str = "") -> None:
    """No NaN anywhere; Inf only in additive attention masks, which are known by their names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, start, key)
    elif isinstance(value, SampleList):
        for index, item in enumerate(value.tensors):
            if item.is_floating_point() and not bool(item.isfinite().all()):
                raise DataError(
                    f"data holds NaN or Inf, first in sample {start + index}; drop such samples"
                )
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
