"""Old-style weight normalization, w = g v / |v|: a hook computes w anew before every forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm


def norm_of(module: nn.Module, attribute: str) -> WeightNorm | None:
    """The hook that computes a tensor of a module, if ``torch.nn.utils.weight_norm`` did that."""
    return next((hook for hook in _hooks(module) if hook.name == attribute), None)


def factors_of(module: nn.Module, norm: WeightNorm) -> list[nn.Parameter]:
    """The parameters g and v."""
    return [module._parameters[f"{norm.name}_{letter}"] for letter in "gv"]  # type: ignore[misc]


def write_factors(module: nn.Module, norm: WeightNorm, value: Tensor) -> None:
    """Write g = |w| and v = w, whose product is w; rows of w that are 0 keep their direction v."""
    g, v = factors_of(module, norm)
    length = torch.norm_except_dim(value, 2, norm.dim)
    with torch.inference_mode(g.is_inference()), torch.no_grad():
        g.copy_(length)
        v.copy_(torch.where(length > 0, value, v))
    refresh_weights(module)


def refresh_weights(module: nn.Module) -> None:
    """Compute what the module's hooks of weight normalization compute, from g and v as they are."""
    for norm in _hooks(module):
        norm(module, None)


def _hooks(module: nn.Module) -> list[WeightNorm]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
