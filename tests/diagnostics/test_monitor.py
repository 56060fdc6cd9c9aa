"""What a monitor leaves as it was, whatever happens in its block."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diagnostics_helpers import batches, loss, make_model
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from sylvinit.diagnostics import Record, monitor
from sylvinit.errors import ModelError, OptionError, OptionTypeError, SylvinitWarning


def hooks(model: nn.Module) -> list[Any]:
    found = [
        *torch_optimizer._global_optimizer_pre_hooks.values(),
        *torch_optimizer._global_optimizer_post_hooks.values(),
    ]
    for module in model.modules():
        for name in vars(module):
            if "hooks" in name:
                found += list(vars(module)[name])
    for parameter in model.parameters():
        found += list(parameter._backward_hooks or ())
    return found


@pytest.fixture(autouse=True)
def no_hooks_before() -> Iterator[None]:
    assert hooks(nn.Linear(1, 1)) == []
    yield
    assert hooks(nn.Linear(1, 1)) == []


def noisy_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(6, 3)
    ).double()


def train(model: nn.Module, steps: int = 4) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for x, y in batches(steps):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    return optimizer


def test_training_is_bit_for_bit_the_same() -> None:
    results = []
    for watched in (False, True):
        model = noisy_model()
        model[3].eval()
        torch.manual_seed(7)
        if watched:
            with monitor(model, features="4") as record:
                train(model)
            assert record.updates == 4
        else:
            train(model)
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        modes = [module.training for module in model.modules()]
        results.append((tensors, modes, torch.get_rng_state()))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(a, b)
    assert results[0][1] == results[1][1]
    assert torch.equal(results[0][2], results[1][2])


def test_exception_leaves_no_hook_and_no_warning() -> None:
    model = noisy_model()
    before = copy.deepcopy(model.state_dict())
    x, y = next(batches(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with monitor(model, features="4") as record:
                assert len(hooks(model)) >= 5
                value = loss(model.eval(), x, y)
                raise KeyError("mine")
        except KeyError:
            pass
    assert hooks(model) == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    value.backward()  # a graph made in the block is no longer listened to
    assert record.history()["layers"] == {}


def test_nested_monitors_see_the_same() -> None:
    model = make_model()
    with monitor(model) as outer:
        train(model, 2)
        with monitor(model, every=2) as inner:
            train(model, 3)
        assert hooks(model) != []
        train(model, 1)
    assert hooks(model) == []
    assert (outer.updates, inner.updates) == (6, 3)
    assert outer.history()["update"] == list(range(6))
    for column in ("activation_variance", "gradient_variance", "dead"):
        inside = outer.history()["layers"]["0"][column][2:5:2]
        assert inside == inner.history()["layers"]["0"][column]


def test_copies_and_pickles_of_the_model_are_not_watched() -> None:
    model = make_model()
    with monitor(model, features="2") as record:
        train(model, 1)
        stored = io.BytesIO()
        torch.save(model, stored)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            train(copied, 3)
        activations = record.history()["layers"]["0"]["activation_variance"]
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    assert record.updates == 1
    assert len(activations) == 1
    loaded(next(batches(1))[0])


def test_record_can_be_read_and_pickled_afterwards() -> None:
    model = make_model()
    with monitor(model) as record:
        train(model)
    text = str(record)
    train(model)
    assert str(pickle.loads(pickle.dumps(record))) == str(record) == text


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_model_keeps_its_graph_and_updates_are_seen(whole: bool) -> None:
    model = make_model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def watch() -> Record:
        with monitor(compiled if whole else model) as record:
            for x, y in batches(2):
                loss(compiled, x, y).backward()
                optimizer.step()
        return record

    with pytest.warns(SylvinitWarning, match="no activation was seen") as caught:
        record = watch()
    assert [warning.filename for warning in caught] == [__file__]
    assert record.updates == 2
    assert record.history()["layers"] == {}
    torch._dynamo.reset()


def test_names_of_a_compiled_model_are_those_of_the_model() -> None:
    model = make_model()
    with monitor(torch.compile(model), features="2") as record:
        train(model, 1)
    assert list(record.history()["layers"]) == ["0", "2"]


class NoWaiting(TorchDispatchMode):
    """Refuses to read a number from a tensor, for which the host would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=True)
    with monitor(model) as record, NoWaiting():
        for x, y in batches(3):
            for part, label in zip(x.split(3), y.split(3), strict=True):
                loss(model, part, label).backward()
            optimizer.step()
    assert len(record.history()["update"]) == 3
    with NoWaiting(), pytest.raises(AssertionError):
        float(torch.ones(1))


def test_functional_transforms_are_not_watched() -> None:
    model = make_model()
    x, y = next(batches(1))
    parameters = dict(model.named_parameters())

    def value(some: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(model, some, x[None])
        return nn.functional.cross_entropy(output, y[None])

    with monitor(model, features="2") as record:
        torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0))(parameters, x, y)
        train(model, 1)
    assert record.updates == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"no update was seen.*record.update\(\)"),
        ({"features": "1", "activations": False}, "no features were seen, because '1'"),
    ],
)
def test_warnings(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Embedding(3, 2))

    def watch() -> None:
        with monitor(model, **options) as record:
            model[0](torch.tensor([0])).sum().backward()
            if options:
                record.update()

    with pytest.warns(SylvinitWarning, match=message):
        watch()


def test_nothing_to_warn_of() -> None:
    model = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with monitor(model):
            pass
        with monitor(model, features="0"):
            train(model, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, OptionError, "every must be at least 1, got 0"),
        ({"every": 1.5}, OptionTypeError, "every must be a positive integer, got 1.5"),
        ({"every": True}, OptionTypeError, "every must be a positive integer"),
        ({"activations": 1}, OptionTypeError, "activations must be True or False, got 1"),
        ({"features": 3}, OptionTypeError, "features must be the name of a module or None"),
        ({"features": "head.weihgt"}, OptionError, r"no module 'head.weihgt'; near names are \["),
        ({"features": "?"}, OptionError, r"no module '\?'; names are \['body', 'head'"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = nn.Module()
    model.body, model.head = nn.Linear(2, 2), nn.ModuleDict({"weight": nn.Linear(2, 2)})
    with pytest.raises(error, match=message):
        monitor(model, **options)


def test_bad_models() -> None:
    with pytest.raises(OptionTypeError, match=r"torch.nn.Module, got function"):
        monitor(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="Sequential has none"):
        monitor(nn.Sequential(nn.ReLU()))
    with pytest.raises(ModelError, match="run one batch through it"):
        monitor(nn.LazyLinear(3))
