from __future__ import annotations

from typing import Any

import pytest
import torch
from driver_helpers import mlp, unchanged
from torch import distributed as dist

import sylvinit
from sylvinit.errors import OptionError, OptionTypeError

X = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 4


@pytest.mark.parametrize("run", [sylvinit.initialize_, sylvinit.initialize_head_])
def test_torch_distributed_does_not_run(run: Any) -> None:
    model = mlp()
    with unchanged(model), pytest.raises(OptionError, match="init_process_group"):
        run(model, (X, Y), process_group="world")


@pytest.mark.parametrize(
    ("value", "error"), [("all", OptionError), (3, OptionTypeError), ([0, 1], OptionTypeError)]
)
def test_what_is_no_group(value: Any, error: type[Exception]) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(error, match=r"process_group must be None, 'world' or a process group"):
            sylvinit.initialize_(mlp(), (X, Y), process_group=value)
    finally:
        dist.destroy_process_group()


def test_a_group_of_this_process_alone() -> None:
    alone, grouped = mlp(), mlp()
    sylvinit.initialize_(alone, (X, Y))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        report = sylvinit.initialize_(grouped, (X, Y), process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    assert report.settings["process_group"] == "a group of 1 ranks"
    for one, other in zip(alone.parameters(), grouped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_backend_that_does_not_carry_float64() -> None:
    """torch's fake backend does nothing, and says that it has."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=2)
    model = mlp()
    try:
        with unchanged(model), pytest.raises(OptionError, match=r"'fake' did not gather .*nccl"):
            sylvinit.initialize_(model, (X, Y), process_group="world")
    finally:
        dist.destroy_process_group()
