"""Tensors as they were, to be put back bit for bit."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor


class TensorBackup:
    """The memory that a tensor lies in and what is there."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._place = tensor.detach()
        self._values = self._place.clone()

    def memory(self) -> Hashable:
        """Equal for tensors in the same memory."""
        dense = self._place.layout == torch.strided and type(self._place) is Tensor
        if not dense or self._place.numel() == 0:
            return id(self.tensor)
        return self._place.device, self._place.untyped_storage().data_ptr()

    def restore(self) -> None:
        """Put everything back. A tensor that is as it was is not touched (nor its version)."""
        target, place = self.tensor, self._place
        if target.layout == torch.strided and not _same_place(target, place):
            target.data = place  # resized, or given another memory
        if not _same_bits(target, self._values):
            values = self._values
            with torch.inference_mode(target.is_inference()), torch.no_grad():
                for axis in _repeated(target):  # expanded axes cannot be written to
                    target, values = target.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
                target.copy_(values)


def _same_place(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype, a.layout, a.device) != (b.shape, b.dtype, b.layout, b.device):
        return False
    if type(a.data) is not Tensor:  # subclasses may have no memory of their own
        return True
    same_view = a.stride() == b.stride() and a.storage_offset() == b.storage_offset()
    return same_view and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same; NaN is the same as NaN, and 0 is not -0."""
    parts_a, parts_b = _parts(a), _parts(b)
    if len(parts_a) == 1:
        return a.shape == b.shape and torch.equal(_bits(parts_a[0]), _bits(parts_b[0]))
    return a.shape == b.shape and all(map(_same_bits, parts_a, parts_b))


def _parts(x: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor consists of."""
    x = x.detach()
    if x.layout == torch.sparse_coo:
        return [x._indices(), x._values()]
    if x.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [x.crow_indices(), x.col_indices(), x.values()]
    if x.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [x.ccol_indices(), x.row_indices(), x.values()]
    return [x]


def _bits(x: Tensor) -> Tensor:
    plain = type(x) is Tensor and x.layout == torch.strided and not x.is_quantized
    x = x.resolve_conj().resolve_neg() if plain else x
    return x.contiguous().reshape(-1).view(torch.uint8) if plain else x


def _repeated(x: Tensor) -> list[int]:
    """The expanded axes, along which all entries lie in the same memory."""
    if x.layout != torch.strided:
        return []
    return [axis for axis, size in enumerate(x.shape) if x.stride(axis) == 0 and size > 1]
