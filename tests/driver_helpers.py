"""What tests of the driver share: snapshots of all that a call must leave alone, small models."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import sylvinit

CLASSES = 4
# Samples of the forwards before the first microbatch: of the survey, and of those that tell which
# rows belong to which sample.
SURVEY, LOOKS = [2], [2, 2, 3, 3, 3]
BEFORE = len(SURVEY) + len(LOOKS)


def bits(x: Tensor) -> bytes:
    """The bytes of a tensor: equal for equal NaNs, different for 0.0 and -0.0."""
    return x.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def own_part(x: Tensor) -> Tensor:
    """The shard of this rank, or all of what is not sharded."""
    with torch.no_grad():
        return x.to_local() if hasattr(x, "to_local") else x


@dataclass
class Snapshot:
    """A model and the process around it, as plain comparable values.

    Attributes:
        values: bits of every parameter and buffer, by module and name.
        tensors: identity, layout and flags of every parameter and buffer.
        training: the flag of every module.
        attributes: identities of what a module holds beside, and its class.
        hooks: keys and identities of everything in a module's dicts of hooks.
        modes: grad and inference mode, autocast, the attention fast path, defaults of torch.
        random: states of the generators of torch, NumPy and Python.
    """

    values: dict[str, bytes | None]
    tensors: dict[str, tuple[Any, ...] | None]
    training: dict[str, bool]
    attributes: dict[str, int]
    hooks: dict[str, list[tuple[Any, int]]]
    modes: dict[str, Any]
    random: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """The present state."""
        shot = cls({}, {}, {}, {}, {}, _modes(), _random_states())
        for name, module in model.named_modules(remove_duplicate=False):
            shot.training[name] = module.training
            shot.attributes[f"{name}.__class__"] = id(type(module))
            for attribute, value in vars(module).items():
                if "hooks" in attribute and isinstance(value, dict):
                    entries = [(key, id(item)) for key, item in value.items()]
                    shot.hooks[f"{name}.{attribute}"] = entries
                elif attribute != "training":
                    shot.attributes[f"{name}.{attribute}"] = id(value)
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                place = f"{name}.{key}"
                if tensor is None or is_lazy(tensor) or tensor.device.type == "meta":
                    shot.values[place] = None
                    shot.tensors[place] = (id(tensor),)
                    continue
                shot.values[place] = bits(own_part(tensor))
                shot.tensors[place] = (
                    id(tensor),
                    tensor.dtype,
                    tensor.shape,
                    tensor.stride(),
                    own_part(tensor).data_ptr(),
                    tensor.requires_grad,
                    id(tensor.grad) if tensor.is_leaf else None,
                )
        return shot

    def differences(self, other: Snapshot) -> list[str]:
        """What differs, as "field: key"; the keys of the fields included."""
        found = []
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            for key in {**mine, **others}:
                missing = (key in mine) != (key in others)
                if missing or mine[key] != others[key]:
                    found.append(f"{field.name}: {key}")
        return found


def _modes() -> dict[str, Any]:
    modes: dict[str, Any] = {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "numpy errors": np.geterr(),
    }
    for device in ("cpu", "cuda"):
        modes[f"autocast {device}"] = torch.is_autocast_enabled(device)
        modes[f"autocast dtype {device}"] = torch.get_autocast_dtype(device)
    return modes


def _random_states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": bits(torch.get_rng_state()),
        "numpy": (name, np.asarray(keys).tobytes(), *rest),
        "python": random.getstate(),
    }


@contextmanager
def unchanged(model: nn.Module, *, written: tuple[str, ...] = ()) -> Iterator[None]:
    """Everything a :class:`Snapshot` holds is the same after the block.

    Args:
        model: whose state is compared.
        written: names of parameters and buffers whose values must differ; no others may.
    """
    before = Snapshot.of(model)
    yield
    expected = {f"values: {'' if '.' in name else '.'}{name}" for name in written}
    found = set(before.differences(Snapshot.of(model)))
    assert found == expected, f"changed: {found - expected}; not written: {expected - found}"


class Mutant(nn.Module):
    """A module whose forward changes its buffers: in place, by a new tensor, and from None."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.full((2,), torch.nan))
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().flatten()[:2].float().clone()
        self.cache = x.detach().clone()
        return x


class Trap(nn.Module):
    """An identity that calls ``action(x)`` at the given call, counted from 0.

    The counter is an object of its own: attributes are every forward's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counter = itertools.count()
        self.at = -1
        self.action: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if next(self.counter) == self.at:
            return self.action(x)
        return x


def small_net(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Two convolutions, batch norm and a classifier, for images (n, 3, 6, 6).

    Some of its modules are in evaluation mode, some parameters are frozen, users' hooks are on two
    of its modules, and buffers change in every forward.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.add_module("conv1", nn.Conv2d(3, 8, 3, padding=1))
        net.add_module("bn1", nn.BatchNorm2d(8))
        net.add_module("relu1", nn.ReLU(inplace=True))
        net.add_module("mutant", Mutant())
        net.add_module("conv2", nn.Conv2d(8, 8, 3, groups=2, bias=False))
        net.add_module("bn2", nn.BatchNorm2d(8))
        net.add_module("drop", nn.Dropout(0.5))
        net.add_module("trap", Trap())
        net.add_module("flat", nn.Flatten())
        net.add_module("frozen", nn.Linear(128, 16).requires_grad_(False))
        net.add_module("relu2", nn.ReLU())
        net.add_module("fc", nn.Linear(16, CLASSES))
    for name in ("bn1", "drop", "fc"):
        net.get_submodule(name).eval()
    net.get_submodule("conv2").register_forward_pre_hook(lambda module, args: None)
    net.get_submodule("conv2").register_forward_hook(lambda module, args, output: None)
    net.get_submodule("fc").register_full_backward_hook(lambda module, grads, outputs: None)
    return net.to(dtype)


def mlp() -> nn.Sequential:
    """Three Linear layers on rows (n, 12)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, CLASSES)]
        return nn.Sequential(*layers)


def images(
    n: int = 30, *, dtype: torch.dtype = torch.float32, size: int = 6
) -> tuple[Tensor, Tensor]:
    """Images (n, 3, size, size) that differ between classes, and their labels."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % CLASSES
    # Smooth in space, as images are: without structure principal components mean nothing.
    noise = torch.randn(n, 3, size + 2, size + 2, generator=generator, dtype=torch.float64)
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1)
    pattern = torch.randn(CLASSES, 3, size, size, generator=generator, dtype=torch.float64)
    return (2 * smooth + 0.5 * pattern[labels]).to(dtype), labels


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def relative_difference(x: Tensor, y: Tensor) -> float:
    """Norm of the difference by the norm of the first."""
    difference = float((x.double() - y.double()).norm())
    return difference and difference / float(x.double().norm())


def initialized(model: nn.Module, data: Any, **options: Any) -> dict[str, Tensor]:
    """The weights of a copy of the model after :func:`sylvinit.initialize_`."""
    model = copy.deepcopy(model)
    sylvinit.initialize_(model, data, **{"preset": "best", **options})
    return weights_of(model)


def assert_identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Same names, same bits."""
    assert first.keys() == second.keys()
    different = [name for name in first if bits(first[name]) != bits(second[name])]
    assert not different, f"not identical: {different}"


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], bound: float) -> None:
    """Same names, every weight the same up to ``bound`` relative to its norm."""
    assert first.keys() == second.keys()
    differences = {name: relative_difference(first[name], second[name]) for name in first}
    assert all(value <= bound for value in differences.values()), f"over {bound}: {differences}"


class SkipNet(nn.Module):
    """Two layers and a head on rows (n, 12); the output of the first goes around the second."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.first, self.second = nn.Linear(12, 10), nn.Linear(10, 10)
            self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x).relu()
        return self.head(self.second(skip) + skip)
