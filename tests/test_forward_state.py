"""What a forward stores on modules: every microbatch has its own, and nothing of it stays."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from driver_helpers import CLASSES, Snapshot, images, unchanged
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import sylvinit
from sylvinit.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore::sylvinit.SylvinitWarning")

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]
# Microbatches of 8 of 30 samples: four, of which the last is smaller.
SETTINGS = [{"storage": storage, "microbatch": 8} for storage in ("memory", "recompute")]


class Net(nn.Module):
    """Two layers and a head; the output of the first goes around the second."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.first, self.second = nn.Linear(12, 10), nn.Linear(10, 10)
            self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x).relu()
        return self.head(self.second(skip) + skip)


class ByAttribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.skip = self.first(x).relu()
        return self.head(self.second(self.skip) + self.skip)


class ByList(Net):
    """As U-Nets do it; the list is there from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.skips: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.skips.clear()
        self.skips.append(self.first(x).relu())
        return self.head(self.second(self.skips[-1]) + self.skips.pop())


class ByHook(Net):
    """A hook keeps the output of the first layer in a dictionary of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[str, Tensor] = {}
        self.first.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.features["first"] = output

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).relu())
        return self.head(hidden + self.features["first"].relu())


class ByBuffer(Net):
    """A buffer is replaced, and set back at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("skip", None)

    def forward(self, x: Tensor) -> Tensor:
        self.skip = self.first(x).relu()
        output = self.head(self.second(self.skip) + self.skip)
        self.skip = None
        return output


class Cached(Net):
    """Something of the size of the batch is made once."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.zeros is None:
            self.zeros = x.new_zeros(len(x), 10)
        skip = self.first(x).relu() + self.zeros
        return self.head(self.second(skip) + skip)


def _weights(model: nn.Module, **settings: Any) -> dict[str, Tensor]:
    sylvinit.initialize_(model, (ROWS, Y), **settings)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("settings", SETTINGS, ids=["memory", "recompute"])
@pytest.mark.parametrize("kind", [ByAttribute, ByList, ByHook, ByBuffer, Cached])
def test_what_is_stored_on_modules_is_as_local_variables(
    kind: Callable[[], Net], settings: dict[str, Any]
) -> None:
    expected = _weights(Net(), **settings)
    model = kind()
    names = tuple(name for name, _ in model.named_parameters())
    with unchanged(model, written=names):
        weights = _weights(model, **settings)
    # The same operations in the same order: the same bits.
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", [ByAttribute, ByList, ByHook, ByBuffer, Cached])
@pytest.mark.parametrize("head", [None, "none such"])
def test_nothing_is_left_on_modules(kind: Callable[[], Net], head: str | None) -> None:
    model = kind()
    error = nullcontext() if head is None else pytest.raises(ModelError, match="none such")
    with unchanged(model), error:
        sylvinit.initialize_(model, (ROWS, Y), dry_run=True, head=head)


def test_the_contents_of_lists_are_put_back_after_a_failure() -> None:
    class Logs(Net):
        def __init__(self) -> None:
            super().__init__()
            self.log: list[Any] = ["before"]
            self.counter = itertools.count()

        def forward(self, x: Tensor) -> Tensor:
            self.log.append(x.shape)
            if next(self.counter) == 2:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Logs()
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        sylvinit.initialize_(model, (ROWS, Y), microbatch=8)
    assert model.log == ["before"]


# ------------------------------------------------------------------------------ replaced weights


class Doubled(nn.Module):
    """The forward of ``net`` runs with twice its weights in the place of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU())
            self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: 2 * value for name, value in self.net.named_parameters()}
        return self.head(torch.func.functional_call(self.net, weights, (x,)))


@pytest.mark.parametrize("exclude", [None, "net.0"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["memory", "recompute"])
def test_functional_call_in_the_forward(settings: dict[str, Any], exclude: Any) -> None:
    """One microbatch at a time, restarted after every layer, is what all together must give."""
    expected = Doubled()
    sylvinit.initialize_(expected, (ROWS, Y), storage="recompute", microbatch=30, exclude=exclude)
    model = Doubled()
    identities = {name: id(p) for name, p in model.named_parameters()}
    sylvinit.initialize_(model, (ROWS, Y), exclude=exclude, **settings)
    assert {name: id(p) for name, p in model.named_parameters()} == identities
    assert all(p.requires_grad for p in model.parameters())
    for name, value in expected.named_parameters():
        # Sums of four microbatches and of one, in float64 from float32 inputs, through two layers:
        # the worst difference seen is 2e-6 of the largest entry.
        found = model.get_parameter(name)
        assert (found - value).abs().max() <= 1e-5 * value.abs().max(), name


def test_a_failure_within_functional_call() -> None:
    class Fails(Doubled):
        counter = itertools.count()

        def forward(self, x: Tensor) -> Tensor:
            if next(self.counter) == 4:
                raise RuntimeError("the forward fails")
            return super().forward(x)

    model = Fails()
    with unchanged(model), pytest.raises(RuntimeError, match="the forward fails"):
        sylvinit.initialize_(model, (ROWS, Y), microbatch=8)


@pytest.mark.parametrize("settings", SETTINGS, ids=["memory", "recompute"])
@pytest.mark.parametrize("outside", [False, True])
def test_cached_parametrisations(settings: dict[str, Any], outside: bool) -> None:
    class CachesWeights(Net):
        def forward(self, x: Tensor) -> Tensor:
            with parametrize.cached():
                return super().forward(x)

    models = Net(), (Net() if outside else CachesWeights())
    for model in models:
        parametrizations.weight_norm(model.first)
    expected = _weights(models[0], **settings)
    if outside:
        with parametrize.cached():
            weights = _weights(models[1], **settings)
            y = models[1].first.weight
        assert torch.equal(y, models[1].first.weight)
    else:
        weights = _weights(models[1], **settings)
    assert not parametrize._cache_enabled
    assert not parametrize._cache
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


# ------------------------------------------------------------------------------- unusual buffers


class Buffered(Net):
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
        settings["forward_fn"] = _failing_at(3)
        with pytest.raises(RuntimeError, match="the forward fails"):
            sylvinit.initialize_(model, (ROWS, Y), **settings)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    else:
        sylvinit.initialize_(model, (ROWS, Y), **settings)
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
    report = sylvinit.initialize_(model, (ROWS, Y), microbatch=8)
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
    class Mapped(Net):
        def forward(self, x: Tensor) -> Tensor:
            skip = torch.vmap(self.first)(x).relu()
            return self.head(self.second(skip))

    model = Mapped()
    report = sylvinit.initialize_(model, (ROWS, Y), microbatch=8)
    assert "vmap" in report["first"].reason
    assert [layer.name for layer in report.solved] == ["second", "head"]


def test_a_layer_in_another_thread() -> None:
    class Threaded(Net):
        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                skip = pool.submit(self.first, x).result()
            return self.head(self.second(skip))

    model = Threaded()
    with unchanged(model), pytest.raises(ModelError, match="runs first in another thread"):
        sylvinit.initialize_(model, (ROWS, Y), microbatch=8)
    names = ("second.weight", "second.bias", "head.weight", "head.bias")
    with unchanged(model, written=names):
        sylvinit.initialize_(model, (ROWS, Y), microbatch=8, exclude="first")


# --------------------------------------------------------------------- what only some forwards do


class SometimesPads(Net):
    """Keeps its mask only where something is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.pad: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        self.pad = None if bool(mask.all()) else mask
        hidden = self.second(self.first(x).relu())
        return self.head(hidden if self.pad is None else hidden * self.pad)


def test_what_only_later_microbatches_store() -> None:
    class Local(Net):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.second(self.first(x).relu()) * mask)

    mask = (torch.arange(300).reshape(30, 10) % 3 > 0).float()
    mask[:8] = 1
    expected, model = Local(), SometimesPads()
    sylvinit.initialize_(expected, ((ROWS, mask), Y), microbatch=8)
    report = sylvinit.initialize_(model, ((ROWS, mask), Y), microbatch=8)
    assert any("once more with storage='recompute'" in text for text in report.warnings)
    assert all(torch.equal(p, expected.get_parameter(n)) for n, p in model.named_parameters())
    assert model.pad is None


class NewEveryTime(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.act = nn.ReLU()
        skip = self.act(self.first(x))
        return self.head(self.second(skip) + skip)


def test_modules_made_by_every_forward() -> None:
    expected = _weights(Net(), microbatch=8)
    weights = _weights(NewEveryTime(), microbatch=8)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("settings", SETTINGS, ids=["memory", "recompute"])
def test_hooks_of_the_forward(settings: dict[str, Any]) -> None:
    class Hooks(Net):
        def forward(self, x: Tensor) -> Tensor:
            seen: list[Tensor] = []
            handle = self.first.register_forward_hook(lambda m, args, out: seen.append(out))
            hidden = self.second(self.first(x).relu())
            handle.remove()
            return self.head(hidden + seen[-1].relu())

    expected = _weights(Net(), **settings)
    model = Hooks()
    with unchanged(model, written=tuple(name for name, _ in model.named_parameters())):
        weights = _weights(model, **settings)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_a_forward_that_iterates_over_what_it_keeps() -> None:
    class History(Net):
        def __init__(self) -> None:
            super().__init__()
            self.history: deque[Tensor] = deque(maxlen=3)

        def forward(self, x: Tensor) -> Tensor:
            self.history.clear()
            self.history.append(self.first(x).relu())
            for hidden in self.history:
                x = self.second(hidden) + hidden
            return self.head(x)

    expected = _weights(Net(), microbatch=30)
    model = History()
    weights = _weights(model, microbatch=30)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert not model.history


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
        sylvinit.initialize_(network, (ROWS, Y), microbatch=8, seed=1)
    assert torch.equal(model[0].kernel, plain[0].weight.t())
    torch.testing.assert_close(model(ROWS), plain(ROWS), rtol=1e-4, atol=1e-4)


def test_a_buffer_that_is_a_weight() -> None:
    model = Net()
    model.register_buffer("prototypes", model.head.weight.data)
    expected = _weights(Net(), microbatch=8)
    weights = _weights(model, microbatch=8)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_a_buffer_in_conjugated_form() -> None:
    model = Net()
    model.register_buffer("spectrum", torch.fft.fft(torch.arange(5.0)).conj())
    before = model.spectrum.resolve_conj().clone()
    sylvinit.initialize_(model, (ROWS, Y), microbatch=8)
    assert torch.equal(model.spectrum.resolve_conj(), before)
