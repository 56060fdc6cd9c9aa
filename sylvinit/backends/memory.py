"""The memory of a GPU: getting there without waiting, and saying what there was none for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sylvinit.errors import DeviceMemoryError


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, copied without waiting for a GPU to finish its queue.

    That takes pinned host memory, which torch keeps until the copy is made.
    """
    if x.device == device or device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def memory_for(what: str, size: int) -> Iterator[None]:
    """DeviceMemoryError with sizes and a remedy, in place of torch.OutOfMemoryError.

    ``what`` says what was computed, with its sizes, and ``size`` its bytes without workspace.
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
