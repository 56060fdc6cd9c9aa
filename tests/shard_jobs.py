"""What the ranks of tests do with models that fully_shard has sharded; see rank_pool.py."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from driver_helpers import own_part, unchanged
from rank_jobs import Fault, network, part_of
from torch import Tensor, nn
from torch import distributed as dist

import sylvinit

Arrays = dict[str, np.ndarray]
SIZES = {2: (23, 18), 4: (20, 1, 0, 20)}
SMALL = {2: (30, 11), 4: (20, 10, 0, 11)}  # for microbatches of 7


def sharded(model: nn.Module, mesh: Any, how: str = "") -> nn.Module:
    """The model and each child of it as a unit of FSDP2."""
    from torch.distributed import fsdp

    units = [child for child in model.children() if any(True for _ in child.parameters())]
    options: dict[str, Any] = {"mesh": mesh}
    if how == "bfloat16":
        options["mp_policy"] = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    elif how == "offloaded":
        options["offload_policy"] = fsdp.CPUOffloadPolicy(pin_memory=False)
    elif how == "second axis":
        options["shard_placement_fn"] = _second_axis
    elif how == "to two":
        options["reshard_after_forward"] = 2
    elif how in ("the root alone", "after a forward"):
        units = []
    elif how == "in pairs":
        units = [units[i : i + 2] for i in range(0, len(units), 2)]
    elif how == "some ignored":
        options["ignored_params"] = set(units[0].parameters())
    for unit in units:
        fsdp.fully_shard(unit, **options)
    fsdp.fully_shard(model, **options)
    if how == "methods":
        fsdp.register_fsdp_forward_method(model, "predict")
    return model


def _second_axis(parameter: nn.Parameter) -> Any:
    from torch.distributed.tensor import Shard

    return Shard(1) if parameter.ndim > 1 and parameter.shape[1] % 4 == 0 else None


def mesh_of(group: Any) -> Any:
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(group, "cpu")


def two_by_two(*names: str) -> Any:
    """Of all four processes."""
    return dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=names)


class Predictor(nn.Sequential):
    """A network that is called by another name."""

    def predict(self, x: Tensor) -> Tensor:
        return self(x)


@dataclass
class Outcome:
    """What a rank has of a model after a call.

    Attributes:
        shards: this rank's part of every parameter, and all of the buffers.
        kept: whether the parameters are the objects that an optimizer was given before.
        whole: parameters and buffers after three steps of training.
    """

    shards: Arrays
    kept: bool = True
    whole: Arrays = field(default_factory=dict[str, np.ndarray])


def _shards(model: nn.Module) -> Arrays:
    held = (*model.named_parameters(), *model.named_buffers())
    return {name: own_part(x.detach()).numpy().copy() for name, x in held}


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> Arrays:
    """Three steps on the same batch on every rank, so that gradients are those of one process."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    for _ in range(3):
        optimizer.zero_grad()
        if isinstance(data, dict):
            model(**data).loss.backward()
        else:
            nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    held = {name: x.detach() for name, x in model.named_parameters()}
    full = {k: x.full_tensor() if hasattr(x, "full_tensor") else x for k, x in held.items()}
    return {name: x.numpy().copy() for name, x in full.items()}


def _made(name: str) -> tuple[nn.Module, Any]:
    """A network and data: "uneven", two variants of that with batch norm, or those of others.

    The rows of "uneven" do not go into 2 or 4 pieces of one length; one of its weights is tied.
    """
    if name == "uneven":
        torch.manual_seed(0)
        twice = nn.Linear(9, 9)
        body = [nn.Linear(24, 9), nn.ReLU(), twice, nn.Tanh(), twice, nn.Linear(9, 3)]
        x, _ = network("table")[1]
        return nn.Sequential(*body).double(), (x, torch.arange(len(x)) % 3)
    if name == "float32":
        model, (x, y) = network("batch norm")
        return model.float(), (x.float(), y)
    if name == "predictor":
        model, data = network("batch norm")
        return Predictor(*model), data
    return network(name)


@cache
def alone(name: str, *, head: bool = False) -> Outcome:
    """What one process makes of all data."""
    model, data = _made(name)
    _call(model, data, head, {})
    outcome = Outcome(_shards(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    outcome.whole = _train(model, optimizer, data)
    return outcome


def _call(model: nn.Module, data: Any, head: bool, options: dict[str, Any]) -> None:
    if head:
        sylvinit.initialize_head_(model, data, **options)
    else:
        sylvinit.initialize_(model, data, **{"preset": "best", **options})


def replica(
    group: Any, rank: int, name: str, head: bool = False, options: dict[str, Any] | None = None
) -> Arrays:
    """The state of a model that is not sharded, after the same call."""
    model, data = _made(name)
    own = part_of(data, SIZES[dist.get_world_size(group)], rank)
    _call(model, own, head, {**(options or {}), "process_group": group})
    return _shards(model)


def initialize(
    group: Any,
    rank: int,
    name: str,
    how: str = "",
    head: bool = False,
    options: dict[str, Any] | None = None,
) -> Outcome:
    """The state of a sharded model after initialize_ on this rank's part of the data."""
    size = dist.get_world_size(group)
    model, data = _made(name)
    sharded(model, two_by_two("copy", "shard") if how == "hybrid" else mesh_of(group), how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = list(model.parameters())
    own = {**(options or {}), "process_group": group}
    if how == "methods":
        own["forward_fn"] = lambda model, x: model.predict(x)
    if how == "after a forward":  # the root is gathered then
        model.eval()(data[0])
        model.train()
    _call(model, part_of(data, SIZES[size], rank), head, own)
    kept = all(x is y for x, y in zip(before, model.parameters(), strict=True))
    return Outcome(_shards(model), kept, _train(model, optimizer, data))


def fault(group: Any, rank: int, kind: str, culprit: int) -> tuple[str, str, bool]:
    """Type and text of the error of a call in which one rank is at fault, and whether forwards
    compute afterwards what they did; shards, hooks and classes are as before."""
    model, data = network("batch norm")
    guilty = rank == culprit
    model.trap = Fault(kind if guilty else "none")
    own: Any = part_of(data, SMALL[dist.get_world_size(group)], rank)
    if guilty and kind == "NaN in the data":
        own = own[0].clone(), own[1]
        own[0][3] = torch.nan
    sharded(model, mesh_of(group))
    model.trap.kind, trapped = "none", model.trap.kind
    model.eval()
    expected = model(data[0])
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    model.trap.kind = trapped
    error, text = "", ""
    with unchanged(model):
        try:
            sylvinit.initialize_(model, own, preset="best", process_group=group, microbatch=7)
        except BaseException as found:
            error, text = type(found).__name__, str(found)
    model.trap.kind = "none"
    found = model(data[0])
    found.sum().backward()
    return error, text, torch.equal(found, expected)


def without_group(group: Any, rank: int) -> list[str]:
    """The warnings before the error of a call that names no group, and the error."""
    model, data = network("batch norm")
    sharded(model, mesh_of(group))
    with unchanged(model), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            sylvinit.initialize_(model, data)
        except sylvinit.errors.ModelError as error:
            return [*(str(w.message) for w in caught), str(error)]
    return []


def refused(group: Any, rank: int, kind: str) -> tuple[str, str]:
    """Type and text of the error of a call on a model that is not supported; it is as before."""
    from torch.distributed.tensor import parallel

    model, data = network("table")
    plan = {"0": parallel.ColwiseParallel(), "2": parallel.RowwiseParallel()}
    if kind == "tensor parallel":
        parallel.parallelize_module(model, mesh_of(group), plan)
    elif kind == "two kinds":
        mesh = two_by_two("data", "tensor")
        parallel.parallelize_module(model, mesh["tensor"], plan)
        sharded(model, mesh["data"])
    elif kind == "another group":
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        sharded(model, mesh_of(pairs[rank // 2]))
    elif kind == "a part":
        sharded(model, mesh_of(group), "the root alone")
        model = model[:1]
    elif kind == "meta":
        model = sharded(model.to("meta"), mesh_of(group))
    elif kind == "on some ranks":
        sharded(model, mesh_of(group))
        model = model if rank < 2 else network("table")[0]
    elif kind == "a broken forward":
        sharded(model, mesh_of(group), "the root alone")
        with suppress(RuntimeError):
            model(data[0][:, :3])
    with unchanged(model):
        try:
            sylvinit.initialize_(model, part_of(data, SIZES[4], rank), process_group=group)
        except sylvinit.SylvinitError as error:
            return type(error).__name__, str(error)
    return "", ""


def correlated(group: Any, rank: int, how: str) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Whole weights after correlated_init_, and the matrices of inputs before; sharded or not."""
    model, data = network("batch norm")
    if how == "sharded":
        sharded(model, mesh_of(group))
    own = part_of(data, SIZES[2], rank)[0]
    found = sylvinit.input_correlation(model, own, process_group=group)
    generator = torch.Generator().manual_seed(0)
    sylvinit.correlated_init_(model, generator=generator, process_group=group)
    held = dict(model.named_parameters())
    full = {k: x.full_tensor() if hasattr(x, "full_tensor") else x for k, x in held.items()}
    return (
        {name: x.detach().numpy().copy() for name, x in full.items()},
        {name: np.asarray(x.detach()) for name, x in found.items()},
    )


def flat(group: Any, rank: int, original: bool) -> dict[str, Any]:
    """What is done to a network of which FSDP1 holds one part."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 10))
    model = nn.Sequential(body, nn.Linear(10, 4)).eval()
    generator = torch.Generator().manual_seed(rank)
    x, y = torch.randn(32, 12, generator=generator), torch.arange(32) % 4
    expected = body(x)
    cpu = torch.device("cpu")
    model[0] = FullyShardedDataParallel(body, group, device_id=cpu, use_orig_params=original)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = sylvinit.initialize_(model, (x, y), preset="best", microbatch=8)
    with pytest.raises(RuntimeError, match="the forward fails"):
        sylvinit.initialize_(model, (x, y), preset="best", microbatch=8, forward_fn=_failing)
    after = model[0](x)
    after.sum().backward()
    return {
        "same": [torch.allclose(after, expected, atol=1e-6)],
        "solved": [layer.name for layer in report.solved],
        "calibrated": [layer.name for layer in report.layers if layer.status == "calibrated"],
        "messages": [str(w.message) for w in caught if "FSDP" in str(w.message)],
    }


def _failing(model: nn.Module, x: torch.Tensor) -> None:
    model(x)
    raise RuntimeError("the forward fails")
