"""Layers that standardize their weight: rows are centered and brought to one norm before use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sylvinit.model.layer import Layer, assign


class StandardizedLayer(Layer):
    """y = g W^ x + b with W^ = (W - mean W) / std W, by rows, of a layer y = W x + b.

    g = norm * gain, where ``norm`` is a number of the layer type's own and ``gain`` the name of a
    parameter with one entry for each output, or None where there is no such parameter. What is read
    and written as the layer's weight is g W^. Its rows are orthogonal to the constant 1, and
    without a gain all of one norm (Qiao et al. 2019; Brock, De and Smith 2021).
    """

    centers_rows = True

    def __init__(self, plain: Layer, gain: str | None, norm: float = 1.0) -> None:
        super().__init__(plain.module, plain.name)
        self.kind, self.slot = plain.kind, plain.slot
        self.groups, self.geometry = plain.groups, plain.geometry
        self.plain, self.gain, self.norm = plain, gain, norm

    def get_weight(self) -> Tensor:
        weight = self.plain.get_weight()
        rows = _centered(weight.double())
        rms = _rms(rows)
        rows = rows * (self.norm / torch.where(rms > 0, rms, 1.0))[:, :, None]
        if self.gain is not None:
            gain: Tensor = getattr(self.module, self.gain).detach()
            rows = rows * gain.double().reshape(*rms.shape, 1)
        return rows.to(weight.dtype)

    def set_weight(self, weight: Tensor) -> None:
        weight, present = _centered(weight), _rms(_centered(self.plain.get_weight().double()))
        rms = _rms(weight)
        # As large as the weight was: the larger it is, the less a step of training turns its rows.
        size = present.square().mean().sqrt()
        size = torch.where(size > 0, size, 1.0)
        self.plain.set_weight(weight * (size / torch.where(rms > 0, rms, 1.0))[:, :, None])
        if self.gain is not None:
            gain: Tensor = getattr(self.module, self.gain)
            assign(self.module, self.gain, (rms / self.norm).reshape(gain.shape))

    def row_scales(self, weight: Tensor) -> Tensor | None:
        if self.gain is not None:
            return None
        rms = _rms(_centered(weight))
        return self.norm / torch.where(rms > 0, rms, 1.0)

    def get_bias(self) -> Tensor | None:
        return self.plain.get_bias()

    def set_bias(self, bias: Tensor) -> None:
        self.plain.set_bias(bias)

    def tensors(self) -> dict[str, str]:
        return self.plain.tensors()

    def parameters(self, role: str) -> list[nn.Parameter]:
        parameters = super().parameters(role)
        if role == "weight" and self.gain is not None:
            parameters.append(getattr(self.module, self.gain))
        return parameters

    def input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        return self.plain.input(args, kwargs)

    def output_size(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], in_size: tuple[int, ...]
    ) -> tuple[int, ...]:
        return self.plain.output_size(args, kwargs, in_size)

    def notes(self) -> list[str]:
        kept = "all of one norm" if self.gain is None else f"with their norms in {self.gain}"
        return [f"standardizes its weight: rows orthogonal to the constant, {kept}"]


def gains_of(layer: Layer) -> list[str]:
    """Names of parameters of a layer's module, beside its own, with an entry for each output."""
    groups, outputs, _ = layer.get_weight().shape
    own = layer.tensors().values()
    return [
        name
        for name, parameter in layer.module._parameters.items()
        if parameter is not None and name not in own and parameter.numel() == groups * outputs
    ]


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=2, keepdim=True)


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(dim=2).sqrt()
