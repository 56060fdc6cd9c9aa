"""What a model is apart from its layers: wrappers, its device, who holds a parameter."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sylvinit.errors import ModelError, OptionTypeError
from sylvinit.model.obstacles import module_obstacle, refuse_distributed, refuse_meta


def check_module(model: Any) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel.

    Raises OptionTypeError if ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise OptionTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def device_of(model: nn.Module) -> torch.device:
    """The one device of the model's parameters and buffers.

    Raises ModelError if there is none, there are several, it is the meta device, or parameters are
    spread over ranks.
    """
    refuse_distributed(model)
    refuse_meta(model)
    devices = {x.device for x in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise ModelError(f"the model lies on several devices ({names}); move it to one")
    if not devices:
        found = next(filter(None, map(module_obstacle, model.modules())), None)
        why = "" if found is None else f"; it is {found.reason}; {found.remedy}"
        raise ModelError(f"the model has no parameters{why}")
    return devices.pop()


def refuse_lazy(model: nn.Module) -> None:
    """Raise ModelError if a module has weights that only its first forward will make."""
    for name, module in model.named_modules():
        if any(p is not None and is_lazy(p) for p in module._parameters.values()):
            raise ModelError(
                f"{name or 'the model'} is lazy and has no weight yet; run the model once on data"
            )


def family(name: str) -> str:
    """Equal for names that differ in numbers alone, like those of the experts of a layer."""
    return re.sub(r"\d+", "#", name)


def clean_name(name: str) -> str:
    """A qualified name without the wrappers that torch.compile puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def memory_key(parameter: Tensor) -> Hashable:
    """Equal for the same parameter, and for those in the same memory (``a.data = b.data``)."""
    dense = parameter.layout == torch.strided and type(parameter.data) is Tensor
    if not dense or is_lazy(parameter) or parameter.is_meta or parameter.numel() == 0:
        return id(parameter)
    return parameter.device, parameter.data_ptr(), parameter.numel()


def parameter_holders(modules: Iterable[nn.Module]) -> dict[Hashable, list[nn.Module]]:
    """Which of the modules hold each parameter, by :func:`memory_key`."""
    holders: dict[Hashable, list[nn.Module]] = {}
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(memory_key(parameter), []).append(module)
    return holders


def is_hidden(x: Tensor) -> bool:
    """Whether a tensor has no memory of its own, as inside of ``torch.vmap``."""
    try:
        x.untyped_storage().data_ptr()
    except NotImplementedError:
        return True
    return False
