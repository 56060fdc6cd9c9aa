"""Networks that lie on two processes: refused, or left alone, and able to run afterwards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed, nn

import sylvinit
from sylvinit.errors import ModelError

PROCESSES = 2

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo here"
)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 10))
    return nn.Sequential(body, nn.Linear(10, 4))


def _data(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(32, 12, generator=generator), torch.arange(32) % 4


def _fully_shard(x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    model = _network().eval()
    expected = model(x)
    fully_shard(model[0])
    fully_shard(model)
    outputs = [model(x)]
    messages = []
    for run in (sylvinit.initialize_, sylvinit.initialize_head_):
        with pytest.raises(ModelError) as caught:
            run(model, (x, y))
        messages.append(str(caught.value))
    outputs.append(model(x))
    untouched = _network().eval()
    fully_shard(untouched)
    with pytest.raises(ModelError):  # and before it has ever run
        sylvinit.initialize_(untouched, (x, y), preset="best")
    outputs.append(untouched(x))
    model(x).sum().backward()
    same = [torch.allclose(output, expected, atol=1e-6) for output in outputs]
    graded = all(p.grad is not None for p in model.parameters())
    return {"same": same, "graded": graded, "messages": messages}


def _flat(x: torch.Tensor, y: torch.Tensor, original: bool) -> dict[str, Any]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = _network().eval()
    expected = model[0](x)
    cpu = torch.device("cpu")
    model[0] = FullyShardedDataParallel(model[0], device_id=cpu, use_orig_params=original)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = sylvinit.initialize_(model, (x, y), preset="best", microbatch=8)
    with pytest.raises(RuntimeError, match="the forward fails"):
        sylvinit.initialize_(model, (x, y), preset="best", microbatch=8, forward_fn=_failing)
    body = model[0](x)
    body.sum().backward()
    return {
        "same": [torch.allclose(body, expected, atol=1e-6)],
        "solved": [layer.name for layer in report.solved],
        "calibrated": [layer.name for layer in report.layers if layer.status == "calibrated"],
        "messages": [str(w.message) for w in caught if "FSDP" in str(w.message)],
    }


def _failing(model: nn.Module, x: torch.Tensor) -> None:
    model(x)
    raise RuntimeError("the forward fails")


def _work(rank: int, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", PROCESSES)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    try:
        data = _data(rank)
        found = _fully_shard(*data) if kind == "fsdp2" else _flat(*data, kind == "original")
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def _run(folder: Path, kind: str) -> list[dict[str, Any]]:
    mp.spawn(_work, (str(folder), kind), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def test_fully_sharded_parameters_are_refused_and_the_model_still_runs(tmp_path: Path) -> None:
    for found in _run(tmp_path, "fsdp2"):
        assert found["same"] == [True] * 3
        assert found["graded"]
        assert len(found["messages"]) == 2
        for message in found["messages"]:
            assert message.startswith("0.0.weight is a DTensor")
            assert "before it is sharded" in message


@pytest.mark.parametrize("kind", ["flat", "original"])
def test_flat_parameters_are_left_alone(tmp_path: Path, kind: str) -> None:
    for found in _run(tmp_path, kind):
        assert found["same"] == [True]
        assert (found["solved"], found["calibrated"]) == (["1"], [])
        (message,) = found["messages"]
        assert message.startswith("skipped, flat FSDP parameters: 0.")
        assert "before it is wrapped" in message
