"""nn.MultiheadAttention: packed or separate q, k and v projections, and the output projection.

The module calls neither its projections nor their hooks, so that its layers hang on its own
forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sylvinit.model.layer import RowLayer, assign, register_layer


class _AttentionLayer(RowLayer):
    module: nn.MultiheadAttention

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x[None]
        return x if self.module.batch_first else x.transpose(0, 1)


class ProjectionLayer(_AttentionLayer):
    """The q, k or v projection: a third of the packed weight, or a weight of its own."""

    def __init__(self, module: nn.MultiheadAttention, name: str, index: int) -> None:
        letter = "qkv"[index]
        super().__init__(module, f"{name}.{letter}_proj" if name else f"{letter}_proj")
        self.kind = f"MultiheadAttention.{letter}"
        self.slot = letter
        self.index = index

    def _part(self) -> slice:
        size = self.module.embed_dim
        return slice(self.index * size, (self.index + 1) * size)

    @property
    def _packed(self) -> bool:
        return self.module.in_proj_weight is not None

    def tensors(self) -> dict[str, str]:
        weight = "in_proj_weight" if self._packed else f"{self.slot}_proj_weight"
        biased = self.module.in_proj_bias is not None
        return {"weight": weight, "bias": "in_proj_bias"} if biased else {"weight": weight}

    def input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        name = ("query", "key", "value")[self.index]
        return self._batch_first(args[self.index] if len(args) > self.index else kwargs[name])

    def weight_matrix(self) -> Tensor:
        weight = getattr(self.module, self.tensors()["weight"])
        return weight[self._part()] if self._packed else weight

    def set_weight_matrix(self, weight: Tensor) -> None:
        self._write(self.tensors()["weight"], weight, whole=not self._packed)

    def get_bias(self) -> Tensor | None:
        bias = self.module.in_proj_bias
        return None if bias is None else bias.detach()[self._part()][None]

    def set_bias(self, bias: Tensor) -> None:
        self._write("in_proj_bias", bias[0], whole=False)

    def _write(self, attribute: str, value: Tensor, *, whole: bool) -> None:
        if not whole:
            packed = getattr(self.module, attribute).detach().clone()
            packed[self._part()] = value.to(packed)
            value = packed
        assign(self.module, attribute, value)


class OutputProjectionLayer(_AttentionLayer):
    """The output projection, whose input is what the heads have attended to."""

    def __init__(self, module: nn.MultiheadAttention, name: str) -> None:
        super().__init__(module, f"{name}.out_proj" if name else "out_proj")
        self.kind = "MultiheadAttention.out"

    @property
    def owner(self) -> nn.Module:
        return self.module.out_proj

    def input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        # The module's own forward, hooks left out, with an identity for its last product.
        module, projection = self.module, self.module.out_proj
        stand_in = nn.Linear(projection.in_features, projection.out_features, device="meta")
        stand_in.weight = nn.Parameter(torch.eye(projection.in_features).to(projection.weight))
        stand_in.bias = nn.Parameter(torch.zeros_like(stand_in.weight[0]))
        module._modules["out_proj"] = stand_in
        try:
            output = module.forward(*args, **kwargs)
        finally:
            module._modules["out_proj"] = projection
        return self._batch_first(output[0])


@register_layer(nn.MultiheadAttention)
def attention_layers(module: nn.MultiheadAttention, name: str) -> list[RowLayer]:
    """The four layers of an attention module, in the order in which they are needed."""
    projections: list[RowLayer] = [ProjectionLayer(module, name, index) for index in range(3)]
    return [*projections, OutputProjectionLayer(module, name)]
