"""What all initialisers of bench/experiments have in common, and the random ones."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from arms import initialise
from config import Arm, ConfigError
from initialiser_helpers import initialiser, plain, tiny_resnet
from initialisers.random import orthogonal_
from initialisers.table import BASELINES
from torch import Tensor, nn

from sylvinit.io.datasets import Samples
from sylvinit.solve import scaling


@pytest.mark.parametrize("name", BASELINES)
def test_everything_but_the_weights_stays_as_it_was(name: str, data: tuple[Tensor, Tensor]) -> None:
    initialise_ = initialiser(name)
    model = tiny_resnet()
    model.train()
    model.get_submodule("blocks.0.bn1").eval()
    model.get_parameter("conv1.weight").requires_grad_(False)
    model.get_parameter("bn1.weight").data.fill_(3.0)
    model.get_buffer("bn1.running_mean").fill_(5.0)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    images, labels = data[0].clone(), data[1].clone()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = model, copy.deepcopy(model), copy.deepcopy(model)
    start = copy.deepcopy(model)
    initialise_(first, data, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert torch.equal(images, data[0])
    assert torch.equal(labels, data[1])
    assert [module.training for module in first.modules()] == modes
    assert [parameter.requires_grad for parameter in first.parameters()] == flags
    assert all(parameter.grad is None for parameter in first.parameters())
    for module in first.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    # The same again from another global state, and another seed.
    torch.manual_seed(4)
    initialise_(second, data, 5)
    initialise_(other, data, 6)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
        assert value.isfinite().all(), key
        assert value.dtype == start.state_dict()[key].dtype
        if value.ndim >= 2:
            assert not torch.equal(value, start.state_dict()[key]), key
    differ = [
        not torch.equal(value, other.state_dict()[key])
        for key, value in first.state_dict().items()
        if value.ndim >= 2
    ]
    assert any(differ)


@pytest.mark.parametrize("name", BASELINES)
def test_running_statistics(name: str, data: tuple[Tensor, Tensor]) -> None:
    initialise_ = initialiser(name)
    model = tiny_resnet()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.get_buffer("running_mean").fill_(5.0)
    initialise_(model, data, 5)
    if not name.startswith("krahenbuhl"):
        for norm in norms:
            assert torch.equal(norm.get_buffer("running_mean"), torch.zeros(norm.num_features))
            assert torch.equal(norm.get_buffer("running_var"), torch.ones(norm.num_features))
            assert int(norm.get_buffer("num_batches_tracked")) == 0
        return
    with torch.no_grad():
        outputs = F.conv2d(data[0], model.get_parameter("conv1.weight"), padding=1)
    torch.testing.assert_close(norms[0].running_mean, outputs.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norms[0].running_var, outputs.var(dim=(0, 2, 3)))


@pytest.mark.parametrize(
    ("name", "gain", "uniform"),
    [
        ("he-uniform", 2, True),
        ("he-normal", 2, False),
        ("xavier-uniform", None, True),
        ("xavier-normal", None, False),
    ],
)
def test_random_weights_have_their_variance(
    name: str, gain: float | None, uniform: bool, data: tuple[Tensor, Tensor]
) -> None:
    model = nn.Sequential(nn.Conv2d(20, 60, 3), nn.Linear(300, 200), nn.Linear(200, 100))
    BASELINES[name](model, data, 0)
    for layer, fan_in, fan_out in zip(model, (180, 300, 200), (540, 200, 100), strict=True):
        expected = 2 / (fan_in + fan_out)
        if gain is not None:
            expected = (1 if layer is model[2] else gain) / fan_in
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        # Of n values the variance has a relative error of about sqrt(2 / n), n >= 10,800.
        assert float(weight.detach().var()) == pytest.approx(expected, rel=0.06)
        bound = math.sqrt(3 * expected)  # of a uniform distribution
        assert (float(weight.detach().abs().max()) <= bound * (1 + 1e-6)) == uniform
        assert not bias.any()


def test_orthogonal_weights(data: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Linear(4, 9), nn.Linear(9, 3))
    orthogonal_(model, data, 0)
    for layer, square in zip(model, (2, 2, 1), strict=True):
        weight = layer.get_parameter("weight").detach().flatten(1)
        gram = weight @ weight.mT if weight.shape[0] <= weight.shape[1] else weight.mT @ weight
        torch.testing.assert_close(gram, square * torch.eye(len(gram)), rtol=0, atol=1e-5)


def test_dropout_depends_on_the_seed_alone(data: tuple[Tensor, Tensor]) -> None:
    models = [nn.Sequential(nn.Dropout(0.2), plain(norm=True)) for _ in range(2)]
    for state, model in enumerate(models):
        torch.manual_seed(state)
        BASELINES["krahenbuhl-pca"](model, data, 0)
    found = models[1].state_dict()
    for key, value in models[0].state_dict().items():
        assert torch.equal(value, found[key]), key


@pytest.mark.parametrize("gain", [0.0, 0.25])
@pytest.mark.parametrize("name", ["he-normal", "he-normal+head", "lsuv", "sylvinit"])
def test_the_gain_of_branches_is_there_after_every_initialiser(
    name: str, gain: float, data: tuple[Tensor, Tensor]
) -> None:
    if name == "lsuv":
        pytest.importorskip("lsuv")
    samples = Samples(*data)
    plain_network, gained = tiny_resnet(), tiny_resnet()
    initialise(plain_network, Arm("plain", name), samples, 5)
    initialise(gained, Arm("gained", name, {"branch_gain": gain}), samples, 5)
    for key, module in gained.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            expected = gain if key.endswith(".bn2") else 1.0
            assert torch.equal(module.weight, torch.full_like(module.weight, expected)), key
    # Layers in front of the first branch's end do not know of it.
    for key in ("conv1.weight", "blocks.0.conv1.weight", "blocks.0.conv2.weight"):
        assert torch.equal(gained.get_parameter(key), plain_network.get_parameter(key)), key
    # Solved layers behind it do.
    same = torch.equal(gained.get_parameter("fc.weight"), plain_network.get_parameter("fc.weight"))
    assert same == (name in ("he-normal", "lsuv"))


def test_networks_without_branches_refuse_a_gain(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match="no residual branches"):
        initialise(plain(), Arm("gained", "he-normal", {"branch_gain": 0.0}), Samples(*data), 5)


@pytest.mark.parametrize("name", ["he-normal", "lsuv+head", "sylvinit"])
def test_heads_are_scaled_in_the_end(name: str, data: tuple[Tensor, Tensor]) -> None:
    if name.startswith("lsuv"):
        pytest.importorskip("lsuv")
    whole, scaled = tiny_resnet(), tiny_resnet()
    initialise(whole, Arm("whole", name), Samples(*data), 5)
    initialise(scaled, Arm("scaled", name, {"head_scale": -0.5}), Samples(*data), 5)
    for key, value in scaled.state_dict().items():
        factor = -0.5 if key.startswith("fc.") else 1
        assert torch.equal(value, factor * whole.state_dict()[key]), key


@pytest.mark.parametrize("name", ["he-normal", "sylvinit"])
def test_convolutions_take_the_norms_of_another_arm_and_keep_their_directions(
    name: str, data: tuple[Tensor, Tensor]
) -> None:
    samples = Samples(*data)
    example = {"initialiser": "sylvinit", "settings": {"preset": "frozen"}}
    plain_network, scaled, other = tiny_resnet(), tiny_resnet(), tiny_resnet()
    initialise(plain_network, Arm("plain", name), samples, 5)
    initialise(scaled, Arm("scaled", name, {"norms_of": example}), samples, 5)
    initialise(other, Arm("other", **example), samples, 5)
    for key, module in scaled.named_modules():
        if isinstance(module, nn.Conv2d):
            before = plain_network.get_parameter(f"{key}.weight").detach().flatten().double()
            after = module.weight.detach().flatten().double()
            norm = other.get_parameter(f"{key}.weight").detach().double().norm()
            assert float(after.norm()) == pytest.approx(float(norm), rel=1e-6), key
            # The angle between them is at most a few roundings of float32.
            assert float((after / after.norm() - before / before.norm()).norm()) < 1e-6, key
    if name == "sylvinit":  # its running statistics are those of the new scale
        scaled.eval(), plain_network.eval()
        gap = (scaled(data[0]) - plain_network(data[0])).abs().max()
        assert gap < 0.02 * plain_network(data[0]).abs().max()


def test_damping_is_that_of_one_arm(data: tuple[Tensor, Tensor]) -> None:
    """So much of it that every row counts as damped, beside none and sylvinit's own."""
    samples, own = Samples(*data), scaling.DAMPING
    shortest: list[float] = []
    for settings in ({"damping": 1e4}, {"damping": 0}, {}):
        model = tiny_resnet()
        initialise(model, Arm("best", "sylvinit", {"preset": "best"} | settings), samples, 5)
        assert own == scaling.DAMPING
        shortest.append(
            float(model.get_parameter("conv1.weight").detach().flatten(1).norm(dim=1).min())
        )
    damped, plain_, default = shortest
    # (1e4 v)^(-1/2), with v the variance of a pixel, which differs a little between places.
    variance = float(data[0].var())
    assert damped < 0.02 / variance**0.5
    assert plain_ > 5 * damped
    assert default > 5 * damped
