"""Models under fully_shard as plain ones, in one process; scenarios/test_sharded.py has several."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from driver_helpers import images, small_net, unchanged
from rank_pool import needs_gloo
from torch import distributed as dist
from torch import nn

import sylvinit
from sylvinit.distributed import ALONE
from sylvinit.errors import ModelError
from sylvinit.execution import shards
from sylvinit.execution.shards import unsharded

pytestmark = needs_gloo


@pytest.fixture
def model() -> Iterator[nn.Module]:
    """The small network, under fully_shard in a world of one process."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        model = small_net()
        for unit in (model.conv2, model.fc, model):
            fully_shard(unit, mesh=mesh)
        yield model
    finally:
        dist.destroy_process_group()


def test_modules_are_plain_and_users_hooks_stay(model: nn.Module) -> None:
    plain = small_net()
    with unchanged(model):
        with unsharded(model, ALONE):
            for (name, unit), (_, other) in zip(
                model.named_modules(), plain.named_modules(), strict=True
            ):
                assert type(unit) is type(other), name
                for key, parameter in unit.named_parameters(recurse=False):
                    assert type(parameter) is nn.Parameter
                    assert torch.equal(parameter, other.get_parameter(key))
            names = {hook.__module__ for hook in model.conv2._forward_pre_hooks.values()}
            assert "driver_helpers" in names  # a user's
            assert not any(name.startswith("torch") for name in names)
        assert type(model.conv2).__name__ == "FSDPConv2d"


def _write(model: nn.Module, names: tuple[str, ...], error: BaseException | None = None) -> None:
    with unsharded(model, ALONE):
        for name in names:
            nn.init.constant_(model.get_parameter(name), 0.5)
        if error is not None:
            raise error


def test_what_is_written_and_what_is_not(model: nn.Module) -> None:
    with unchanged(model, written=("fc.weight",)):
        _write(model, ("fc.weight",))
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        _write(model, ("conv1.weight",), KeyboardInterrupt())


def test_no_shard_is_left_half_written(model: nn.Module) -> None:
    """Ctrl-C while shards are written is raised when all of them are."""
    write = shards._Shard.write

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(*arguments)

    names = ("conv1.weight", "conv2.weight", "fc.weight")
    with (
        unchanged(model, written=names),
        patch.object(shards._Shard, "write", interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        _write(model, names)


def test_one_process_needs_no_group(model: nn.Module) -> None:
    alone = small_net()
    sylvinit.initialize_(alone, images(20))
    sylvinit.initialize_(model, images(20))
    for one, other in zip(alone.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other.to_local())


def test_offloaded_shards() -> None:
    """They would have to be on the device where the forward runs."""
    from torch.distributed.tensor import Shard

    mesh = SimpleNamespace(device_type="cuda", mesh=torch.tensor([0]))
    parameter = SimpleNamespace(
        device_mesh=mesh, placements=(Shard(0),), to_local=lambda: torch.ones(3)
    )
    with pytest.raises(ModelError, match=r"kept on cpu by CPUOffloadPolicy; initialize .* before"):
        shards._Shard("fc.weight", parameter, []).check(ALONE)
