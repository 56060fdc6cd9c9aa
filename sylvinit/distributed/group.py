"""The argument ``process_group``: which processes work together, if any."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sylvinit.distributed.ranks import ALONE, Ranks
from sylvinit.errors import ModelError, OptionError, OptionTypeError, SylvinitWarning

_START = (
    "call torch.distributed.init_process_group in every process first (torchrun starts them), or "
    "leave process_group=None"
)


def check_group(argument: str, value: Any) -> Any:
    """A process group that this process is in, or None.

    Raises:
        OptionTypeError: neither None, "world" nor a group.
        OptionError: torch.distributed is not initialized, or this process is not in the group.
    """
    if value is None:
        return None
    if isinstance(value, str) and value != "world":
        raise OptionError(f"{argument} must be None, 'world' or a process group, got {value!r}")
    if not dist.is_available() or not dist.is_initialized():
        raise OptionError(f"{argument}={value!r}, but torch.distributed is not running; {_START}")
    group = dist.group.WORLD if isinstance(value, str) else value
    there = isinstance(group, dist.ProcessGroup)
    # new_group gives an integer to processes that are not in the new group.
    if not there and group is not dist.GroupMember.NON_GROUP_MEMBER:
        raise OptionTypeError(
            f"{argument} must be None, 'world' or a process group, got {type(value).__name__}"
        )
    if not there or dist.get_rank(group) < 0:
        raise OptionError(
            f"{argument} is a group that this process (rank {dist.get_rank()} of the world) is not "
            "in; call it on the group's ranks alone, or pass a group with this one"
        )
    return group


def join(value: Any, model: Any, *, stacklevel: int) -> Ranks:
    """The ranks of ``process_group``, on the device of the model where its backend works there.

    ``stacklevel`` is that of the user's call for a warning raised here.

    Raises:
        OptionError, OptionTypeError: as :func:`check_group`; or the backend does not carry float64.
        ModelError: without a group, a model whose replicas torch holds to be equal.
    """
    group = check_group("process_group", value)
    if group is None:
        _look_around(model, stacklevel + 1)
        return ALONE
    if dist.get_world_size(group) == 1:
        return ALONE
    ranks = Ranks(group, _device(group, model))
    _check_float64(group, ranks)
    return ranks


def _look_around(model: Any, stacklevel: int) -> None:
    """Warn of other processes, whose weights would be others."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    while isinstance(getattr(model, "_orig_mod", None), nn.Module):
        model = model._orig_mod
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ModelError(
            "the model is wrapped in DistributedDataParallel, which takes its replicas to be "
            "equal, and every rank would get weights of its own; pass process_group='world' on "
            "every rank"
        )
    if isinstance(model, nn.Module) and any(map(is_sharded, model.modules())):
        raise ModelError(
            "the model is sharded by fully_shard, and no rank has all of a weight; pass "
            "process_group='world' on every rank, or the group of the ranks that it is sharded over"
        )
    warnings.warn(
        f"this is one of {dist.get_world_size()} processes and gets weights of its own: pass "
        "process_group='world' on every rank for the same ones, from the data of all",
        SylvinitWarning,
        stacklevel=stacklevel,
    )


def is_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` (FSDP2) was applied to a module."""
    loaded = sys.modules.get("torch.distributed.fsdp")  # which takes time to import
    return isinstance(module, getattr(loaded, "FSDPModule", ()))


def _device(group: Any, model: Any) -> torch.device:
    """Where messages lie: on the model's device if the group's backend works there."""
    config = dict(
        pair.split(":") for pair in str(dist.get_backend_config(group)).split(",") if ":" in pair
    )
    held = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    # gloo sends no GPU tensors from one rank to another.
    if held is not None and held.is_cuda and config.get("cuda", "gloo") != "gloo":
        return held.device
    if "cpu" in config or not config:
        return torch.device("cpu")
    kind = next(iter(config))
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def _check_float64(group: Any, ranks: Ranks) -> None:
    """Raise OptionError unless every rank's float64 number reaches this one."""
    backend = dist.get_backend(group)
    remedy = "pass a group of gloo or nccl, as torch.distributed.new_group(backend='gloo') makes"
    try:
        own = torch.full((1,), ranks.rank + 1 / 3, dtype=torch.float64, device=ranks.device)
        found = [torch.zeros_like(own) for _ in range(ranks.size)]
        dist.all_gather(found, own, group=group)
        right = [float(x) for x in found] == [rank + 1 / 3 for rank in range(ranks.size)]
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise OptionError(
            f"process_group: its backend {backend!r} does not gather float64 numbers ({error}); "
            f"{remedy}"
        ) from error
    if not right:
        raise OptionError(
            f"process_group: its backend {backend!r} did not gather the float64 numbers of "
            f"{ranks.size} ranks; {remedy}"
        )
