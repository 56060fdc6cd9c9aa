"""Notes on exceptions that come out of the model's forward: what it was called with, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from torch import Tensor

from sylvinit.execution.batches import Batch


@contextmanager
def noted(batch: Batch, purpose: str | Callable[[], str]) -> Iterator[None]:
    """Exceptions that leave the block get a note; they stay the objects that they are."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # one that takes no notes stays without
            why = purpose if isinstance(purpose, str) else purpose()
            _add_note(error, f"sylvinit called the model {why}, with {_passed(batch)}")
        raise


def _add_note(error: Exception, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # shown by pytest and IPython
        vars(error)["__notes__"] = [*getattr(error, "__notes__", []), note]


def _passed(batch: Batch) -> str:
    last = batch.start + batch.size - 1
    which = f"sample {last}" if batch.size == 1 else f"samples {batch.start} to {last}"
    return f"{which}: {', '.join(_described(batch.inputs))}"


def _described(value: Any, name: str = "") -> list[str]:
    """Name, dtype and shape of every tensor in nested containers."""
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in _described(item, str(key))]
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", [name] * len(value))
        pairs = zip(names, value, strict=True)
        return [text for key, item in pairs for text in _described(item, key)]
    if isinstance(value, (Tensor, np.ndarray)):
        kind = str(value.dtype).removeprefix("torch.")
        return [f"{name} {kind} {tuple(value.shape)}".lstrip()]
    return []
