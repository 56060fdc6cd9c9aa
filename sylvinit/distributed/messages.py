"""Tensors and what they are, as one stretch of bytes that a collective can carry."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 16  # bytes, of the largest numbers that a tensor may hold


@dataclass(frozen=True)
class Message:
    """Tensors, and small plain values that say what they are."""

    meta: Any = None
    tensors: list[Tensor] = field(default_factory=list)

    def to_bytes(self, device: torch.device) -> Tensor:
        """uint8 (bytes,) on a device."""
        kinds = [(x.dtype, tuple(x.shape)) for x in self.tensors]
        # Read by processes of the same job alone, as are objects of torch.distributed itself.
        head = pickle.dumps((self.meta, kinds))
        size = torch.tensor([len(head)]).view(torch.uint8)
        parts = [size, torch.frombuffer(bytearray(head), dtype=torch.uint8)]
        parts = [_padded(torch.cat(parts).to(device))]
        for x in self.tensors:
            flat = x.detach().to(device).contiguous().reshape(-1)
            parts.append(_padded(flat.view(torch.uint8)))
        return torch.cat(parts)

    @classmethod
    def from_bytes(cls, data: Tensor) -> Message:
        """What :meth:`to_bytes` made ``data`` from; its tensors are views."""
        size = int(data[:8].cpu().view(torch.int64))
        meta, kinds = pickle.loads(data[8 : 8 + size].cpu().numpy().tobytes())
        begin = _whole(8 + size)
        tensors: list[Tensor] = []
        for dtype, shape in kinds:
            length = torch.Size(shape).numel() * dtype.itemsize
            tensors.append(data[begin : begin + length].view(dtype).reshape(shape))
            begin += _whole(length)
        return cls(meta, tensors)


def _whole(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _padded(data: Tensor) -> Tensor:
    return torch.nn.functional.pad(data, (0, _whole(len(data)) - len(data)))
