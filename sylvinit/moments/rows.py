"""Which rows of a layer's input belong to which sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sylvinit.errors import RowLayoutError
from sylvinit.moments.sampling import Key, choose_positions

RowToSample = Callable[[str, Tensor, int], Tensor | None]


@dataclass(frozen=True)
class RowRule:
    """Row j of an input belongs to sample (j // inner) mod N, for N samples.

    Attributes:
        outer: how often the samples follow each other; 1 where the batch comes first (windows and
            frames of a sample one after the other included).
        inner: successive rows of one sample; 1 where the batch comes last (time first).
    """

    outer: int
    inner: int

    def owners(self, samples: int) -> npt.NDArray[np.int64]:
        """The sample of every row, for so many samples."""
        return np.tile(np.repeat(np.arange(samples), self.inner), self.outer)

    def fitted(self, rows: int, samples: int) -> RowRule | None:
        """The rule for an input of so many rows; None where they do not tell it."""
        each, rest = divmod(rows, samples)
        if rest or each == 0:
            return None
        if each == self.outer * self.inner:
            return self
        if self.outer == 1:
            return RowRule(1, each)
        return RowRule(each, 1) if self.inner == 1 else None


BATCH_FIRST = RowRule(1, 1)


@dataclass(frozen=True)
class Rows:
    """The entries of a layer's input, grouped by sample.

    An entry is what the leading axes of the input count: a token of a Linear, an image of a
    convolution. Each entry offers ``width`` output positions (one, or those of the output map), so
    that sample i has ``counts[i] * width`` positions, in the order of its entries.

    Where entries are dropped, ``ranks`` are the places of the others among all ``each`` of their
    sample.
    """

    entries: npt.NDArray[np.int64] | None  # (entries,), sorted by sample; None if all are in order
    counts: npt.NDArray[np.int64]  # (samples,), entries of each sample
    width: int
    ranks: npt.NDArray[np.int64] | None = None  # (entries,)
    each: int = 0

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

    def lengths(self) -> npt.NDArray[np.int64]:
        """How many positions each sample has, those of dropped entries included."""
        counts = self.counts if self.ranks is None else np.full_like(self.counts, self.each)
        return counts * self.width

    def numbers(self, sample: Tensor, entry: Tensor, position: Tensor) -> Tensor:
        """Which of its sample's positions each one is, those of dropped entries counted."""
        if self.entries is None:
            first = np.cumsum(self.counts) - self.counts
            return (entry - torch.from_numpy(first)[sample]) * self.width + position
        ranks = self.ranks
        if ranks is None:
            owner = np.repeat(np.arange(len(self.counts)), self.counts)
            ranks = np.arange(len(owner)) - (np.cumsum(self.counts) - self.counts)[owner]
        of_entry = np.zeros(int(self.entries.max(initial=0)) + 1, dtype=np.int64)
        of_entry[self.entries] = ranks
        return torch.from_numpy(of_entry)[entry] * self.width + position

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
    rule: RowRule | None = BATCH_FIRST,
    mask: Tensor | None = None,
    row_to_sample: RowToSample | None = None,
) -> Rows | None:
    """Group the entries of a layer's input by sample; None where nobody knows whose they are.

    With a padding mask, rows of padding tokens are dropped where a sample has as many rows as the
    mask is long.

    Args:
        x: input of the layer ``name``, (entries, channels, *spatial) or (..., features).
        samples: size of the microbatch.
        features: number of trailing axes that are not entries.
        rule: that the entries follow, or None.
        mask: bool (samples, length), True for real tokens.
        row_to_sample: (name, x, samples) -> int64 (entries,), -1 for entries to drop; rule and mask
            are not applied then. None from it means the rule.

    Raises:
        RowLayoutError: ``row_to_sample`` returned something else.
    """
    count = int(np.prod(x.shape[: x.ndim - features], dtype=np.int64))
    owner = None if row_to_sample is None else row_to_sample(name, x, samples)
    if owner is not None:
        return _given_rows(name, x, torch.as_tensor(owner).cpu(), count, samples, width)
    rule = None if rule is None else rule.fitted(count, samples)
    if rule is None:
        return None
    each = rule.outer * rule.inner
    kept = np.ones(count, dtype=bool)
    if mask is not None and features == 1 and each == mask.shape[1] and each > 1:
        # The k-th row of a sample is its k-th token, whatever stands between them.
        by_sample = mask.cpu().numpy().reshape(samples, rule.outer, rule.inner)
        kept = by_sample.swapaxes(0, 1).reshape(-1)
    elif rule.outer == 1:
        return Rows(None, np.full(samples, each, dtype=np.int64), width)
    owners = rule.owners(samples)
    rows = _by_owner(np.where(kept, owners, -1), samples, width)
    if kept.all():
        return rows
    ranks = np.empty_like(owners)
    ranks[np.argsort(owners, kind="stable")] = np.tile(np.arange(each), samples)
    return replace(rows, ranks=ranks[rows.entries], each=each)


def _by_owner(owners: npt.NDArray[np.int64], samples: int, width: int) -> Rows:
    """Rows of the samples in order, without those of sample -1."""
    kept = owners >= 0
    order = np.argsort(owners, kind="stable")[len(owners) - int(kept.sum()) :]
    return Rows(order, np.bincount(owners[kept], minlength=samples), width)


def _given_rows(name: str, x: Tensor, owner: Tensor, count: int, samples: int, width: int) -> Rows:
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
    return _by_owner(index, samples, width)


def rows_of_nobody(count: int, samples: int, width: int) -> Rows:
    """Rows that are all taken, shared out among the samples as they come."""
    counts = np.full(samples, count // samples, dtype=np.int64)
    counts[: count % samples] += 1
    return Rows(None, counts, width)


def rows_without_owner(name: str, shape: tuple[int, ...]) -> RowLayoutError:
    """The error for a code with labels where nobody knows whose the rows are."""
    return RowLayoutError(
        f"layer {name}: the rows of its input {shape} do not follow the samples (seen by replacing "
        "one of them), so that they have no labels; pass row_to_sample=, choose a code without "
        "labels, or leave the layer out with exclude="
    )
