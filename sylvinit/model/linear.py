"""Linear layers: nn.Linear, and those that store the transposed weight."""

from __future__ import annotations

from torch import Tensor, nn

from sylvinit.model.layer import RowLayer, assign, register_layer


@register_layer(nn.Linear)
class LinearLayer(RowLayer):
    """``nn.Linear``: weight (outputs, features)."""


@register_layer("transformers.pytorch_utils.Conv1D")
class TransposedLinearLayer(RowLayer):
    """A linear layer with weight (features, outputs), as GPT-2's Conv1D."""

    def weight_matrix(self) -> Tensor:
        return self.owner.weight.t()  # type: ignore[operator, union-attr]

    def set_weight_matrix(self, weight: Tensor) -> None:
        assign(self.owner, "weight", weight.t())
