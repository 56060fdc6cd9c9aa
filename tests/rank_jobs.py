"""What the ranks of tests do; see rank_pool.py."""

from __future__ import annotations

import itertools
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from driver_helpers import BEFORE, bits, images, small_net, unchanged
from torch import Tensor, nn
from torch import distributed as dist

import sylvinit
from sylvinit.demo.networks import resnet20

ARANGE = torch.arange(41)


def bert() -> nn.Module:
    """A small BERT with a classifier, float64, from a configuration."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 48, "vocab_size": 60, "num_labels": 4}
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return BertForSequenceClassification(config).double()


def sentences(n: int) -> dict[str, Tensor]:
    """Tokens of n sentences of different lengths, the first of which says the class."""
    generator = torch.Generator().manual_seed(n)
    tokens = torch.randint(4, 60, (n, 9), generator=generator)
    labels = torch.arange(n) % 4
    tokens[:, 0] = labels
    lengths = torch.randint(4, 10, (n, 1), generator=generator)
    return {
        "input_ids": tokens,
        "attention_mask": (torch.arange(9) < lengths).long(),
        "labels": labels,
    }


def network(name: str) -> tuple[nn.Module, Any]:
    """A network in float64 and 41 samples for it."""
    if name == "bert":
        return bert(), sentences(41)
    if name == "batch norm":
        return small_net(dtype=torch.float64).train(), images(41, dtype=torch.float64)
    torch.manual_seed(0)
    rows = torch.randn(41, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if name == "table":
        body = [nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)]
        return nn.Sequential(*body).double(), (rows[:, :24] * torch.arange(1.0, 25), ARANGE % 4)
    if name == "dual":
        body = [nn.Linear(300, 8), nn.ReLU(), nn.Linear(8, 4)]
        wide = rows @ torch.randn(40, 300, generator=torch.Generator().manual_seed(2)).double()
        return nn.Sequential(*body).double(), (wide, ARANGE % 4)
    if name == "numbers":
        targets = (rows[:, :2] @ rows[:2, 2:4]).square()
        targets[::7, 1] = torch.nan
        return nn.Sequential(nn.Linear(40, 9), nn.Tanh(), nn.Linear(9, 2)).double(), (rows, targets)
    if name == "tied":
        twice = nn.Linear(40, 40)
        return nn.Sequential(twice, nn.Tanh(), twice, nn.Linear(40, 4)).double(), (rows, ARANGE % 4)
    # Narrow, so that gaps between eigenvalues are not much smaller than 1: at full width another
    # microbatch of one process changes the last weights by 1e-5.
    return resnet20(4, (8, 16, 32)).double(), images(41, dtype=torch.float64, size=12)


def part_of(data: Any, sizes: tuple[int, ...], rank: int) -> Any:
    """The part of a rank, where ranks have so many samples."""
    taken = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    if isinstance(data, dict):
        return {key: x[taken] for key, x in data.items()}
    return tuple(x[taken] for x in data)


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    """All parameters and buffers, as arrays, which go through a pipe by value."""
    return {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}


def initialize(
    group: Any, rank: int, name: str, sizes: tuple[int, ...], options: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The state of a network after initialize_ on this rank's part of the data."""
    model, data = network(name)
    own = {"preset": "best", **options}
    if "microbatches" in own:
        own["microbatch"] = own.pop("microbatches")[rank]
    sylvinit.initialize_(model, part_of(data, sizes, rank), process_group=group, **own)
    return arrays_of(model)


def train(group: Any, rank: int, steps: int) -> list[dict[str, np.ndarray]]:
    """The states of a replica after initialize_ and after steps under DistributedDataParallel."""
    model, data = network("resnet20")
    inputs, labels = part_of(data, (23, 18), rank)
    wrapped = nn.parallel.DistributedDataParallel(model, process_group=group)
    sylvinit.initialize_(wrapped, (inputs, labels), process_group=group)
    states = [arrays_of(model)]
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(
            wrapped(inputs[step % 3 :: 3]), labels[step % 3 :: 3]
        ).backward()
        optimizer.step()
    return [*states, {name: x.detach().numpy().copy() for name, x in model.named_parameters()}]


def report_of(group: Any, rank: int, sizes: tuple[int, ...]) -> tuple[dict[str, Any], list[str]]:
    """The report as plain values, and the warnings that were raised."""
    model, data = network("batch norm")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        own = part_of(data, sizes, rank)
        report = sylvinit.initialize_(model, own, preset="best", process_group=group)
    values = report.to_dict()
    values.pop("seconds")
    return values, [str(w.message) for w in caught if w.category is sylvinit.SylvinitWarning]


def without_group(group: Any, rank: int, wrapped: bool) -> list[str]:
    """The warnings of a call that names no group."""
    model, data = network("batch norm")
    given = nn.parallel.DistributedDataParallel(model, process_group=group) if wrapped else model
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with unchanged(model) if wrapped else nullcontext():
            sylvinit.initialize_(given, part_of(data, (20, 21), rank))
    return [str(w.message) for w in caught]


def sent(group: Any, rank: int, network_of: str, options: dict[str, Any]) -> list[bytes]:
    """All that this rank sends, point to point and in collectives, as bytes."""
    said: list[bytes] = []

    def listened(name: str, place: int) -> Any:
        original = getattr(dist, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if name != "broadcast" or rank == 0:
                said.append(bits(arguments[place]))
            return original(*arguments, **named)

        return patch.object(dist, name, call)

    model, data = network(network_of)
    with listened("send", 0), listened("broadcast", 0), listened("all_gather", 1):
        own = part_of(data, (20, 21), rank)
        sylvinit.initialize_(model, own, preset="best", process_group=group, **options)
    return said


class Fault(nn.Module):
    """An identity that lets something happen at the second microbatch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.counter = kind, itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        call = next(self.counter)
        if call <= BEFORE:
            return x
        if self.kind == "NaN once" and call == BEFORE + 1:
            return x * torch.nan
        if self.kind == "raises":
            raise RuntimeError("a broken layer")
        if self.kind == "NaN":
            return x * torch.nan
        if self.kind == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        if self.kind == "out of memory":
            raise torch.OutOfMemoryError("no memory")
        if self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def _broken(data: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    yield data[0][:5], data[1][:5]
    raise OSError("a broken disk")


def fault(group: Any, rank: int, kind: str, culprit: int) -> tuple[str, str]:
    """Type and text of the error of a call in which one rank is at fault; models are as before."""
    model, data = network("batch norm")
    sizes = (20, 11, 10)
    own: Any = part_of(data, sizes, rank)
    options: dict[str, Any] = {"microbatch": 7}
    guilty = rank == culprit
    model.trap = Fault(kind if guilty else "none")
    if guilty and kind == "bad data":
        own = _broken(own)
    elif guilty and kind == "NaN in the data":
        own[0][3] = torch.nan
    elif guilty and kind == "no labels":
        own = own[0]
    elif guilty and kind == "other options":
        options["lam"] = 3.0
    elif guilty and kind == "invalid options":
        options["lam"] = -1.0
    elif guilty and kind == "other weights":
        with torch.no_grad():
            model.conv2.weight[0, 0, 0, 0] += 1e-12
    elif guilty and kind == "other layers":
        model.append(nn.Linear(4, 4).double())
    elif guilty and kind == "other order":
        options["forward_fn"] = backwards
    elif kind == "other order":
        options["forward_fn"] = forwards
    elif kind == "empty":
        own = []
    with unchanged(model) if kind != "none" else nullcontext():
        try:
            sylvinit.initialize_(model, own, process_group=group, **options)
        except BaseException as error:
            return type(error).__name__, str(error)
    return "", ""


def with_a_start_that_fails(group: Any, rank: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The state, and why starts have no score, where activations on rank 2 are not finite once."""
    model, data = network("batch norm")
    model.trap = Fault("NaN once" if rank == 2 else "none")
    own = part_of(data, (0, 21, 20), rank)
    report = sylvinit.initialize_(model, own, microbatch=7, process_group=group)
    return arrays_of(model), {x.name: x.reason for x in report.candidates}


def forwards(model: nn.Module, x: Tensor) -> Tensor:
    """Two layers in one order."""
    x = x.flatten(1)[:, :16]
    return model.fc(x) + model.frozen(x.repeat(1, 8))[:, :4]


def backwards(model: nn.Module, x: Tensor) -> Tensor:
    """The same layers in the other order."""
    x = x.flatten(1)[:, :16]
    return model.frozen(x.repeat(1, 8))[:, :4] + model.fc(x)


forwards.__qualname__ = backwards.__qualname__ = "forward"


def draw(group: Any, rank: int, generated: bool) -> tuple[dict[str, np.ndarray], bytes]:
    """The state of a network after correlated_init_, and that of the generator."""
    model, _ = network("resnet20")
    torch.manual_seed(rank)
    generator = torch.Generator().manual_seed(rank) if generated else None
    sylvinit.correlated_init_(model, generator=generator, process_group=group)
    return arrays_of(model), bits((generator or torch.default_generator).get_state())


def draw_with_other_strengths(group: Any, rank: int) -> tuple[str, str]:
    """Type and text of the error; model and random state are as before."""
    model, _ = network("resnet20")
    with unchanged(model):
        try:
            sylvinit.correlated_init_(model, strength=1 - rank / 4, process_group=group)
        except sylvinit.SylvinitError as error:
            return type(error).__name__, str(error)
    return "", ""


def correlate(group: Any, rank: int, sizes: tuple[int, ...]) -> dict[str, tuple[np.ndarray, int]]:
    """The matrices of what a network's convolutions read, and the numbers of patches."""
    model, data = network("resnet20")
    found = sylvinit.input_correlation(model, part_of(data, sizes, rank)[0], process_group=group)
    return {name: (np.asarray(x.detach()), x.filters) for name, x in found.items()}
