"""Buffers, modules and parts of modules of unusual kinds: left as they were, or solved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from driver_helpers import (
    BEFORE,
    CLASSES,
    SkipNet,
    Snapshot,
    assert_close,
    assert_identical,
    images,
    unchanged,
    weights_of,
)
from torch import Tensor, nn

import sylvinit
from sylvinit.errors import ModelError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


def _weights(model: nn.Module, **settings: Any) -> dict[str, Tensor]:
    sylvinit.initialize_(model, (ROWS, Y), **{"preset": "best", **settings})
    return weights_of(model)


# ------------------------------------------------------------------------------- unusual buffers


class Buffered(SkipNet):
    """Adds zero by way of a buffer."""

    def __init__(self, buffer: Tensor, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("buffer", buffer)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0 * self.use(self, x))


def _resized(module: Any, x: Tensor) -> Tensor:
    if len(x) > len(module.buffer):
        module.buffer.resize_(len(x), 12).zero_()
    return module.buffer[: len(x)]


def _given_other_data(module: Any, x: Tensor) -> Tensor:
    module.buffer.data = torch.ones(len(x), 12)
    return module.buffer


def _doubled(module: Any, x: Tensor) -> Tensor:
    module.buffer.mul_(2)
    return x


BUFFERS = {
    "resized": (lambda: torch.ones(2, 12), _resized),
    "other data": (lambda: torch.ones(2, 12), _given_other_data),
    "not a number": (lambda: torch.full((1,), math.nan).expand(3), lambda m, x: x),
    "sparse": (lambda: torch.eye(12).to_sparse(), _doubled),
    "sparse rows": (lambda: torch.eye(12).to_sparse_csr(), _doubled),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("fails", [False, True])
def test_unusual_buffers(kind: str, fails: bool) -> None:
    make, use = BUFFERS[kind]
    model, original = Buffered(make(), use), make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings: dict[str, Any] = {"microbatch": 8}
    if fails:
        settings["forward_fn"] = _failing_at(BEFORE + 2)
        with pytest.raises(RuntimeError, match="the forward fails"):
            sylvinit.initialize_(model, (ROWS, Y), **{"preset": "best", **settings})
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    else:
        sylvinit.initialize_(model, (ROWS, Y), **{"preset": "best", **settings})
        assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert (model.buffer.layout, model.buffer.shape) == (original.layout, original.shape)
    dense, expected = model.buffer.to_dense(), original.to_dense()
    torch.testing.assert_close(dense, expected, rtol=0, atol=0, equal_nan=True)


def _failing_at(call: int) -> Callable[[nn.Module, Any], Any]:
    counter = itertools.count()

    def run(model: nn.Module, x: Any) -> Any:
        output = model(x)
        if next(counter) == call:
            raise RuntimeError("the forward fails")
        return output

    return run


# ---------------------------------------------------------------------------------- other modules


class MakesItsHead(nn.Module):
    """The last layer is made in the first forward, when its width is known."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(12, 10)
        self.head: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x).relu()
        if self.head is None:
            self.head = nn.Linear(x.shape[1], CLASSES)
        return self.head(x)


def test_a_layer_made_by_the_first_forward() -> None:
    model = MakesItsHead()
    report = sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=8)
    assert isinstance(model.head, nn.Linear)
    assert model.head.training
    assert report.head == "head"
    assert [(layer.name, layer.code) for layer in report.solved] == [
        ("front", "pca"),
        ("head", "onehot"),
    ]


def test_parts_in_torchscript_are_left_alone() -> None:
    script = torch.jit.script(nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU()))
    model = nn.Sequential(script, nn.Linear(10, CLASSES))
    model.train()
    before = Snapshot.of(model[1])
    state = {name: value.clone() for name, value in script.state_dict().items()}
    for run in (sylvinit.initialize_, sylvinit.initialize_head_):
        report = run(model, (ROWS, Y), microbatch=8)
        assert [layer.name for layer in report.solved] == ["1"]
        assert all(torch.equal(script.state_dict()[name], value) for name, value in state.items())
        assert script.training
    changed = before.differences(Snapshot.of(model[1]))
    assert changed == ["values: .weight", "values: .bias"]
    with sylvinit.diagnostics.monitor(model) as record:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(ROWS), Y).backward()
        optimizer.step()
    assert list(record.units()) == ["1"]


def test_a_layer_under_vmap_is_left_alone() -> None:
    class Mapped(SkipNet):
        def forward(self, x: Tensor) -> Tensor:
            skip = torch.vmap(self.first)(x).relu()
            return self.head(self.second(skip))

    model = Mapped()
    report = sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=8)
    assert "vmap" in report["first"].reason
    assert [layer.name for layer in report.solved] == ["second", "head"]


def test_a_layer_in_another_thread() -> None:
    class Threaded(SkipNet):
        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                skip = pool.submit(self.first, x).result()
            return self.head(self.second(skip))

    model = Threaded()
    with unchanged(model), pytest.raises(ModelError, match="runs first in another thread"):
        sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=8)
    names = ("second.weight", "second.bias", "head.weight", "head.bias")
    with unchanged(model, written=names):
        sylvinit.initialize_(model, (ROWS, Y), microbatch=8, exclude="first")


# ----------------------------------------------------------------------------- a layer of one's own


def test_register_layer_in_ten_lines() -> None:
    class MyLinear(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(inputs, outputs))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.kernel

    model = nn.Sequential(MyLinear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    reason = "no layer type is registered for MyLinear; its parameters are kept"
    assert sylvinit.initialize_(model, (ROWS, Y), preset="best")["0"].reason == reason

    @sylvinit.register_layer(MyLinear)
    class MyLinearLayer(sylvinit.model.RowLayer):
        def weight_matrix(self) -> Tensor:
            return self.module.kernel.t()

        def set_weight_matrix(self, weight: Tensor) -> None:
            self.module.kernel.copy_(weight.t())

        def tensors(self) -> dict[str, str]:
            return {"weight": "kernel"}

    report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert report["0"].status == "solved"
    plain = nn.Sequential(nn.Linear(12, 8, bias=False), nn.ReLU(), nn.Linear(8, CLASSES))
    sylvinit.initialize_(plain, (ROWS, Y), preset="best")
    assert torch.equal(model[0].kernel.t(), plain[0].weight)
    # x @ kernel and F.linear may sum in different orders.
    assert_close(weights_of(plain[2]), weights_of(model[2]), 1e-4)


# ------------------------------------------------------------------------- what is meant to stay


def test_what_a_layer_type_does_to_its_module_stays() -> None:
    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(12, 10))
            self.packed: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.packed is None:
                self.packed = self.kernel.detach().clone()
            return x @ self.packed

    class KernelLayer(sylvinit.RowLayer):
        def weight_matrix(self) -> Tensor:
            return self.module.kernel.t()

        def set_weight_matrix(self, weight: Tensor) -> None:
            self.module.kernel = nn.Parameter(weight.t().to(self.module.kernel.dtype))
            self.module.packed = None

        def tensors(self) -> dict[str, str]:
            return {"weight": "kernel"}

    sylvinit.register_layer(Kernel)(KernelLayer)
    model = nn.Sequential(Kernel(), nn.ReLU(), nn.Linear(10, CLASSES))
    model(ROWS)  # packs the old weight
    plain = nn.Sequential(nn.Linear(12, 10, bias=False), nn.ReLU(), nn.Linear(10, CLASSES))
    for network in (model, plain):
        sylvinit.initialize_(network, (ROWS, Y), preset="best", microbatch=8, seed=1)
    assert torch.equal(model[0].kernel, plain[0].weight.t())
    torch.testing.assert_close(model(ROWS), plain(ROWS), rtol=1e-4, atol=1e-4)


def test_a_buffer_that_is_a_weight() -> None:
    model = SkipNet()
    model.register_buffer("prototypes", model.head.weight.data)
    expected = _weights(SkipNet(), microbatch=8)
    weights = _weights(model, microbatch=8)
    assert_identical(weights, expected)


def test_a_buffer_in_conjugated_form() -> None:
    model = SkipNet()
    model.register_buffer("spectrum", torch.fft.fft(torch.arange(5.0)).conj())
    before = model.spectrum.resolve_conj().clone()
    sylvinit.initialize_(model, (ROWS, Y), preset="best", microbatch=8)
    assert torch.equal(model.spectrum.resolve_conj(), before)
