"""A model that FSDP2 has sharded, whole for the time of a call.

``fully_shard`` makes DTensors of parameters, and forwards that gather them and let them go again.
Microbatches that pause, and ranks with different numbers of them, cannot take part in that. So the
modules are for a while what they were before it, with whole parameters on every rank, and at the
end FSDP2 finds its shards where they were, with new values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sylvinit.distributed import Ranks, interrupts_deferred, is_sharded
from sylvinit.errors import ModelError
from sylvinit.model.modules import check_module
from sylvinit.model.obstacles import BEFORE_SHARDING, refuse_distributed, refuse_meta

_FSDP = "torch.distributed.fsdp._fully_shard"


@contextmanager
def unsharded(model: Any, ranks: Ranks) -> Iterator[None]:
    """Whole parameters on every rank in the block; shards get what was written if it succeeds.

    Units that FSDP2 holds gathered after a forward are sharded first. If the block fails, shards
    have not been touched.

    Raises:
        ModelError: parameters are not sharded over the ranks by ``fully_shard`` alone.
        RankError: ranks have different models; a rank has failed, or the group has.
    """
    model = check_module(model)
    units = [module for module in model.modules() if is_sharded(module)]
    if not units:
        yield
        return
    refuse_meta(model)
    for unit in units:
        unit.reshard()
    shards = _find_shards(model, units, ranks)
    lines = [f"{shard.name}: {shard.described()}" for shard in shards]
    ranks.agree("sharded models", lines, "build and shard the same one on every rank")
    with torch.inference_mode(False), torch.no_grad():
        whole = [shard.gathered(ranks) for shard in shards]
    back = ExitStack()
    succeeded = False
    try:
        _take_off(units, back)
        for shard, parameter in zip(shards, whole, strict=True):
            for module, key in shard.places:
                back.callback(setattr, module, key, shard.parameter)
                # Not into _parameters: recurrent modules keep lists of them beside.
                setattr(module, key, parameter)
        yield
        succeeded = True
    finally:
        with interrupts_deferred() as caught, back:
            if succeeded:
                for shard, parameter in zip(shards, whole, strict=True):
                    shard.write(parameter.detach(), ranks)
    if caught:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Shard:
    """A parameter of which every rank has a piece, along one axis."""

    name: str
    parameter: Any  # the DTensor
    places: list[tuple[nn.Module, str]]

    @property
    def _local(self) -> Tensor:
        with torch.no_grad():
            return self.parameter.to_local()

    @property
    def _axis(self) -> int:
        return self.parameter.placements[-1].dim

    @property
    def _pieces(self) -> int:
        """How many ranks share a copy; there are several with hybrid sharding (HSDP)."""
        return self.parameter.device_mesh.mesh.shape[-1]

    @property
    def _step(self) -> int:
        """The length of a piece; the last ones may be shorter, or empty."""
        return -(-self.parameter.shape[self._axis] // self._pieces)

    def described(self) -> str:
        x = self.parameter
        return f"{x.dtype} {tuple(x.shape)}, {x.placements} on {x.device_mesh.mesh.tolist()}"

    def check(self, ranks: Ranks) -> None:
        """Raise ModelError if it cannot be gathered from these ranks."""
        from torch.distributed.tensor import Shard  # which takes time, but for those who have it

        mesh, local, why = self.parameter.device_mesh, self._local, ""
        *copies, placement = self.parameter.placements
        hybrid = len(copies) < 2 and all(x.is_replicate() for x in copies)
        if not hybrid or type(placement) is not Shard:
            why = f"placed by {self.parameter.placements}"
        elif type(local) is not Tensor:
            why = f"in tensors of type {type(local).__name__}"
        elif local.device.type != mesh.device_type:
            why = f"and kept on {local.device} by CPUOffloadPolicy"
        if why:
            raise ModelError(f"{self.name} is sharded by fully_shard {why}; {BEFORE_SHARDING}")
        found = mesh.mesh.flatten().tolist()
        if found != ranks.processes:
            raise ModelError(
                f"{self.name} is sharded by fully_shard over the ranks {found}, and the call is "
                f"one of {ranks.processes}; pass the group of exactly those as process_group="
            )

    def gathered(self, ranks: Ranks) -> nn.Parameter:
        """All of it."""
        x, local, axis = self.parameter, self._local, self._axis
        size = [*x.shape]
        size[axis] = self._step
        padded = local.new_zeros(size)
        padded.narrow(axis, 0, local.shape[axis]).copy_(local)
        parts = ranks.gather_tensors(f"the shards of {self.name}", padded)
        first = ranks.rank // self._pieces * self._pieces
        whole = torch.cat(parts[first : first + self._pieces], axis)
        whole = whole.narrow(axis, 0, x.shape[axis]).contiguous()
        return nn.Parameter(whole, requires_grad=x.requires_grad)

    def write(self, whole: Tensor, ranks: Ranks) -> None:
        """Write this rank's piece."""
        local, axis = self._local, self._axis
        length = local.shape[axis]
        begin = min(ranks.rank % self._pieces * self._step, whole.shape[axis] - length)
        with torch.inference_mode(local.is_inference()), torch.no_grad():
            local.copy_(whole.narrow(axis, begin, length))


def _find_shards(model: nn.Module, units: list[nn.Module], ranks: Ranks) -> list[_Shard]:
    """All that ``fully_shard`` has made of parameters of the model.

    Raises ModelError if there is more in its way, before anything is gathered.
    """
    managed = {id(p.sharded_param): p for unit in units for p in _parameters_of(unit)}
    known = {key for key, p in managed.items() if not p.is_dtensor}  # by tensor parallelism before
    refuse_distributed(model, known)
    found: dict[int, _Shard] = {}
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if id(parameter) in known:
                name = f"{prefix}.{key}" if prefix else key
                shard = found.setdefault(id(parameter), _Shard(name, parameter, []))
                shard.places.append((module, key))
    if found.keys() != managed.keys():
        raise ModelError(
            "fully_shard has parameters gathered that cannot be sharded again, as after a forward "
            "that has raised; call reset_iter_state() of the outermost sharded module"
        )
    for shard in found.values():
        shard.check(ranks)
    return list(found.values())


def _parameters_of(unit: Any) -> list[Any]:
    """What FSDP2 knows of the parameters of a unit."""
    state = unit._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # an older torch, as 2.6, has one at most
        groups = [state._fsdp_param_group] if state._fsdp_param_group else []
    return [parameter for group in groups for parameter in group.fsdp_params]


def _take_off(units: list[nn.Module], back: ExitStack) -> None:
    """Make plain modules of units; ``back`` makes units of them again."""
    from torch.distributed.fsdp import FSDPModule

    for unit in units:
        plain = next(cls for cls in type(unit).__mro__ if not issubclass(cls, FSDPModule))
        back.callback(setattr, unit, "__class__", type(unit))
        unit.__class__ = plain
        for hooks in (unit._forward_pre_hooks, unit._forward_hooks):
            for key, hook in hooks.items():
                if getattr(hook, "__module__", "").startswith(_FSDP):
                    back.callback(hooks.__setitem__, key, hook)
                    hooks[key] = _nothing  # in its place, so that the order stays
        attributes = vars(unit)
        for key, value in attributes.items():
            # What register_fsdp_forward_method has made of a method.
            function = getattr(value, "__func__", None)
            if getattr(function, "__globals__", {}).get("__name__", "").startswith(_FSDP):
                back.callback(attributes.__setitem__, key, value)
                attributes[key] = vars(function)["__wrapped__"]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A hook that changes nothing."""
