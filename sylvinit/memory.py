"""Saying what a GPU had no memory for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from sylvinit.errors import DeviceMemoryError


@contextlib.contextmanager
def memory_for(what: str, size: int) -> Iterator[None]:
    """Name the sizes and the remedy where memory runs out.

    Args:
        what: that was computed, with its sizes.
        size: bytes of it, without workspace.

    Raises:
        DeviceMemoryError: instead of torch.OutOfMemoryError.
    """
    try:
        yield
    except DeviceMemoryError:
        raise  # says it already
    except torch.OutOfMemoryError as error:
        reason = str(error).split(" GPU ")[0].rstrip(". ")
        raise DeviceMemoryError(
            f"the GPU has too little memory for {what}: {size / 2**20:.1f} MiB, and workspace "
            f"({reason}). Keep fewer activations (max_samples=, storage='recompute'), take less at "
            "once, or work on the CPU"
        ) from error
