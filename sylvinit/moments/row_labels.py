"""Which label each row of a layer's input has."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sylvinit.errors import LabelError


@dataclass(frozen=True)
class LabelKind:
    """What the labels of a layer's rows are.

    Those of a microbatch are classes, int64 (samples,) with -1 for none, or targets, float64
    (samples, targets) with NaN for none. With ``of_rows`` every row of a sample has its own:
    (samples, *positions) and (samples, *positions, targets).

    Attributes:
        classes: their number, 0 without.
        targets: number of columns, 0 without.
        of_rows: whether every row has its own.
        missing: whether some rows have none; they are dropped.
        weights: float64 (classes,), what a row of each class counts, or (2,), a row of a negative
            and of a positive target; None for 1.
    """

    classes: int = 0
    targets: int = 0
    of_rows: bool = False
    missing: bool = False
    weights: Tensor | None = None

    def __bool__(self) -> bool:
        return bool(self.classes or self.targets)

    @property
    def plain(self) -> bool:
        """Whether all rows of a sample have its label, and count alike."""
        return not (self.of_rows or self.missing or self.weights is not None)

    def weights_of(self, labels: Tensor) -> Tensor | None:
        """What each of the rows with these labels counts, float64 (n,)."""
        if self.weights is None:
            return None
        kinds = labels if self.classes else (labels[:, 0] > 0).long()
        return self.weights.to(labels.device)[kinds]

    def present(self, labels: Tensor) -> Tensor:
        """Which of the labels (n,) or (n, targets) there are, bool (n,)."""
        return labels >= 0 if self.classes else ~labels.isnan().any(dim=-1)


NO_LABELS = LabelKind()


def fit_positions(
    labels: Tensor, kind: LabelKind, name: str, rows: int, size: tuple[int, ...], resample: bool
) -> tuple[Tensor, str]:
    """Labels (samples, rows) or (samples, rows, targets) for the rows of a layer, and a note.

    Args:
        labels: (samples, *positions) or (samples, *positions, targets).
        rows: how many the layer ``name`` has of every sample.
        size: of the map that they form.
        resample: whether a map of another size is read at the nearest neighbors (the pixel at
            floor((i + 1/2) H / h) for row i of h where the labels have H).

    Raises:
        LabelError: the labels do not fit the rows.
    """
    axes = tuple(labels.shape[1:-1] if kind.targets else labels.shape[1:])
    if prod(axes) == rows and (len(axes) != len(size) or axes == size):
        return labels.flatten(1, len(axes)), ""
    if not resample or len(axes) != len(size) or prod(size) != rows:
        raise LabelError(
            f"labels of rows must have one entry for every row of layer {name or '(model)'}: got "
            f"{axes} a sample, expected {size or (rows,)}; pass labels at that resolution, or "
            "one label a sample"
        )
    for axis, (have, want) in enumerate(zip(axes, size, strict=True), start=1):
        nearest = ((torch.arange(want) + 0.5) * have / want).long().to(labels.device)
        labels = labels.index_select(axis, nearest)
    note = f"labels {axes} are read at the nearest neighbors of its map {size}"
    return labels.flatten(1, len(axes)), note
