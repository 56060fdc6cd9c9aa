"""Moments as a message to another process: counts, means, triangles of scatter, sums by labels.

Rows are in it only where there are fewer than features over all processes (the dual problem needs
them), and those of a reservoir.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sylvinit.distributed import Message
from sylvinit.moments.streaming import PatchMoments
from sylvinit.moments.sums import LabelSums, mirrored


def pack_moments(moments: PatchMoments, *, rows: bool) -> Message:
    """The moments; ``rows`` leaves those that wait to be multiplied as they are."""
    moments._settle()
    if moments._pending and (not rows or moments._pending_weights):
        moments._flush()
    held: dict[str, Tensor | None] = {
        "rows": torch.cat(moments._pending, dim=1) if moments._pending else None,
        "labels": torch.cat(moments._pending_labels) if moments._pending_labels else None,
        "sample": moments._reservoir.rows,
        "sample_labels": moments._reservoir.labels,
        "priority": moments._reservoir._priority,
    }
    if moments._mean_and_scatter is not None:
        held["mean"], scatter = moments._mean_and_scatter
        held["triangle"] = _triangle(scatter)
    sums = moments._label_sums
    if sums is not None:
        held |= {"total": sums.total, "cross": sums.cross, "second": sums.second}
    there = {name: x for name, x in held.items() if x is not None}
    sizes = {"d_in": moments.d_in, "groups": moments.groups, "classes": moments.classes}
    sizes |= {"targets": moments.targets, "reservoir": moments.reservoir_size}
    state = {"_eps": moments._eps, "_rows_eps": moments._rows_eps}
    state |= {"_merged": moments._merged, "_mass": moments._mass}
    meta = {"sizes": sizes, "precision": moments.precision, "state": state, "names": list(there)}
    return Message(meta, list(there.values()))


def unpack_moments(message: Message, device: torch.device) -> PatchMoments:
    """What :func:`pack_moments` was given, on a device."""
    meta: dict[str, Any] = message.meta
    moments = PatchMoments(**meta["sizes"], precision=meta["precision"])
    vars(moments).update(meta["state"])
    held = {name: x.to(device) for name, x in zip(meta["names"], message.tensors, strict=True)}
    if "rows" in held:
        moments._pending, moments._pending_rows = [held["rows"]], held["rows"].shape[1]
        moments._pending_labels = [held["labels"]] if "labels" in held else []
    if "triangle" in held:
        moments._mean_and_scatter = held["mean"], _symmetric(held["triangle"], moments.d_in)
    if "total" in held:
        moments._label_sums = LabelSums(held["total"], held["cross"], held.get("second"))
    reservoir = moments._reservoir
    reservoir.rows, reservoir._priority = held.get("sample"), held.get("priority")
    reservoir.labels = held.get("sample_labels")
    return moments


def _triangle(x: Tensor) -> Tensor:
    """The upper triangles of (groups, d, d), row by row, (groups, d (d + 1) / 2)."""
    return torch.cat([x[:, row, row:] for row in range(x.shape[1])], dim=1)


def _symmetric(triangle: Tensor, d: int) -> Tensor:
    """The symmetric matrices (groups, d, d) of upper triangles."""
    x = triangle.new_zeros((len(triangle), d, d))
    for row, part in enumerate(triangle.split(list(range(d, 0, -1)), dim=1)):
        x[:, row, row:] = part
    return mirrored(x)
