"""Spatial filters of a network: from a module, a state dict, a file or a weight."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sylvinit.errors import DataError, ModelError, OptionTypeError
from sylvinit.execution.guard import ModelGuard
from sylvinit.model.modules import check_module, clean_name, refuse_lazy
from sylvinit.priors.matrix import shown

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Where training scripts put the state dict within a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model", "module")


def spatial_filters(source: Any, kernel: tuple[int, ...]) -> dict[str, Tensor]:
    """The weights (units, channels, *kernel) with filters of one size, by layer, in their order.

    Shared weights are there once. Weights are detached, finite, not empty, and as they are stored,
    but 8-bit ones are float32. ModelError if there are none.
    """
    found = _weights(source)
    chosen = {
        name: _checked(name, weight)
        for name, weight in found.items()
        if tuple(weight.shape[2:]) == kernel and weight.numel() > 0
    }
    if chosen:
        return chosen
    remedy = "found no weights of three to five axes; expected those of convolutions"
    sizes = sorted({tuple(weight.shape[2:]) for weight in found.values()})
    if sizes:
        # A single number would stand for a square kernel.
        there = ", ".join(shown(size) if len(size) != 1 else str(size) for size in sizes)
        remedy = f"kernel sizes found: {there}; choose one with kernel_size="
    raise ModelError(f"model_or_weights has no spatial filters of {shown(kernel)}; {remedy}")


def _checked(name: str, weight: Tensor) -> Tensor:
    if weight.is_meta:
        raise ModelError(f"{name} is on the meta device and has no values; load weights first")
    if not weight.is_floating_point():
        raise OptionTypeError(
            f"{name} must be a floating-point weight, got {weight.dtype}; dequantize it first"
        )
    # There is hardly any arithmetic for 8-bit types.
    values = weight.float() if weight.itemsize == 1 else weight
    if not bool(values.isfinite().all()):
        raise DataError(f"{name} holds NaN or Inf; the correlation of its filters is undefined")
    return values.detach().as_subclass(Tensor)


def _weights(source: Any) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return _of_module(source)
    if is_lazy(source):
        raise ModelError("the weight is lazy and has no values yet; run the model once on data")
    if isinstance(source, Tensor):
        return {"weight": source}
    if isinstance(source, (str, PathLike)):
        return _of_mapping(_read(Path(source)))
    if isinstance(source, Mapping):
        return _of_mapping(source)
    raise OptionTypeError(
        "model_or_weights must be a torch.nn.Module, a state dict, a path or a weight tensor, got "
        f"{type(source).__name__}"
    )


def _of_module(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    model = check_module(model)
    refuse_lazy(model)
    for name, module in model.named_modules():
        # Not getattr: computing a parametrized weight may change buffers and random states.
        own = module._parameters.get("weight") is not None
        if isinstance(module, _CONVOLUTIONS) and (own or parametrize.is_parametrized(module)):
            name = clean_name(name)
            found[f"{name}.weight" if name else "weight"] = _weight_of(module)
    return _once_each(found)


def _weight_of(module: nn.Module) -> Tensor:
    meta = any(parameter.is_meta for parameter in module.parameters())
    computed = parametrize.is_parametrized(module) and not meta
    with ModelGuard(module) if computed else nullcontext():
        return module.weight.detach()  # type: ignore[union-attr, operator]


def _once_each(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without those that lie in the same memory as an earlier one: weights that layers share."""
    found: dict[tuple[Any, ...], str] = {}
    for name, weight in weights.items():
        hidden = weight.is_meta or weight.layout != torch.strided
        place = name if hidden else weight.data_ptr()
        found.setdefault((place, weight.shape, str(weight.device)), name)
    return {name: weights[name] for name in found.values()}


def _of_mapping(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    if (nested := _nested(state)) is not None:
        return _of_mapping(nested)
    weights = {str(name): value for name, value in state.items() if _may_be_weight(name, value)}
    if all(name.startswith("module.") for name in weights):  # of DataParallel
        weights = {name.removeprefix("module."): weight for name, weight in weights.items()}
    return _once_each({clean_name(name): weight for name, weight in weights.items()})


def _may_be_weight(name: Any, value: Any) -> bool:
    if not isinstance(value, Tensor) or not 3 <= value.ndim <= 5:
        return False
    # Masks and counters are no weights; an integer "weight" is one that cannot be used, and said.
    return value.is_floating_point() or str(name).endswith("weight")


def _nested(state: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The state dict within a checkpoint: under a usual name, or the only one there is."""
    inside = {
        key: value
        for key, value in state.items()
        if isinstance(value, Mapping) and _holds_weights(value)
    }
    for key in _NESTED:
        if key in inside:
            return inside[key]
    if len(inside) > 1:
        raise ModelError(
            f"model_or_weights holds several networks: {', '.join(map(str, inside))}; pass one"
        )
    return next(iter(inside.values()), None)


def _holds_weights(state: Mapping[Any, Any]) -> bool:
    """Here or under a usual name; not anywhere else, as in the state of an optimizer."""
    if any(_may_be_weight(*item) for item in state.items()):
        return True
    nested = (state.get(key) for key in _NESTED)
    return any(isinstance(value, Mapping) and _holds_weights(value) for value in nested)


def _read(path: Path) -> Mapping[Any, Any]:
    if not path.is_file():
        raise DataError(f"model_or_weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # parsers raise nearly anything on a damaged file
        # torch's own text is a screenful of advice that does not apply here.
        reason = str(error).split("\n", 1)[0]
        if path.suffix != ".safetensors" and isinstance(error, pickle.UnpicklingError):
            reason = "it holds other objects, or no tensors"
        raise DataError(
            f"model_or_weights: {path} is no file of weights alone ({reason}); write one with "
            "torch.save(model.state_dict(), path)"
        ) from error
    if isinstance(state, Tensor):
        return {"weight": state}
    if isinstance(state, Mapping):
        return state
    raise DataError(
        f"model_or_weights: {path} holds a {type(state).__name__}; expected a state dict"
    )
