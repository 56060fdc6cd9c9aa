"""The code entries that a layer takes after its siblings, and mixtures for outputs beyond them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class EntryChoice:
    """The code entries that a layer is solved for, packed to the front of every group.

    Masks and indices are (groups, rows).
    """

    solved: Tensor  # bool, which rows are entries at all
    fresh: Tensor  # bool, which of them no sibling has taken
    index: Tensor  # int64, where they stood in the code


def choose_entries(available: Tensor, k: int, skip: int) -> EntryChoice:
    """The next ``k`` entries of every group after the ``skip`` that siblings have taken.

    Where fewer than k are left, all entries are solved for, so that the rest can be filled with
    mixtures of all of them; only those that no sibling has taken are fresh. ``available`` are the
    entries that are not identically zero, bool (groups, entries).
    """
    counts = available.sum(dim=1)
    begin = torch.where(skip + k <= counts, skip, 0)
    lengths = torch.where(begin > 0, k, counts) if skip else counts.clamp(max=k)
    rows = torch.arange(max(int(lengths.max()), 1), device=counts.device)
    solved = rows < lengths[:, None]
    place = (begin[:, None] + rows).clamp(max=available.shape[1] - 1)
    # Stable: available entries first, in their order.
    index = torch.argsort((~available).to(torch.uint8), dim=1, stable=True).gather(1, place)
    fresh = solved & (begin[:, None] + rows >= skip)
    return EntryChoice(solved, fresh, index)


def fill_with_mixtures(
    weight: Tensor, bias: Tensor, solved: Tensor, fresh: Tensor, k: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill rows without a code by seeded orthogonal mixtures of the solved rows of their group.

    A full orthogonal R applied to all solved rows W solves the equation for the code R s: mixtures
    are as good a solution as the rows they are made of. The last block is cut off where k ends.

    ``weight`` (groups, rows, d_in) and ``bias`` (groups, rows) are zero where not ``solved``; rows
    that are ``fresh`` (see :class:`EntryChoice`) are used as they are.

    Returns:
        weight (groups, k, d_in), bias (groups, k), and bool (groups, k), where a mixture stands.
    """
    if weight.shape[1] == k and bool(fresh.all()):
        return weight, bias, torch.zeros_like(fresh)
    groups, _, d_in = weight.shape
    out_weight, out_bias = weight.new_zeros((groups, k, d_in)), bias.new_zeros((groups, k))
    mixed = torch.zeros((groups, k), dtype=torch.bool, device=weight.device)
    generator = np.random.default_rng(seed)
    for group in range(groups):
        base = solved[group].nonzero().flatten()
        if len(base) == 0:
            continue
        kept = fresh[group].nonzero().flatten()[:k]
        out_weight[group, : len(kept)] = weight[group, kept]
        out_bias[group, : len(kept)] = bias[group, kept]
        position = len(kept)
        mixed[group, position:] = True
        while position < k:
            mixture = _orthogonal(len(base), generator)[: k - position].to(weight)
            step = slice(position, position + len(mixture))
            out_weight[group, step] = mixture @ weight[group, base]
            out_bias[group, step] = mixture @ bias[group, base]
            position += len(mixture)
    return out_weight, out_bias, mixed


def _orthogonal(n: int, generator: np.random.Generator) -> Tensor:
    """A Haar-distributed orthogonal matrix (Mezzadri 2007)."""
    # By torch: the threads of NumPy's library would wait for those of torch, which spin.
    q, r = torch.linalg.qr(torch.from_numpy(generator.standard_normal((n, n))))
    return q * r.diagonal().sign()
