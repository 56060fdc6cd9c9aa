"""The spatial correlation of the inputs of convolutions, against patches taken one by one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from driver_helpers import Snapshot, Trap, bits, images, small_net, unchanged
from helpers import chosen_rows, layer_patches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sylvinit import input_correlation
from sylvinit.correlated import FilterCorrelation
from sylvinit.errors import (
    DataError,
    ModelError,
    NonFiniteError,
    OptionError,
    OptionTypeError,
)

# float64 moments of a few thousand patches, summed in another order than NumPy's about another
# center: eps times the number of terms at worst. The worst difference seen is 2e-15.
CLOSE = 1e-12


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Inputs that are correlated along their last axis, with another mean for every channel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    offset = torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2))
    return x + 0.8 * x.roll(1, dims=-1) + 0.3 * x.roll(1, dims=2) + offset


def correlation(patches: np.ndarray, taps: int) -> np.ndarray:
    """Of rows (rows, channels * taps): covariance of each channel, their mean, scaled."""
    split = patches.reshape(len(patches), -1, taps)
    covariance = sum(np.cov(split[:, c], rowvar=False, bias=True) for c in range(split.shape[1]))
    deviation = np.sqrt(np.diag(covariance))
    return covariance / deviation[:, None] / deviation


def explicit(module: nn.Module, x: Tensor) -> np.ndarray:
    """All patches of a module, padding included: (rows, channels * taps)."""
    patches = layer_patches(module, x)  # (groups, samples, positions, features)
    groups, samples, positions, features = patches.shape
    return patches.transpose(1, 2, 0, 3).reshape(samples * positions, groups * features)


# ----------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize(
    "options", [{}, {"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2}]
)
def test_against_unfold(options: dict[str, int]) -> None:
    conv = nn.Conv2d(3, 4, 3, **options).double()
    x = smooth(7, 3, 9, 8)
    columns = F.unfold(x, 3, **options)  # (samples, channels * taps, positions)
    expected = correlation(columns.transpose(1, 2).reshape(-1, 27).numpy(), 9)
    found = input_correlation(conv, x, patches="all")[""]
    assert type(found) is FilterCorrelation
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=CLOSE)
    assert (found.kernel_size, found.layers) == ((3, 3), ("",))
    assert found.filters == 7 * columns.shape[2]


@given(
    axes=st.integers(1, 3),
    kernel=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same"]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    groups=st.sampled_from([1, 2, 4]),
    microbatch=st.sampled_from([None, 1, 2, 4]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_kind_of_convolution(
    axes: int,
    kernel: list[int],
    stride: int,
    dilation: int,
    padding: Any,
    mode: str,
    groups: int,
    microbatch: int | None,
    seed: int,
) -> None:
    size = tuple(kernel[:axes])
    if math.prod(size) == 1:
        return
    if padding == "same":
        stride = 1
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](
        4, 8, size, stride, padding, dilation, groups, padding_mode=mode
    ).double()
    x = smooth(5, 4, *(7, 6, 5)[:axes], seed=seed)
    found = input_correlation(conv, x, patches="all", microbatch=microbatch)[""]
    expected = correlation(explicit(conv, x), math.prod(size))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=CLOSE)


def test_random_patches_are_those_of_the_sampling() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    x = smooth(6, 3, 6, 6)
    rows, _ = chosen_rows(layer_patches(conv, x), "", 5, seed=9)
    found = input_correlation(conv, x, patches=5, seed=9)[""]
    np.testing.assert_allclose(found.numpy(), correlation(rows[0].T, 9), rtol=0, atol=CLOSE)
    assert found.filters == 30


def test_deeper_layers_see_what_the_network_makes() -> None:
    model = small_net(dtype=torch.float64)
    x, labels = images(20, dtype=torch.float64)
    found = input_correlation(model, (x, labels), patches="all")
    assert list(found) == ["conv1", "conv2"]
    evaluated = nn.Sequential(*(model[i] for i in range(3)))
    modes = [module.training for module in evaluated.modules()]
    with torch.no_grad():
        hidden = evaluated.eval()(x)
    for module, mode in zip(evaluated.modules(), modes, strict=True):
        module.training = mode
    for name, inputs in (("conv1", x), ("conv2", hidden)):
        conv = model.get_submodule(name)
        expected = correlation(explicit(conv, inputs), 9)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=0, atol=CLOSE)


class Twice(nn.Module):
    """One module called twice in a forward, the second time with keywords, and one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.point = nn.Conv2d(3, 3, 1)
        self.unused = nn.Conv2d(3, 3, 3)
        self.up = nn.ConvTranspose2d(3, 3, 3)
        self.seen = SimpleNamespace()  # attributes of the module itself are put back

    def forward(self, x: Tensor) -> Tensor:
        second = self.point(self.conv(x)).relu()
        self.seen.inputs = (x, second)
        return self.up(self.conv(input=second))


def test_a_module_called_twice() -> None:
    model = Twice().double()
    x = smooth(6, 3, 5, 5)
    found = input_correlation(model, x, patches="all")
    assert list(found) == ["conv"]
    rows = np.concatenate([explicit(model.conv, y) for y in model.seen.inputs])
    np.testing.assert_allclose(found["conv"].numpy(), correlation(rows, 9), rtol=0, atol=CLOSE)
    sampled = input_correlation(model, x, patches=4)["conv"]
    drawn = [
        chosen_rows(layer_patches(model.conv, y), "conv", 4, call=call)[0][0].T
        for call, y in enumerate(model.seen.inputs)
    ]
    expected = correlation(np.concatenate(drawn), 9)
    np.testing.assert_allclose(sampled.numpy(), expected, rtol=0, atol=CLOSE)
    assert sampled.filters == 2 * 6 * 4


def test_single_images_and_folded_batches() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.reshape(-1, 1, *x.shape[2:])) + self.conv(x[0, :1])[None]

    model, x = Folded(), smooth(1, 3, 6, 6)
    found = input_correlation(model, x, patches="all")["conv"]
    rows = [explicit(model.conv, x.reshape(-1, 1, 6, 6)), explicit(model.conv, x[:, :1])]
    expected = correlation(np.concatenate(rows), 9)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=CLOSE)
    twelve = smooth(4, 3, 6, 6)
    model.forward = lambda y: model.conv(y.reshape(-1, 1, 6, 6))  # type: ignore[method-assign]
    assert input_correlation(model, twelve, patches=5)["conv"].filters == 12 * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    """The inputs are rounded; moments of what has been rounded are those of float32 at least."""
    conv = nn.Conv2d(3, 4, 3, padding=1).to(dtype)
    x = smooth(9, 3, 8, 8).to(dtype)
    found = input_correlation(conv, x, patches="all")[""]
    expected = correlation(explicit(conv.double(), x.double()), 9)
    # Variances of about 2 around means of up to 2, from 576 products in float32; seen: 2e-7.
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_taps_that_never_vary() -> None:
    """Taps that read padding alone are uncorrelated with the others; so is a constant image."""
    conv = nn.Conv2d(1, 1, 3, padding=1).double()
    found = input_correlation(conv, smooth(50, 1, 1, 1), patches="all")[""]
    assert torch.equal(found, torch.eye(9).double())
    constant = torch.full((4, 3, 9, 9), 0.1)
    assert torch.equal(input_correlation(nn.Conv2d(3, 2, 3), constant)[""], torch.eye(9).double())


# ------------------------------------------------------------------------------------- the outside


def test_microbatches_and_loaders() -> None:
    model, (x, labels) = small_net(), images(30)
    whole = input_correlation(model, x, patches=6, seed=3)
    loader = DataLoader(TensorDataset(x, labels), batch_size=8)
    for data, options in (
        ((x, labels), {"microbatch": 7}),
        (loader, {}),
        (loader, {"microbatch": 3}),
        ([x[:11], x[11:]], {}),
        ({"input": x, "labels": labels}, {}),
        (x.numpy(), {"forward_fn": lambda m, y: m(y)}),
        (torch.cat((x, x)), {"max_samples": 30}),
    ):
        again = input_correlation(model, data, patches=6, seed=3, **options)
        for name, matrix in whole.items():
            # The same patches; float32 convolutions of other batch sizes, and moments in another
            # order. Seen: 1e-7.
            torch.testing.assert_close(again[name].clone(), matrix.clone(), rtol=0, atol=1e-5)
            assert again[name].filters == matrix.filters == 180


def test_seeds_and_repeated_calls() -> None:
    model, (x, _) = small_net(), images(30)
    first, again = (input_correlation(model, x, patches=4) for _ in range(2))
    other = input_correlation(model, x, patches=4, seed=1)
    for name, matrix in first.items():
        assert bits(again[name]) == bits(matrix)
        assert not torch.equal(other[name], matrix)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_nothing_is_left_behind(wrap: Any) -> None:
    model = small_net()
    loader = DataLoader(TensorDataset(*images(20)), batch_size=8, shuffle=True)
    with unchanged(model):
        assert list(input_correlation(wrap(model), loader)) == ["conv1", "conv2"]


class UsersError(Exception):
    """Of nobody's making."""


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("error", [UsersError(), KeyboardInterrupt()])
def test_nor_after_a_failure(error: BaseException, call: int) -> None:
    def fail(x: Tensor) -> Tensor:
        torch.rand(3)
        raise error

    model = small_net()
    model.trap.at, model.trap.action = call, fail
    with unchanged(model), pytest.raises(type(error)):
        input_correlation(model, images(20), microbatch=10)

    def loader() -> Any:
        yield images(8)
        raise error

    model.trap.at = -1
    with unchanged(model), pytest.raises(type(error)):
        input_correlation(model, loader())


def test_no_memory_for_the_copies() -> None:
    class Greedy(torch.Tensor):
        def clone(self, *args: Any, **kwargs: Any) -> Tensor:
            raise MemoryError

    model = small_net()
    model.register_buffer("large", torch.zeros(2).as_subclass(Greedy))
    with unchanged(model), pytest.raises(MemoryError):
        input_correlation(model, images(20))


def _poisoned() -> nn.Module:
    model = small_net()
    model.relu1 = Trap()
    model.relu1.at, model.relu1.action = 0, lambda x: x * math.nan
    return model


NAN = torch.full((3, 3, 6, 6), math.nan)


@pytest.mark.parametrize(
    ("model", "data", "options", "error", "message"),
    [
        (small_net(), NAN, {}, DataError, "data holds NaN or Inf"),
        (_poisoned(), images(9), {}, NonFiniteError, "NaN or Inf in the input of layer conv2"),
        (small_net(), [], {}, DataError, "data is empty"),
        (small_net(), torch.zeros(0, 3, 6, 6), {}, DataError, "data is empty"),
        (small_net(), "cifar", {}, OptionTypeError, "data must be a tensor"),
        (small_net(), None, {}, OptionTypeError, "data must be a tensor"),
        (small_net(), images(9), {"patches": 0}, OptionError, "patches"),
        (small_net(), images(9), {"patches": "some"}, OptionTypeError, "patches .*'all'"),
        (small_net(), images(9), {"patches": None}, OptionTypeError, "patches"),
        (small_net(), images(9), {"microbatch": 0}, OptionError, "microbatch"),
        (small_net(), images(9), {"max_samples": 1.5}, OptionTypeError, "max_samples"),
        (small_net(), images(9), {"seed": "a"}, OptionTypeError, "seed"),
        (nn.Linear(3, 3), torch.zeros(3, 3), {"seed": 2**70}, OptionError, "seed"),
        (nn.Linear(3, 3), torch.zeros(3, 3), {}, ModelError, "reached no Conv1d, Conv2d or Conv3d"),
        (nn.Conv2d(3, 3, 1), images(9), {}, ModelError, "with more than one tap"),
        (nn.Conv2d(3, 3, 3, device="meta"), images(9), {}, ModelError, "meta device"),
        (nn.Flatten(), images(9), {}, ModelError, "no parameters"),
        (None, images(9), {}, OptionTypeError, r"must be a torch\.nn\.Module, got NoneType"),
        (nn.Conv2d(3, 3, 7), images(9), {}, RuntimeError, "Kernel size can't be greater"),
        (nn.Conv2d(4, 3, 3), images(9), {}, RuntimeError, "expected input.* to have 4 channels"),
        (nn.Conv3d(3, 3, (1, 3, 3)), torch.zeros(9, 3), {}, RuntimeError, "Expected 4D"),
    ],
)
def test_bad_input(
    model: Any, data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = Snapshot.of(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=message):
        input_correlation(model, data, **options)
    assert before is None or before.differences(Snapshot.of(model)) == []
