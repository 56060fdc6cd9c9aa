"""Which rows of a layer's input belong to which sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sylvinit.errors import RowLayoutError
from sylvinit.moments.sampling import Key, choose_positions

RowToSample = Callable[[str, Tensor, int], Tensor | None]


@dataclass(frozen=True)
class Rows:
    """The entries of a layer's input, grouped by sample.

    An entry is what the leading axes of the input count: a token of a Linear, an image of a
    convolution. Each entry offers ``width`` output positions (one, or those of the output map), so
    that sample i has ``counts[i] * width`` positions, in the order of its entries.
    """

    entries: npt.NDArray[np.int64] | None  # (entries,), sorted by sample; None if all are in order
    counts: npt.NDArray[np.int64]  # (samples,), entries of each sample
    width: int

    @classmethod
    def one_each(cls, samples: int, width: int) -> Rows:
        """Every entry is a sample."""
        return cls(None, np.ones(samples, dtype=np.int64), width)

    def entries_of_each(self) -> int | None:
        """How many entries each sample has; None unless all have as many, and in order."""
        if self.entries is not None or len(self.counts) == 0:
            return None
        first = int(self.counts[0])
        return first if first > 0 and bool((self.counts == first).all()) else None

    def all_positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """(sample, entry, position) of every output position."""
        count = int(self.counts.sum())
        entry = np.arange(count) if self.entries is None else self.entries
        sample = np.repeat(np.arange(len(self.counts)), self.counts)
        position = np.tile(np.arange(self.width), count)
        return (
            torch.from_numpy(sample.repeat(self.width)),
            torch.from_numpy(np.repeat(entry, self.width)),
            torch.from_numpy(position),
        )

    def draw(
        self, key: Key, start: int, patches: int | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(sample, entry, position, priority) of the drawn positions; see sampling.py.

        ``start`` is the global index of the first sample, ``patches`` the number of draws per
        sample; None takes every position once.
        """
        samples, available = start + np.arange(len(self.counts)), self.counts * self.width
        limit = int(available.max(initial=1)) if patches is None else patches
        row, position, priority = choose_positions(key, samples, available, limit)
        first = np.cumsum(self.counts) - self.counts
        entry = first[row] + position // self.width
        if self.entries is not None:
            entry = self.entries[entry]
        return (
            torch.from_numpy(row),
            torch.from_numpy(entry),
            torch.from_numpy(position % self.width),
            torch.from_numpy(priority.astype(np.int64)),
        )


def assign_rows(
    name: str,
    x: Tensor,
    samples: int,
    *,
    features: int,
    width: int = 1,
    mask: Tensor | None = None,
    row_to_sample: RowToSample | None = None,
) -> Rows:
    """Group the entries of a layer's input by sample.

    Row j of a batch-first input belongs to sample j // r, with r rows per sample. Rows of padding
    tokens are dropped where r is the length of the padding mask.

    Args:
        x: input of the layer ``name``, (entries, channels, *spatial) or (..., features).
        samples: size of the microbatch.
        features: number of trailing axes that are not entries.
        mask: bool (samples, length), True for real tokens.
        row_to_sample: (name, x, samples) -> int64 (entries,), -1 for entries to drop; the mask is
            not applied then. If it returns None, the rule above holds.

    Raises:
        RowLayoutError: the entries cannot be assigned.
    """
    leading = tuple(x.shape[: x.ndim - features])
    count = int(np.prod(leading)) if leading else 1
    owner = None if row_to_sample is None else row_to_sample(name, x, samples)
    if owner is not None:
        owner = torch.as_tensor(owner).cpu()
        if owner.shape != (count,) or owner.is_floating_point():
            raise RowLayoutError(
                f"row_to_sample must return {count} integers for layer {name} (input "
                f"{tuple(x.shape)}), got {owner.dtype} {tuple(owner.shape)}"
            )
        index = owner.numpy().astype(np.int64)
        if count and (index.min() < -1 or index.max() >= samples):
            raise RowLayoutError(
                f"row_to_sample must return samples in [0, {samples}), or -1 to drop a row, for "
                f"layer {name}, got {index.min()} to {index.max()}"
            )
        kept = index >= 0
        order = np.argsort(index, kind="stable")[count - int(kept.sum()) :]
        return Rows(order, np.bincount(index[kept], minlength=samples), width)
    folded = len(leading) > 1 and leading[0] != samples
    if folded or (features > 1 and count != samples) or count % max(samples, 1):
        raise RowLayoutError(
            f"layer {name}: an input of shape {tuple(x.shape)} is not batch first for {samples} "
            "samples (time first, or windows folded into the batch?); pass row_to_sample=, or "
            "leave the layer out with exclude="
        )
    per_sample = count // samples
    if mask is not None and features == 1 and per_sample == mask.shape[1] and per_sample > 1:
        kept = mask.cpu().numpy().reshape(-1)
        return Rows(np.flatnonzero(kept), mask.sum(dim=1).cpu().numpy().astype(np.int64), width)
    return Rows(None, np.full(samples, per_sample, dtype=np.int64), width)
