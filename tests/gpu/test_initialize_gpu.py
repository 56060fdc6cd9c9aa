"""initialize_ and patch_moments on a GPU, against the CPU and against backend "torch"."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driver_helpers import (
    Snapshot,
    assert_close,
    assert_identical,
    images,
    relative_difference,
    small_net,
    weights_of,
)
from torch import Tensor, nn

import sylvinit
from sylvinit.backends import choose
from sylvinit.demo.networks import resnet20
from sylvinit.errors import NonFiniteError
from sylvinit.moments import device_sums

pytestmark = [
    pytest.mark.threads(8),
    pytest.mark.usefixtures("float32_products"),
]

DEVICE = "cuda"
SAMPLES = 120
# The contract: a float64 model agrees in all its weights, a float32 one in its first
# layers, or as subspaces where eigenvalues are close.
BOUND = 1e-5
# The same for the first three layers of a float32 model, see test_reproducibility.py.
SINGLE = 1e-4


def narrow_resnet() -> nn.Module:
    return resnet20(4, widths=(6, 8, 12))


class Encoder(nn.Module):
    """A transformer encoder on rows (n, length, 6), with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.encoder(self.embed(inputs), src_key_padding_mask=attention_mask == 0)
        return self.head(x[:, 0])


def built(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().to(dtype)


def pictures(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return images(SAMPLES, dtype=dtype, size=12)


def sentences() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 7, 6, generator=generator).cumsum(dim=-1) / 4 + 1
    mask = (torch.arange(7) < 2 + torch.arange(SAMPLES)[:, None] % 6).long()
    return {"inputs": x, "attention_mask": mask, "labels": torch.arange(SAMPLES) % 4}


def on(device: str, data: Any) -> Any:
    if isinstance(data, dict):
        return [{name: value.to(device) for name, value in data.items()}]
    return tuple(value.to(device) for value in data)


def run(
    model: nn.Module, data: Any, device: str, **options: Any
) -> tuple[dict[str, Tensor], sylvinit.Report]:
    """Weights (on the CPU) and report of a copy of the model on the device."""
    model = copy.deepcopy(model).to(device)
    # Bounds are those of rows as they solve the equation: scaled ones magnify what differs in
    # components of small variance.
    options = {"preset": "paper", "patches": 5, "microbatch": 50, **options}
    report = sylvinit.initialize_(model, on(device, data), **{"preset": "best", **options})
    assert all(p.device.type == torch.device(device).type for p in model.parameters())
    return {name: value.cpu() for name, value in weights_of(model).items()}, report


def assert_agrees(first: Tensor, second: Tensor, bound: float) -> None:
    """The same weight, or the same row space."""
    if relative_difference(first, second) <= bound:
        return
    one, other = first.flatten(1).double(), second.flatten(1).double()
    basis = torch.linalg.qr(one.T).Q
    assert float((other - (other @ basis) @ basis.T).norm() / other.norm()) <= bound


def assert_same_report(host: sylvinit.Report, gpu: sylvinit.Report) -> None:
    """Layers, codes, rows and residuals; not the times."""
    for one, other in zip(host.layers, gpu.layers, strict=True):
        names = ("name", "status", "code", "d_in", "d_out", "groups", "rows")
        assert [getattr(one, n) for n in names] == [getattr(other, n) for n in names]
        if other.status == "solved":
            assert other.residual <= 1e-12
            # Only where the backend had to leave its first route is there such a note.
            assert not [note for note in other.notes if "cuSOLVER" in note]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Patches added by the kernels, a number for each launch."""
    seen: list[int] = []

    def patch_gram(x: Tensor, *arguments: Any) -> None:
        assert x.device.type == DEVICE
        seen.append(len(x))
        kernels(x, *arguments)

    kernels = device_sums.patch_gram
    monkeypatch.setattr(device_sums, "patch_gram", patch_gram)
    return seen


# --------------------------------------------------------------------------------- CPU against CUDA


@pytest.mark.parametrize("patches", [5, "all"])
@pytest.mark.parametrize("code", ["pca", "lda"])
def test_a_double_precision_resnet(code: str, patches: Any) -> None:
    model, data = built(narrow_resnet, torch.float64), pictures(torch.float64)
    expected, host = run(model, data, "cpu", code=code, patches=patches)
    found, gpu = run(model, data, DEVICE, code=code, patches=patches)
    assert len(gpu.solved) == 20
    assert_close(expected, found, BOUND)
    assert_same_report(host, gpu)


@pytest.mark.parametrize("microbatch", [50, SAMPLES])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_first_layers_of_a_single_precision_resnet(
    channels_last: bool, microbatch: int, launches: list[int]
) -> None:
    model, (x, y) = built(narrow_resnet), pictures()
    expected, host = run(model, (x, y), "cpu", microbatch=microbatch)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    launches.clear()
    found, gpu = run(model, (x, y), DEVICE, microbatch=microbatch)
    # A launch for each microbatch of each of the 20 layers: nothing was gathered.
    assert len(launches) == 20 * -(-SAMPLES // microbatch)
    names = [name for name in found if "conv" in name][:3]
    assert_agrees(expected[names[0]], found[names[0]], BOUND)
    for name in names[1:]:
        assert_agrees(expected[name], found[name], SINGLE)
    assert_same_report(host, gpu)


@pytest.mark.parametrize("code", ["pca", "lda", "kmeans", "ica"])
def test_a_small_network(code: str) -> None:
    """Groups, a bias, a frozen layer, codes that need a reservoir."""
    model, data = small_net(), images(60)
    expected, host = run(model, data, "cpu", code=code)
    found, gpu = run(model, data, DEVICE, code=code)
    # k-means and ICA iterate from random rows to a tolerance of their own.
    bound = BOUND if code in ("pca", "lda") else 1e-2
    assert_agrees(expected["conv1.weight"], found["conv1.weight"], bound)
    assert_same_report(host, gpu)


def test_a_transformer_with_padding(launches: list[int]) -> None:
    model, data = built(Encoder), sentences()
    expected, host = run(model, data, "cpu")
    launches.clear()
    found, gpu = run(model, data, DEVICE)
    assert launches
    for name in ("embed.weight", "encoder.layers.0.self_attn.in_proj_weight"):
        assert_agrees(expected[name], found[name], SINGLE)
    assert_same_report(host, gpu)


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("patches", [7, "all"])
@pytest.mark.parametrize("backend", ["cuda", "torch"])
def test_moments(backend: str, patches: Any, labeled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, 14, 15, generator=generator).cumsum(dim=-1) / 4 + 3
    labels = torch.arange(40) % 3 if labeled else None
    options = {"padding": 1, "groups": 2, "patches": patches, "name": "layer"}
    exact = sylvinit.patch_moments(x.double(), 3, labels=labels, **options)
    on_gpu = None if labels is None else labels.to(DEVICE)
    found = sylvinit.patch_moments(x.to(DEVICE), 3, labels=on_gpu, backend=backend, **options)
    assert found.n == exact.n
    covariance = exact.covariance()
    size = float(covariance.diagonal(dim1=1, dim2=2).max())
    # The bounds of tests/gpu/test_patch_gram_gpu.py, for covariances of correlated features.
    assert float((found.covariance().cpu() - covariance).abs().max()) <= 2e-5 * size
    assert float((found.mean().cpu() - exact.mean()).abs().max()) <= 2e-5 * size**0.5
    if labeled:
        counts, means = exact.class_counts(), exact.class_means()
        assert torch.equal(found.class_counts().cpu(), counts)
        assert float((found.class_means().cpu() - means).abs().max()) <= 2e-5 * size**0.5


# --------------------------------------------------------------------- ways to the same, on the GPU


def test_the_backend_is_the_extension() -> None:
    assert choose("auto", torch.device(DEVICE, torch.cuda.current_device())).name == "cuda"


@pytest.mark.parametrize("build", [narrow_resnet, Encoder])
def test_backend_torch_agrees(build: Callable[[], nn.Module], launches: list[int]) -> None:
    data = sentences() if build is Encoder else pictures()
    model = built(build)
    expected, by_torch = run(model, data, DEVICE, backend="torch")
    assert not launches
    found, by_kernels = run(model, data, DEVICE, backend="cuda")
    assert launches
    name = next(name for name, value in found.items() if value.ndim > 1)
    assert_agrees(expected[name], found[name], BOUND)
    assert_same_report(by_torch, by_kernels)


@pytest.mark.parametrize("preset", ["paper", "best"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bitwise_the_same_twice(dtype: torch.dtype, preset: str) -> None:
    model, data = built(narrow_resnet, dtype), pictures(dtype)
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True  # the forward pass is the user's
    try:
        first, _ = run(model, data, DEVICE, preset=preset)
        with torch.random.fork_rng():
            torch.manual_seed(123)
            second, _ = run(model, data, DEVICE, preset=preset)
    finally:
        torch.backends.cudnn.deterministic = before
    assert_identical(first, second)


def test_noise_that_is_drawn_there_changes_no_rows() -> None:
    """Whose the rows are is seen by running the model twice, with the same noise."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 0.1 * torch.randn(x.shape[1:], device=x.device)
            return self.head(self.body(x.transpose(0, 1)).tanh().mean(dim=0))

    x, labels = images(30)
    data = (x.flatten(2).mT.to(DEVICE), labels.to(DEVICE))
    report = sylvinit.initialize_(Noisy().to(DEVICE), data, preset="best", microbatch=10)
    assert "row j belongs to sample j mod N, for N samples" in report["body"].notes


def test_more_microbatches_wait_no_more_often() -> None:
    """What waits for the GPU, waits once for a layer or once for the data."""
    model, data = built(narrow_resnet), on(DEVICE, pictures())
    counts: list[int] = []
    for microbatch in (60, 60, 30, 15):  # the first loads kernels and fills caches
        copied = copy.deepcopy(model).to(DEVICE)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                sylvinit.initialize_(copied, data, preset="best", patches=5, microbatch=microbatch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        texts = [str(warning.message) for warning in caught]
        counts.append(sum("synchronizing CUDA operation" in text for text in texts))
    assert counts[1] > 0  # there is something to be counted
    assert counts[2] == counts[1]
    assert counts[3] == counts[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, launches: list[int]) -> None:
    """Activations of 16 bits; the weights are those of float32 up to their rounding."""
    model, data = built(narrow_resnet), pictures()
    expected, _ = run(model, data, DEVICE)
    with torch.autocast(DEVICE, dtype):
        found, report = run(model, data, DEVICE)
    assert launches
    assert len(report.solved) == 20
    # The input of the first layer is not cast.
    assert_agrees(expected["conv1.weight"], found["conv1.weight"], BOUND)
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_a_bfloat16_model(launches: list[int]) -> None:
    model, (x, y) = built(narrow_resnet, torch.bfloat16), pictures()
    _, report = run(model, (x.bfloat16(), y), DEVICE, preset="best")
    assert len(launches) == 20 * 3
    assert len(report.solved) == 20


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("microbatch", [10, 60])
def test_not_a_number_in_the_data(microbatch: int) -> None:
    x, y = images(60)
    x[37, 1, 2, 3] = float("nan")
    model, data = small_net().to(DEVICE), on(DEVICE, (x, y))
    generator = torch.cuda.get_rng_state()
    before = Snapshot.of(model)
    with pytest.raises((NonFiniteError, sylvinit.errors.DataError)):
        sylvinit.initialize_(model, data, preset="best", microbatch=microbatch)
    assert before.differences(Snapshot.of(model)) == []
    assert torch.equal(torch.cuda.get_rng_state(), generator)


def test_not_a_number_behind_the_first_layer() -> None:
    """Weights have been written by then."""
    model, data = small_net().to(DEVICE), on(DEVICE, images(60))
    model.trap.at, model.trap.action = 2, lambda x: x * float("nan")
    before = Snapshot.of(model)
    with pytest.raises(NonFiniteError):
        sylvinit.initialize_(model, data, preset="best", microbatch=20)
    assert before.differences(Snapshot.of(model)) == []


def test_random_states_and_memory_are_left_alone() -> None:
    model, data = small_net().to(DEVICE), on(DEVICE, images(60))
    sylvinit.initialize_(model, data, preset="best")
    generator, allocated = torch.cuda.get_rng_state(), torch.cuda.memory_allocated()
    sylvinit.initialize_(model, data, preset="best")
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    assert torch.cuda.memory_allocated() <= allocated + 2**20  # tables that are cached
