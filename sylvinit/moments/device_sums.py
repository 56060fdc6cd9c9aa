"""Sums over patches that stay on the device until they are asked for: nothing waits for them."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from sylvinit.backends.memory import memory_for
from sylvinit.errors import DataError, LabelError
from sylvinit.moments.fused import columns, patch_gram, patch_mean, unit_roundoff
from sylvinit.moments.fused_layout import ELEMENT_TYPES, PatchLayout
from sylvinit.moments.sums import LabelSums, RowSums, mirrored

# Patches whose mean is the shift: it then differs from the mean by a tenth of the spread.
_SHIFT_PATCHES = 256
# Limits of the kernels, see check_patch_gram in csrc/cuda/patch_gram.cu.
_MOST_TAP_SLOTS = 96
_MOST_COLUMNS = 2**16
_MOST_GROUPS = 2**16 - 1


def can_fuse(x: Tensor, layout: PatchLayout, codes: int) -> bool:
    """Whether the patch_gram kernels take this activation: see their limits in csrc/cuda.

    ``codes`` is the number of classes or targets.
    """
    spatial = zip(x.shape[2:], x.stride()[2:], strict=True)
    return (
        str(x.dtype) in ELEMENT_TYPES
        and layout.tap_slots <= _MOST_TAP_SLOTS
        and layout.groups <= _MOST_GROUPS
        and columns(x, layout, codes, None) <= _MOST_COLUMNS
        and sum((size - 1) * stride for size, stride in spatial) < 2**31 - 1
    )


class PatchAccumulator:
    """Adds patches of one layer's activations with the patch_gram operator.

    Features are added up in the order (tap, channel) if ``tap_major``, which suits channels_last
    activations, else (channel, tap), which suits contiguous ones.
    """

    def __init__(
        self, classes: int, targets: int = 0, *, tap_major: bool, arithmetic: str = "3xtf32"
    ) -> None:
        self.classes, self.targets = classes, targets
        self.tap_major, self.arithmetic = tap_major, arithmetic
        self.n = 0
        self._second: Tensor | None = None  # of the targets, float64 (targets, targets)
        self._taps = 1
        self._held: tuple[Tensor, Tensor, Tensor] | None = None  # Gram matrix, shift, status

    def add(
        self,
        x: Tensor,
        layout: PatchLayout,
        labels: Tensor | None,
        entry: Tensor | None = None,
        position: Tensor | None = None,
    ) -> None:
        """Add the patches of an activation; see :func:`patch_gram`.

        Targets, float64 (n, targets), are those of listed patches; they are rounded to float32.
        """
        x = x.detach()
        labels = None if labels is None else labels.contiguous()
        code = None
        if self.targets and labels is not None:
            code, labels = labels.float(), None
            second = code.double().mT @ code.double()
            self._second = second if self._second is None else self._second + second
        # The rows beside the patches and the constant would be codes times codes: known already.
        layout = replace(layout, rows=layout.features(x) + 1)
        numbers = layout.numbers()
        n = layout.patches(x, entry)
        if self._held is None:
            size = columns(x, layout, self.classes, code)
            shape = (layout.groups, layout.rows, size)
            with memory_for(f"a Gram matrix {shape} in float64", 8 * prod(shape)):
                gram = torch.zeros(shape, dtype=torch.float64, device=x.device)
            status = torch.zeros(1, dtype=torch.int32, device=x.device)
            self._taps = layout.taps
            shift = patch_mean(x, numbers, min(n, _SHIFT_PATCHES), entry, position)
            self._held = gram, shift, status
        gram, shift, status = self._held
        beside = (shift, labels, self.classes, code)
        patch_gram(x, gram, status, *beside, entry, position, numbers, self.arithmetic)
        self.n += n

    def sums(self) -> RowSums:
        """Everything added so far, features tap-major. Waits for the device.

        Raises:
            LabelError: a label was out of range.
            DataError: nothing was added, or a listed patch does not exist.
        """
        if self._held is None:
            raise DataError("no patches have been added to this accumulator")
        gram, shift, flags = self._held
        status = int(flags)
        if status & 1:
            raise LabelError(f"labels must lie in [0, {self.classes}); some do not")
        if status:
            raise DataError("a listed patch does not exist in the activation")
        d, order = shift.shape[1], slice(None)
        if not self.tap_major:
            order = torch.arange(d, device=gram.device).view(-1, self._taps).T.flatten()
        rows = gram[:, :d]
        labels = None
        if self.classes or self.targets:
            cross = rows[:, order, d + 1 :].mT
            labels = LabelSums(gram[0, d, d + 1 :].clone(), cross, self._second)
        return RowSums(
            self.n,
            rows[:, order, d],
            mirrored(rows[:, :, :d])[:, order][:, :, order],
            shift[:, order],
            labels,
            unit_roundoff(self.arithmetic),
        )
