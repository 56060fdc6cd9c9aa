"""bench/experiments/initialisers: what experiments compare sylvinit against."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import single_thread
from initialisers.filters import input_patches, make_filters
from initialisers.gradinit import gradinit_
from initialisers.krahenbuhl import krahenbuhl_
from initialisers.lsuv import lsuv_
from initialisers.metainit import gradient_quotient, metainit_
from initialisers.random import he_normal_, orthogonal_
from initialisers.table import BASELINES
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.func import functional_call

from sylvinit.datasets import Samples
from sylvinit.demo.networks import resnet20
from sylvinit.demo.training import accuracy

QUICK = {
    "gradinit": lambda *args: gradinit_(*args, iterations=3, batch=16),
    "metainit": lambda *args: metainit_(*args, steps=2, batch=4),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with single_thread():
        yield


def tiny_resnet() -> nn.Module:
    return resnet20(num_classes=4, widths=(4, 8), blocks=1)


def plain(norm: bool = False, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 6), (6, 8)):
        layers.append(nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4))


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Images of which neighbouring pixels are alike, in four classes."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randn(96, 3, 4, 4, generator=generator)
    labels = torch.arange(96) % 4
    images = F.interpolate(coarse, scale_factor=2.0, mode="bilinear") + labels.view(-1, 1, 1, 1) / 2
    return images, labels


def initialiser(name: str) -> Callable[..., None]:
    if name == "lsuv" and importlib.util.find_spec("lsuv") is None:
        pytest.skip("needs lsuv")
    return QUICK.get(name, BASELINES[name])


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
    if name != "random-head" and not name.startswith("krahenbuhl"):
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


def test_random_head_solves_the_last_layer_only(data: tuple[Tensor, Tensor]) -> None:
    random, solved = tiny_resnet(), tiny_resnet()
    he_normal_(random, data, 0)
    BASELINES["random-head"](solved, data, 0)
    for name, value in random.named_parameters():
        assert torch.equal(value, solved.get_parameter(name)) == name.startswith(("conv", "b")), (
            name
        )
    assert accuracy(solved, Samples(*data)) > 0.5  # of four classes


@pytest.mark.parametrize("name", ["random-head", "krahenbuhl-pca"])
def test_dropout_depends_on_the_seed_alone(name: str, data: tuple[Tensor, Tensor]) -> None:
    models = [nn.Sequential(nn.Dropout(0.2), plain(norm=True)) for _ in range(2)]
    for state, model in enumerate(models):
        torch.manual_seed(state)
        BASELINES[name](model, data, 0)
    found = models[1].state_dict()
    for key, value in models[0].state_dict().items():
        assert torch.equal(value, found[key]), key


# -------------------------------------------------------------------------------------------- LSUV


def test_lsuv_outputs_have_unit_variance(data: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("lsuv")
    model = plain(norm=True)
    lsuv_(model, data, 0, std_tolerance=0.01)
    model.eval()
    with torch.no_grad():
        x, stds = data[0], []
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                stds.append(float(x.std()))
    assert stds == pytest.approx([1] * 3, abs=0.011)


def test_lsuv_is_the_package_on_a_batch(data: tuple[Tensor, Tensor]) -> None:
    package = pytest.importorskip("lsuv")
    model, expected = plain(), plain()
    lsuv_(model, data, 3, batch=20)
    generator = torch.Generator().manual_seed(3)
    batch = data[0][torch.randperm(96, generator=generator)[:20]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        package.lsuv_with_singlebatch(expected, batch, verbose=False)
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_a_missing_package_is_named(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lsuv", None)
    with pytest.raises(SystemExit, match="pip install lsuv"):
        lsuv_(plain(), data, 0)


# ---------------------------------------------------------------------------------------- GradInit


def first_step(model: nn.Module, data: tuple[Tensor, Tensor], eta: float) -> tuple[float, float]:
    """Norm of the gradient, and loss after a step of length ``eta``, means of batches of 32."""
    norms, losses = [], []
    for start in range(0, 64, 16):
        moved = copy.deepcopy(model).train()
        some, others = slice(start, start + 32), slice(start + 16, start + 48)
        loss = F.cross_entropy(moved(data[0][some]), data[1][some])
        gradients = torch.autograd.grad(loss, list(moved.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                parameter -= eta / norm * gradient
            losses.append(float(F.cross_entropy(moved(data[0][others]), data[1][others])))
        norms.append(norm)
    return float(np.mean(norms)), float(np.mean(losses))


@pytest.mark.parametrize("norm", [False, True])
def test_gradinit_lowers_the_norm_of_the_gradient(norm: bool, data: tuple[Tensor, Tensor]) -> None:
    start, model = plain(norm), plain(norm)
    he_normal_(start, data, 0)
    before, _ = first_step(start, data, 0.1)
    gradinit_(model, data, 0, iterations=60, batch=32, gamma=before / 2, lr=0.03)
    after, _ = first_step(model, data, 0.1)
    assert before / 2 * 0.7 < after < before / 2 * 1.3  # it stays near the bound from then on


@pytest.mark.parametrize("through_step", [False, True])
def test_gradinit_lowers_the_loss_after_a_step(
    through_step: bool, data: tuple[Tensor, Tensor]
) -> None:
    start, model = plain(True), plain(True)
    he_normal_(start, data, 0)
    _, before = first_step(start, data, 0.1)
    gradinit_(model, data, 0, iterations=40, batch=32, gamma=math.inf, through_step=through_step)
    _, after = first_step(model, data, 0.1)
    assert after < before - 0.05


def test_gradinit_only_scales(data: tuple[Tensor, Tensor]) -> None:
    start, model = plain(True), plain(True)
    he_normal_(start, data, 0)
    gradinit_(model, data, 0, iterations=5, batch=32, lr=0.5, min_scale=0.4)
    factors = []
    for name, value in start.named_parameters():
        found = model.get_parameter(name).detach()
        value = value.detach()
        if value.any():
            factors.append(float((found * value).sum() / value.square().sum()))
            torch.testing.assert_close(found, factors[-1] * value)
        else:
            assert not found.any()
    assert min(factors) >= 0.4 - 1e-6
    assert max(factors) - min(factors) > 0.1


# ---------------------------------------------------------------------------------------- MetaInit


def tiny_problem() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return model, inputs, torch.randint(2, (6,), generator=generator)


def test_gradient_quotient_is_that_of_the_whole_hessian() -> None:
    model, inputs, labels = tiny_problem()
    shapes = {name: value.shape for name, value in model.named_parameters()}
    flat = torch.cat([value.detach().flatten() for value in model.parameters()])

    def loss_of(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        values = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(model, values, (inputs,)), labels)

    hessian = torch.autograd.functional.hessian(loss_of, flat).numpy()
    gradient = torch.autograd.functional.jacobian(loss_of, flat).numpy()
    eps = 1e-3
    expected = 0.0
    for g, product in zip(gradient, hessian @ gradient, strict=True):
        expected += abs((g - product) / (g + (eps if g >= 0 else -eps)) - 1) / len(flat)
    loss = F.cross_entropy(model(inputs), labels)
    found = gradient_quotient(loss, list(model.parameters()), eps)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)


def mean_quotient(model: nn.Module) -> float:
    """The gradient quotient on random data in evaluation mode, in float64, mean of 20 batches."""
    model = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(99)
    found = []
    for _ in range(20):
        inputs = torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (16,), generator=generator)
        loss = F.cross_entropy(model(inputs), labels)
        found.append(float(gradient_quotient(loss, list(model.parameters())).detach()))
    return float(np.median(found))


def test_metainit_lowers_the_gradient_quotient(data: tuple[Tensor, Tensor]) -> None:
    start, model = tiny_resnet(), tiny_resnet()
    he_normal_(start, data, 0)
    metainit_(model, data, 0, steps=30, batch=16)
    assert mean_quotient(model) < 0.7 * mean_quotient(start)
    for name, value in start.named_parameters():  # only norms change, and only of weights
        found, value = model.get_parameter(name).detach(), value.detach()
        if value.ndim >= 2:
            torch.testing.assert_close(found / found.norm(), value / value.norm())
            assert not torch.allclose(found, value, rtol=0.01)
        else:
            assert torch.equal(found, value)


# -------------------------------------------------------------------------------------- Krähenbühl


def test_patches_are_those_of_the_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), (2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=False)
    layer.double()
    x = torch.randn(40, 4, 7, 6, generator=generator, dtype=torch.float64)
    found = input_patches(layer, x, 1000, generator)
    weight = layer.weight.detach().view(2, 3, -1)
    outputs = layer(x).detach()  # (40, 6, h, w)
    expected = outputs.unflatten(1, (2, 3)).movedim(1, 0).movedim(2, -1).flatten(1, 3)
    torch.testing.assert_close(found @ weight.mT, expected)
    # Some of them: each is one of all the patches of its image.
    some = input_patches(layer, x, 5, generator).unflatten(1, (40, 5))
    distance = torch.cdist(some.flatten(0, 1), found.unflatten(1, (40, -1)).flatten(0, 1))
    assert float(distance.min(dim=-1).values.max()) < 1e-6


def test_pca_filters_are_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 5, generator=generator, dtype=torch.float64) * torch.arange(5, 0, -1)
    points = points @ torch.randn(5, 9, generator=generator, dtype=torch.float64) + 3
    found = make_filters(points, 7, "pca", 0, generator).numpy()
    centred = points.numpy() - points.numpy().mean(axis=0)
    vectors = np.linalg.svd(centred)[2]
    np.testing.assert_allclose(np.abs(found[:5] @ vectors[:5].T), np.eye(5), atol=1e-9)
    # Rank 5: the other two are random, of any direction.
    assert found.shape == (7, 9)
    assert np.linalg.matrix_rank(found) == 7


def test_kmeans_filters_are_centres_of_whitened_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 6, generator=generator, dtype=torch.float64) * torch.arange(6, 0, -1)
    points = points @ torch.randn(6, 6, generator=generator, dtype=torch.float64) + 3
    found = make_filters(points, 4, "kmeans", 1, generator).numpy()
    # By singular values. A sign of a singular vector mirrors points and centres alike.
    centred = points.numpy() - points.numpy().mean(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    whitening = vectors[:4].T / values[:4] * math.sqrt(300)
    rows = centred @ whitening
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    clusters = MiniBatchKMeans(4, batch_size=40, n_init=1, random_state=1).fit(rows)
    np.testing.assert_allclose(found, clusters.cluster_centers_ @ whitening.T, atol=1e-9)


def test_krahenbuhl_starts_from_principal_components(data: tuple[Tensor, Tensor]) -> None:
    model = plain()
    krahenbuhl_(model, data, 0, patches=16)  # all 16 of the first layer
    patches = F.unfold(data[0], 3, stride=2, padding=1).mT.flatten(0, 1).double().numpy()
    vectors = np.linalg.svd(patches - patches.mean(axis=0), full_matrices=False)[2][:6]
    filters = F.normalize(model[0].weight.detach().flatten(1), dim=1).double().numpy()
    np.testing.assert_allclose(np.abs(filters @ vectors.T), np.eye(6), atol=1e-4)


@pytest.mark.parametrize("basis", ["pca", "kmeans"])
@pytest.mark.parametrize("norm", [False, True])
def test_krahenbuhl_outputs_have_unit_variance(
    basis: str, norm: bool, data: tuple[Tensor, Tensor]
) -> None:
    model = plain(norm)
    krahenbuhl_(model, data, 0, basis=basis, rounds=0, bias=0.25)
    model.train()
    x = data[0]
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                rows = x.transpose(0, 1).flatten(1)
                ones = torch.ones(len(rows))
                torch.testing.assert_close(rows.var(dim=1, correction=0), ones, atol=1e-4, rtol=0)
                torch.testing.assert_close(rows.mean(dim=1), ones / 4, atol=1e-4, rtol=0)


def rates(model: nn.Module, images: Tensor) -> list[float]:
    """|gradient| / |weight| of each layer, over 50 random gradients at the outputs."""
    generator = torch.Generator().manual_seed(11)
    model = copy.deepcopy(model).train()
    weights = [value for value in model.parameters() if value.ndim >= 2]
    squares = np.zeros(len(weights))
    for _ in range(50):
        outputs = model(images)
        top = torch.randn(outputs.shape, generator=generator)
        gradients = torch.autograd.grad(outputs, weights, top)
        squares += [float(g.square().sum()) / 50 for g in gradients]
    sizes = [float(weight.detach().square().sum()) for weight in weights]
    return [math.sqrt(square / size) for square, size in zip(squares, sizes, strict=True)]


@pytest.mark.parametrize("make", [plain, lambda: plain(norm=True, bias=False), tiny_resnet])
def test_krahenbuhl_layers_learn_at_equal_rates(
    make: Callable[[], nn.Module], data: tuple[Tensor, Tensor]
) -> None:
    before, after = make(), make()
    krahenbuhl_(before, data, 0, rounds=0)
    krahenbuhl_(after, data, 0)
    spread = np.ptp(np.log(rates(before, data[0])))
    assert spread > 0.7
    # Ten rounds of alpha = 0.25 leave 0.75^10 = 5.6 % of the spread. The rest is the noise of their
    # random gradients, which six seeds put between 0.1 and 0.33 for these small networks.
    assert np.ptp(np.log(rates(after, data[0]))) < 0.056 * spread + 0.3


def test_krahenbuhl_rates_keep_the_function_of_a_homogeneous_network(
    data: tuple[Tensor, Tensor],
) -> None:
    """The scales of all layers multiply to 1, and biases follow (section 3.2)."""
    before, after = plain(), plain()
    krahenbuhl_(before, data, 0, rounds=0)
    krahenbuhl_(after, data, 0)
    assert not torch.allclose(before[0].weight, after[0].weight, rtol=0.1)
    with torch.no_grad():
        torch.testing.assert_close(after(data[0]), before(data[0]), rtol=1e-3, atol=1e-3)
