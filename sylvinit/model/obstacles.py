"""Why a weight cannot be solved, or not be written the normal way, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from sylvinit.errors import ModelError
from sylvinit.model.weight_norm import norm_of


@dataclass(frozen=True)
class Obstacle:
    """One kind of reason.

    Attributes:
        kind: what layers of this kind are; it heads their common warning.
        reason: for a layer's report.
        remedy: what the user can do.
    """

    kind: str
    reason: str
    remedy: str


PRUNED = Obstacle(
    "skipped, pruned",
    "pruned: its weight is computed from weight_orig and a mask",
    "initialize the network first and prune it then (torch.nn.utils.prune.remove would make them "
    "ordinary layers, whose zeros are overwritten)",
)
SPECTRAL_NORM = Obstacle(
    "skipped, old-style spectral_norm",
    "under torch.nn.utils.spectral_norm: weights of another norm cannot be written",
    "call torch.nn.utils.remove_spectral_norm before and torch.nn.utils.spectral_norm after",
)
PARAMETRIZED = Obstacle(
    "skipped, parametrized",
    "",  # is the parametrization's own
    "call torch.nn.utils.parametrize.remove_parametrizations before and register them after",
)
COMPUTED = Obstacle(
    "skipped, no parameter",
    "its weight is a tensor and no parameter: a buffer, or computed by a hook or the forward",
    "make it a torch.nn.Parameter, and what is computed from parameters a parametrization "
    "(torch.nn.utils.parametrize) with right_inverse",
)
QUANTIZED = Obstacle(
    "skipped, quantized",
    "quantized, or made ready for it: its weight is stored, or used, in few bits",
    "initialize the network in floating point and quantize it then",
)
COMPLEX = Obstacle(
    "skipped, complex",
    "its weight is complex, and equations of layers are real",
    "keep real and imaginary parts as layers of their own, or leave it as it is",
)
SUBCLASS = Obstacle(
    "skipped, weight of another tensor type",
    "its weight is of a subclass of torch.Tensor, which may store it in its own way",
    "initialize the network with plain parameters and convert it then",
)
FLAT = Obstacle(
    "skipped, flat FSDP parameters",
    "inside of FullyShardedDataParallel: its weight is a piece of a flat parameter of all ranks",
    "initialize the network before it is wrapped, on every rank with process_group='world'",
)
SCRIPTED = Obstacle(
    "skipped, TorchScript",
    "compiled by TorchScript: nothing can be seen or written in the middle of its forward",
    "initialize the Python modules and call torch.jit.script or torch.jit.trace then",
)
RECURRENT = Obstacle(
    "skipped, recurrent",
    "recurrent: its weights also act on states that they make themselves, for which there is no "
    "equation",
    "they keep their values, and exclude= with their names ends this warning",
)
MAPPED = Obstacle(
    "skipped, inside of torch.vmap",
    "its input cannot be looked at inside of torch.vmap and the like",
    "run the layer on the whole batch, outside of torch.vmap, or leave it as it is",
)
BYPASSED = Obstacle(
    "skipped, used past the module",
    "its weight was used but the module was not called: F.linear(x, layer.weight) and "
    "layer.forward(x) run no hooks",
    "call the module, layer(x), or leave it as it is",
)
# Of a layer that was solved all the same.
USED_BESIDE = Obstacle(
    "weights also used past their modules",
    "",
    "solved from the inputs of the modules' calls alone, for F.linear(x, layer.weight) and "
    "layer.forward(x) run no hooks; call the module, layer(x)",
)
ADDED_ZEROS = Obstacle(
    "left at zero",
    "left at zero: its output is added to something that was made without it, as an adapter's",
    "the network computes what it did without them; include= that names nothing else has them "
    "solved",
)
_ALL = (
    *(PRUNED, SPECTRAL_NORM, PARAMETRIZED, COMPUTED, QUANTIZED, COMPLEX, SUBCLASS, FLAT),
    *(SCRIPTED, RECURRENT, MAPPED, BYPASSED, USED_BESIDE, ADDED_ZEROS),
)
REMEDIES = {obstacle.kind: obstacle.remedy for obstacle in _ALL}


BEFORE_SHARDING = (
    "initialize the network before it is sharded, on every rank with process_group='world', or "
    "initialize a copy on one rank and load its state dict with "
    "torch.distributed.checkpoint.state_dict.set_model_state_dict"
)


def weight_obstacle(module: nn.Module, attribute: str) -> Obstacle | None:
    """What is in the way of writing the tensor of that name; None also for what can be written.

    What cannot be written because of a parametrization is not known before a weight is tried.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == attribute:
            return PRUNED
        if isinstance(hook, SpectralNorm) and hook.name == attribute:
            return SPECTRAL_NORM
    if norm_of(module, attribute):
        return None
    if parametrize.is_parametrized(module, attribute):
        originals = module.parametrizations[attribute].parameters()  # type: ignore[index]
        return None if any(True for _ in originals) else COMPUTED
    # What rounds its weight in the forward is a layer only if it was seen to compute what one does.
    obstacle = None if _rounds_its_weight(module) else module_obstacle(module)
    if obstacle is not None:
        return obstacle
    weight = getattr(module, attribute)
    if not isinstance(weight, nn.Parameter):
        return COMPUTED
    if weight.is_complex():
        return COMPLEX
    if not weight.is_floating_point() or weight.is_quantized or weight.itemsize < 2:
        return QUANTIZED
    return None if type(weight.data) is Tensor else SUBCLASS


def module_obstacle(module: nn.Module) -> Obstacle | None:
    """What is in the way of solving a module as a whole, whether it is a layer or not."""
    if isinstance(module, torch.jit.ScriptModule):
        return SCRIPTED
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return RECURRENT
    if _rounds_its_weight(module):
        return QUANTIZED
    packed = callable(getattr(module, "weight", None)) or hasattr(module, "_all_weight_values")
    is_quantized = packed and ".quantized." in f"{type(module).__module__}."
    return QUANTIZED if is_quantized else None


def _rounds_its_weight(module: nn.Module) -> bool:
    """Whether it is in training that knows of quantization."""
    return any(hasattr(module, name) for name in ("weight_fake_quant", "weight_fake_quantizer"))


def modules_of_flat_parameters(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Those of the modules that FullyShardedDataParallel has flattened the parameters of."""
    wrapper = _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")
    return {
        inside
        for module in modules
        if wrapper is not None and isinstance(module, wrapper)
        for inside in module.modules()
    }


def refuse_distributed(model: nn.Module, known: Container[int] = ()) -> None:
    """Raise ModelError if parameters or buffers are DTensors, but for those of the ids ``known``.

    Tensor parallelism has them: a forward with collectives must not be held or undone.
    """
    kind = _loaded("torch.distributed.tensor", "DTensor")
    if kind is None:
        return
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, kind) and id(tensor) not in known:
            raise ModelError(
                f"{name} is a DTensor, a part of which lies on every rank, and not by fully_shard "
                "of a module in the model (tensor parallelism, or the model is a part of a sharded "
                f"one); {BEFORE_SHARDING}"
            )


def refuse_meta(model: nn.Module) -> None:
    """Raise ModelError if parameters or buffers have no values, or those lie elsewhere."""
    held = (*model.named_parameters(), *model.named_buffers())
    name = next((name for name, tensor in held if tensor.is_meta), None)
    if name is None:
        return
    if any(hasattr(module, "_hf_hook") for module in model.modules()):  # accelerate's
        raise ModelError(
            f"{name} is on the meta device, for accelerate has offloaded it; load the model "
            "without offloading (device_map=None) or, if it had its weights before cpu_offload or "
            "disk_offload, call accelerate.hooks.remove_hook_from_submodules(model). Do not call "
            "to_empty(): that would erase the weights"
        )
    raise ModelError(
        f"{name} is on the meta device and has no values; call model.to_empty(device=...) and then "
        "reset_parameters() of every module that has it, or load a state dict. (to_empty alone "
        "leaves whatever was in memory in the layers that are not solved)"
    )


def _loaded(module: str, name: str) -> Any:
    """A class of a module that takes time to import; None while nobody else has imported it."""
    return getattr(sys.modules.get(module), name, None)
