"""What the model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sylvinit.execution.batches.batch import Batch
from sylvinit.execution.batches.values import map_tensors
from sylvinit.options import ForwardFn


class Forward:
    """Runs a model on batches.

    It is given copies of their inputs on its device, because it may work in place and a batch may
    be needed again.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, forward_fn: ForwardFn | None = None
    ) -> None:
        self._model, self._device, self._forward_fn = model, device, forward_fn

    def __call__(self, batch: Batch) -> Any:
        """What the model, or ``forward_fn``, returns."""
        inputs = map_tensors(batch.inputs, lambda x: x.to(self._device, copy=True))
        if self._forward_fn is not None:
            return self._forward_fn(self._model, inputs)
        if isinstance(inputs, Mapping):
            return self._model(**inputs)
        if isinstance(inputs, (tuple, list)):
            return self._model(*inputs)
        return self._model(inputs)
