"""Processes that torchrun, or another launcher of that kind, has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Place:
    """This process among those that a launcher has started together."""

    rank: int = 0
    size: int = 1
    device: str | None = None  # what was asked for; of "cuda" this process's GPU

    def part(self, count: int) -> slice:
        """Which of so many rows are this process's."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


@contextmanager
def launched(device: str | None) -> Iterator[Place]:
    """The world of torch.distributed, if a launcher has started more than one process.

    All processes get the random state of the first, so that they build the same models.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Place(device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    on_gpu = device is not None and device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        seed = [torch.initial_seed()]
        dist.broadcast_object_list(seed, 0)
        torch.manual_seed(seed[0])
        yield Place(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
