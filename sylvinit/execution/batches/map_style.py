"""Datasets that give one sample for an index, of torch and of Hugging Face: read by a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from sylvinit.errors import DataError, OptionTypeError

_REMEDY = "pass a torch.utils.data.DataLoader with a collate_fn of your own"


def is_map_style(data: Any) -> bool:
    """Whether data are a dataset and not batches.

    Datasets of Hugging Face are no subclass of torch's, and have the method by which its loader
    asks for several samples at once.
    """
    if isinstance(data, IterableDataset):
        return False
    if isinstance(data, Dataset) or hasattr(type(data), "__getitems__"):
        return True
    indexed = hasattr(type(data), "__getitem__") and isinstance(data, Sized)
    return indexed and not isinstance(data, Iterable)


def batches_of(data: Any, size_for: Callable[[Any], int]) -> Iterable[Any]:
    """The samples in order, in batches; ``size_for`` tells how many from a batch of the first one.

    Raises:
        OptionTypeError: the dataset has no length.
        DataError: its samples make no batch.
    """
    if not isinstance(data, Sized):
        raise OptionTypeError(f"data: {type(data).__name__} has no length; {_REMEDY}")
    if len(data) == 0:
        return []
    data = _with_tensors(data)
    return DataLoader(data, batch_size=size_for(_collate([data[0]])), collate_fn=_collate)


def _with_tensors(data: Any) -> Any:
    """A dataset of Hugging Face that would give lists of numbers gives tensors, a copy of it."""
    given = getattr(data, "format", None)
    if isinstance(given, dict) and given.get("type", "") is None:
        return data.with_format("torch")
    return data


def _collate(samples: list[Any]) -> Any:
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"data: the samples of the dataset make no batch ({reason}); {_REMEDY}"
        ) from error
