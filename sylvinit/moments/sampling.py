"""Counter-based choice of patches: the same for every device, microbatch and rank.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
with

    key      = the two 32-bit halves (low, high) of a 64-bit BLAKE2b hash of (seed, name, call)
    counter  = (sample low, sample high, draw, 0)
    position = (word 0 * P) >> 32                 among the P output positions, row-major
    priority = word 1                             used by reservoirs; independent of word 0

so that a position depends on nothing but the seed, the layer and the sample's index in the stream.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

Key = tuple[int, int]
IntArray = npt.NDArray[np.int64]
WordArray = npt.NDArray[np.uint32]


def philox4x32(counter: npt.ArrayLike, key: Key) -> WordArray:
    """Ten rounds of Philox4x32 of counters, uint32 (..., 4)."""
    words = np.asarray(counter, dtype=np.uint32).astype(np.uint64)
    c0, c1, c2, c3 = (words[..., i] for i in range(4))
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def stream_key(seed: int, name: str, call: int) -> Key:
    """The Philox key of one call of one module.

    It is the 8-byte BLAKE2b digest, read as a little-endian integer, of
    ``int64le(seed) + int64le(call) + utf8(name)``.
    """
    message = struct.pack("<qq", seed, call) + name.encode()
    value = int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")
    return value & 0xFFFFFFFF, value >> 32


def draws(key: Key, samples: IntArray, count: int) -> WordArray:
    """Philox words for draws 0 .. count-1 of every sample, shape (len(samples), count, 4)."""
    index = np.asarray(samples).astype(np.uint64)
    counter = np.zeros((len(index), count, 4), dtype=np.uint32)
    counter[..., 0] = (index & _LOW)[:, None]
    counter[..., 1] = (index >> _SHIFT)[:, None]
    counter[..., 2] = np.arange(count, dtype=np.uint32)
    return philox4x32(counter, key)


def choose_positions(
    key: Key, samples: IntArray, available: IntArray, patches: int
) -> tuple[IntArray, IntArray, WordArray]:
    """Positions of the patches drawn from each sample: (row, position, priority).

    Samples (n,) are global indices; ``available`` (n,) is P of each sample, at most 2**32. Where
    P <= patches, every position is taken once. ``row`` indexes ``samples``, ``position`` is in
    [0, P), and ``priority`` is a uniform uint32 that orders a reservoir. Sorted by row, then draw.
    """
    samples, available = np.asarray(samples), np.asarray(available)
    everything = available <= patches
    counts = np.where(everything, available, patches)
    row = np.repeat(np.arange(len(samples)), counts)
    first = np.cumsum(counts) - counts
    draw = np.arange(len(row)) - first[row]
    words = draws(key, samples, int(counts.max(initial=0)))[row, draw]
    drawn = (words[:, 0].astype(np.uint64) * available[row].astype(np.uint64)) >> _SHIFT
    position = np.where(everything[row], draw, drawn.astype(np.int64))
    return row, position, words[:, 1]


class Reservoir:
    """The rows of least priority among all offered: for random priorities a uniform sample.

    The chunks in which rows come do not matter, and two reservoirs merge into that of the union.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: Tensor | None = None
        self.labels: Tensor | None = None
        self._priority: Tensor | None = None

    def offer(
        self, x: Tensor, first: int, priority: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Offer rows (groups, n, d); ``first`` is the running index of the first one.

        Labels (n,) are kept beside the rows if every call brings some.
        """
        if priority is None:
            counter = np.zeros((x.shape[1], 4), dtype=np.uint32)
            counter[:, 0] = np.arange(first, first + x.shape[1], dtype=np.uint64) & 0xFFFFFFFF
            words = philox4x32(counter, (0, 0))[:, 0].astype(np.int64)
            priority = torch.from_numpy(words).to(x.device)
        if self.rows is not None and self._priority is not None:
            if len(self._priority) == self.capacity:
                better = priority < self._priority[-1]
                x, priority = x[:, better], priority[better]
                labels = None if labels is None else labels[better]
            x = torch.cat((self.rows, x), dim=1)
            priority = torch.cat((self._priority, priority))
            both = self.labels is not None and labels is not None
            labels = torch.cat((self.labels, labels)) if both else None  # type: ignore[arg-type]
        kept = torch.argsort(priority, stable=True)[: self.capacity]
        self.rows, self._priority = x[:, kept], priority[kept]
        self.labels = None if labels is None else labels[kept]

    def merge(self, other: Reservoir) -> None:
        """Offer the rows of another reservoir."""
        if other.rows is not None and other._priority is not None:
            self.offer(other.rows, 0, other._priority, other.labels)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Reservoir:
        """The same rows with a function applied to them."""
        other = Reservoir(self.capacity)
        other._priority, other.labels = self._priority, self.labels
        if self.rows is not None:
            other.rows = function(self.rows)
        return other
