"""Reading the user's data: microbatches of inputs, labels, padding masks and sample indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sylvinit.backends.memory import to_device
from sylvinit.errors import DataError, LabelError, OptionTypeError
from sylvinit.options import ForwardFn

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
# Inputs of a microbatch where the data come in one piece: large enough for the arithmetic to be
# efficient, small enough for a layer's activations to stay in the caches (256 images of 32 x 32).
_MICROBATCH_BYTES = 3 * 2**20
_MICROBATCH_RANGE = (16, 256)
# Vectors take so little arithmetic each that the microbatches themselves cost more.
_MICROBATCH_OF_VECTORS = 2048


@dataclass(frozen=True)
class Batch:
    """One microbatch.

    Attributes:
        inputs: what the model is called with: a tensor, a tuple or list of positional arguments, or
            a mapping of keyword arguments.
        labels: of its samples, or None.
        mask: bool (size, length), True for real tokens, or None.
        start: index of its first sample in the stream of data.
        size: number of samples.
        named: whether the labels were found by name, so that they may be targets of any kind.
    """

    inputs: Any
    labels: Tensor | None
    mask: Tensor | None
    start: int
    size: int
    named: bool = False
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def labels_on(self, device: torch.device) -> Tensor | None:
        """The labels as int64 on a device, moved there once."""
        if self.labels is None:
            return None
        if device not in self._on_device:
            self._on_device[device] = to_device(self.labels.long(), device)
        return self._on_device[device]

    def shapes(self) -> tuple[torch.Size, ...]:
        """Of all inputs."""
        return tuple(x.shape for x in _tensors(self.inputs))

    def holds(self, x: Tensor) -> bool:
        """Whether x has the values of one of the inputs, in their order, on the CPU."""
        return any(
            given.dtype == x.dtype
            and given.device == x.device == torch.device("cpu")
            and given.numel() == x.numel()
            and torch.equal(given.reshape(x.shape), x)
            for given in _tensors(self.inputs)
        )

    def other_sample(self, index: int, among: int) -> int | None:
        """One of the first samples whose inputs differ from those of sample ``index``."""
        tensors = [x for x in _tensors(self.inputs) if x.ndim and len(x) == self.size]
        if index >= self.size:
            return None
        for other in range(min(among, self.size)):
            if any(not torch.equal(x[index], x[other]) for x in tensors):
                return other
        return None

    def replaced(self, others: Mapping[int, int]) -> Batch:
        """The same with the inputs of other samples in the place of some."""
        order = torch.arange(self.size)
        for index, other in others.items():
            order[index] = other

        def pick(x: Tensor) -> Tensor:
            return x[order.to(x.device)] if x.ndim and len(x) == self.size else x

        mask = None if self.mask is None else pick(self.mask)
        inputs = _map_tensors(self.inputs, pick)
        return Batch(inputs, self.labels, mask, self.start, self.size, self.named)

    def head(self, count: int) -> Batch:
        """The first ``count`` samples."""
        return self.part(0, min(count, self.size))

    def part(self, begin: int, end: int) -> Batch:
        """Samples begin .. end - 1."""

        def cut(x: Tensor) -> Tensor:
            return x[begin:end] if x.ndim and len(x) == self.size else x

        return Batch(
            _map_tensors(self.inputs, cut),
            None if self.labels is None else cut(self.labels),
            None if self.mask is None else cut(self.mask),
            self.start + begin,
            end - begin,
            self.named,
        )


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples, lists and mappings with a function applied to every tensor and array.

    Mappings become plain dicts with strings as keys; other values stay.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {str(key): _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_map_tensors(item, function) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _map_tensors(value, lambda x: found.append(x) or x)
    return found


def call_model(
    model: nn.Module, batch: Batch, device: torch.device, forward_fn: ForwardFn | None
) -> Any:
    """Run the model on a copy of the batch's inputs on ``device``.

    A copy, because the forward may work in place and the batch may be needed again.
    """
    inputs = _map_tensors(batch.inputs, lambda x: x.to(device, copy=True))
    if forward_fn is not None:
        return forward_fn(model, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def _default_microbatch(batch: Batch) -> int:
    tensors = _tensors(batch.inputs)
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
    inputs, labels = _split(item)
    # Inference tensors cannot be given to autograd: they are copied.
    inputs = _map_tensors(inputs, lambda x: x.clone() if x.is_inference() else x)
    found = _tensors(inputs)
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


def _split(item: Any) -> tuple[Any, Any]:
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
