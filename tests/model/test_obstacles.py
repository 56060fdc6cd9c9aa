"""What is in the way of a weight, told from the module alone."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from sylvinit.errors import ModelError
from sylvinit.model import obstacles
from sylvinit.model.modules import device_of
from sylvinit.model.obstacles import Obstacle, module_obstacle, weight_obstacle

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Wrapped(Tensor):
    """A subclass that could keep its values anywhere."""


class Constant(nn.Module):
    """A parametrization without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _buffer() -> nn.Module:
    module = nn.Linear(4, 3)
    del module.weight
    module.register_buffer("weight", torch.ones(3, 4))
    return module


def _with_weight(weight: Tensor) -> nn.Module:
    module = nn.Linear(4, 3)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def _without_originals() -> nn.Module:
    module = _buffer()
    parametrize.register_parametrization(module, "weight", Constant())
    return module


def _pruned() -> nn.Module:
    return prune.random_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5)


def _pruned_twice() -> nn.Module:  # the hook is then a container of pruning methods
    return prune.l1_unstructured(_pruned(), "weight", 0.5)


WEIGHTS: dict[str, tuple[Callable[[], nn.Module], Obstacle | None]] = {
    "plain": (lambda: nn.Linear(4, 3), None),
    "half precision": (lambda: nn.Linear(4, 3).bfloat16(), None),
    "frozen": (lambda: nn.Linear(4, 3).requires_grad_(False), None),
    "old weight_norm": (lambda: nn.utils.weight_norm(nn.Linear(4, 3)), None),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), None),
    "pruned bias": (lambda: prune.l1_unstructured(nn.Linear(4, 3), "bias", 0.5), None),
    "pruned": (_pruned, obstacles.PRUNED),
    "pruned twice": (_pruned_twice, obstacles.PRUNED),
    "spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), obstacles.SPECTRAL_NORM),
    "buffer": (_buffer, obstacles.COMPUTED),
    "of no parameters": (_without_originals, obstacles.COMPUTED),
    "int8": (lambda: _with_weight(torch.ones(3, 4, dtype=torch.int8)), obstacles.QUANTIZED),
    "packed": (lambda: _with_weight(torch.ones(6, 1, dtype=torch.uint8)), obstacles.QUANTIZED),
    "float8": (
        lambda: _with_weight(torch.ones(3, 4).to(torch.float8_e4m3fn)),
        obstacles.QUANTIZED,
    ),
    "complex": (lambda: _with_weight(torch.ones(3, 4) * 1j), obstacles.COMPLEX),
    "subclass": (lambda: _with_weight(torch.ones(3, 4).as_subclass(Wrapped)), obstacles.SUBCLASS),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights(kind: str) -> None:
    make, expected = WEIGHTS[kind]
    assert weight_obstacle(make(), "weight") is expected


def test_a_pruned_bias_is_in_its_own_way() -> None:
    module = prune.l1_unstructured(nn.Linear(4, 3), "bias", 0.5)
    assert weight_obstacle(module, "bias") is obstacles.PRUNED


def _trained_for_quantization() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    module.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(module.train())[0]


def _quantized(module: nn.Module) -> nn.Module:
    whole = nn.Sequential(module)
    return torch.ao.quantization.quantize_dynamic(whole, {nn.Linear, nn.LSTM})[0]


def _scripted() -> nn.Module:
    return torch.jit.script(nn.Linear(4, 3))


def _traced() -> nn.Module:
    return torch.jit.trace(nn.Linear(4, 3), torch.ones(2, 4))


MODULES: dict[str, tuple[Callable[[], nn.Module], Obstacle | None]] = {
    "linear": (lambda: nn.Linear(4, 3), None),
    "embedding": (lambda: nn.Embedding(4, 3), None),
    "sum in a network to be quantized": (torch.ao.nn.quantized.FloatFunctional, None),
    "to be quantized": (lambda: torch.ao.nn.intrinsic.LinearReLU(nn.Linear(4, 3), nn.ReLU()), None),
    "lstm": (lambda: nn.LSTM(4, 3), obstacles.RECURRENT),
    "gru cell": (lambda: nn.GRUCell(4, 3), obstacles.RECURRENT),
    "script": (_scripted, obstacles.SCRIPTED),
    "trace": (_traced, obstacles.SCRIPTED),
    "quantized": (lambda: _quantized(nn.Linear(4, 3)), obstacles.QUANTIZED),
    "quantized lstm": (lambda: _quantized(nn.LSTM(4, 3)), obstacles.QUANTIZED),
    "quantization-aware": (_trained_for_quantization, obstacles.QUANTIZED),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch.ao, which is to move elsewhere
@pytest.mark.parametrize("kind", MODULES)
def test_modules(kind: str) -> None:
    make, expected = MODULES[kind]
    assert module_obstacle(make()) is expected


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_parameters_because_of_an_obstacle() -> None:
    with pytest.raises(ModelError, match=r"no parameters; it is quantized.* quantize it then"):
        device_of(nn.Sequential(_quantized(nn.Linear(4, 3))))
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(4, 3).eval()))
    with pytest.raises(ModelError, match="no parameters; it is compiled by TorchScript"):
        device_of(frozen)


def test_meta_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, device="meta"))
    with pytest.raises(
        ModelError, match=r"^1\.weight is on the meta device .*to_empty.* then reset_parameters\(\)"
    ):
        device_of(model)


def test_meta_buffers() -> None:
    model = nn.Linear(4, 3)
    model.register_buffer("scale", torch.ones(2, device="meta"))
    with pytest.raises(ModelError, match=r"^scale is on the meta device"):
        device_of(model)


def test_offloaded_parameters_are_not_to_be_emptied() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    accelerate.cpu_offload(model, torch.device("cpu"))
    text = "0.weight is on the meta device, for accelerate has offloaded it"
    with pytest.raises(ModelError, match="^" + re.escape(text)) as caught:
        device_of(model)
    assert "Do not call to_empty()" in str(caught.value)
    assert "remove_hook_from_submodules(model)" in str(caught.value)
    accelerate.hooks.remove_hook_from_submodules(model)  # as the message says
    assert device_of(model) == torch.device("cpu")
    assert all(map(torch.equal, model.parameters(), expected))
