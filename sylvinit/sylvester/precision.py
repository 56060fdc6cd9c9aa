"""Products of derivatives in the precision of their operands."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off where it is on: the solver does not lower precision, nor must these."""
    kind = x.device.type
    if kind in ("cpu", "cuda", "xpu") and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
