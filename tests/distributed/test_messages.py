from __future__ import annotations

import torch
from torch import Tensor

from sylvinit.distributed import Message

CPU = torch.device("cpu")


def test_tensors_of_every_kind_come_back() -> None:
    """Types, shapes and bits; odd lengths, so that what follows has to be aligned."""
    tensors: list[Tensor] = [
        torch.randn(3, dtype=torch.float64),
        torch.tensor([True, False, True]),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.empty(0, 4),
        torch.randn(4, 6)[:, ::2],
        torch.randn(2, 3, dtype=torch.complex128),
        torch.tensor([-(2**62)]),
    ]
    meta = {"names": ["a", "b"], "nothing": None}
    found = Message.from_bytes(Message(meta, tensors).to_bytes(CPU))
    assert found.meta == meta
    for given, back in zip(tensors, found.tensors, strict=True):
        assert back.dtype == given.dtype
        assert back.shape == given.shape
        assert torch.equal(back, given)


def test_little_more_than_the_tensors_is_sent() -> None:
    data = Message(None, [torch.zeros(1000, dtype=torch.float64)]).to_bytes(CPU)
    assert data.dtype == torch.uint8
    assert 8000 <= len(data) <= 8200
