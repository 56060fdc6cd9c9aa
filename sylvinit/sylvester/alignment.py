"""The rule for vmap that the operators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def align(
    in_dims: Sequence[int | None], dimensions: Sequence[int], inputs: Sequence[Any]
) -> list[Any]:
    """Inputs with the mapped dimension in front of all batch dimensions, which then broadcast.

    Args:
        in_dims: from vmap.
        dimensions: how many dimensions one entry of each tensor has; the tensors come first.
        inputs: tensors, then options, which stay as they are.
    """
    count = len(dimensions)
    mapped = [dim is not None for dim in in_dims[:count]]
    moved = [
        x if dim is None else x.movedim(dim, 0)
        for x, dim in zip(inputs[:count], in_dims[:count], strict=True)
    ]
    ranks = [x.ndim - own - at for x, own, at in zip(moved, dimensions, mapped, strict=True)]
    for i, (x, rank) in enumerate(zip(moved, ranks, strict=True)):
        if mapped[i]:
            moved[i] = x.reshape(x.shape[0], *(1,) * (max(ranks) - rank), *x.shape[1:])
    return [*moved, *inputs[count:]]
