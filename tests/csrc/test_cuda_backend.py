"""initialize_ as backend "cuda" runs it, on the CPU: the patch_gram operator instead of gathering.

With the operator's CPU implementation, and once with the kernels on host threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sylvinit
from sylvinit.backends import Backend
from sylvinit.errors import NonFiniteError
from sylvinit.execution import finite, worklist
from sylvinit.model.geometry import PatchGeometry
from sylvinit.moments import all_patches, device_sums, fused, patch_moments
from sylvinit.moments.all_patches import correlation_gram, pad_channels_last
from sylvinit.moments.fused_layout import PatchLayout
from sylvinit.moments.patch_source import PatchSource
from sylvinit.moments.rows import Rows

HOST = Backend("cuda", ("cpu",), "the patch_gram operator on the CPU")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every layer takes the route of the CUDA backend; the operator's calls are counted."""
    seen: list[int] = []

    def choose(name: str, device: torch.device) -> Backend:
        return HOST

    def patch_gram(x: Tensor, *arguments: Any) -> None:
        seen.append(len(x))
        fused.patch_gram(x, *arguments)

    monkeypatch.setattr(worklist, "choose", choose)
    monkeypatch.setattr(patch_moments, "choose", choose)
    monkeypatch.setattr(device_sums, "patch_gram", patch_gram)
    monkeypatch.setattr(all_patches, "patch_gram", patch_gram)
    return seen


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    return x.cumsum(dim=-1) / 4 + 1  # correlated, with a mean


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(12, 3)

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.encoder(self.embed(inputs), src_key_padding_mask=attention_mask == 0)
        return self.head(x[:, 0])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, padding=2, dilation=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "convolutions": (convolutional, lambda: (images(60, 3, 9, 9), torch.arange(60) % 4)),
    "channels_last": (
        convolutional,
        lambda: (
            images(60, 3, 9, 9).contiguous(memory_format=torch.channels_last),
            torch.arange(60) % 4,
        ),
    ),
    "Conv1d": (lambda: nn.Conv1d(2, 5, 5, padding=2), lambda: images(50, 2, 20)),
    "Conv3d": (lambda: nn.Conv3d(2, 5, 2), lambda: images(50, 2, 4, 5, 6)),
    "rows": (lambda: nn.Linear(7, 5), lambda: images(30, 4, 7)),
    "tokens with padding": (
        Encoder,
        lambda: [
            {
                "inputs": images(20, 5, 6),
                "attention_mask": (torch.arange(5) < 1 + torch.arange(20)[:, None] % 5).long(),
                "labels": torch.arange(20) % 3,
            }
        ],
    ),
}


def weights(build: Callable[[], nn.Module], data: Any, **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    model = build()
    sylvinit.initialize_(model, data, **{"preset": "best", **options})
    return [p.detach().clone() for p in model.parameters()]


# Moments in float32 and float64 differ by rounding, which every layer's eigenvectors amplify. Worst
# difference of a weight here: 5.5e-6, and 2.1e-4 behind the attention.
CLOSE = dict.fromkeys(MODELS, 3e-5) | {"tokens with padding": 1e-3}


@pytest.mark.parametrize("patches", [3, "all"])
@pytest.mark.parametrize("name", MODELS)
def test_same_weights_as_by_gathering(
    name: str, patches: int | str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, data = MODELS[name]
    options = {"patches": patches, "microbatch": 8}
    found = weights(build, data(), **options)
    assert calls
    calls.clear()
    monkeypatch.undo()
    expected = weights(build, data(), **options)
    assert not calls
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=CLOSE[name], atol=CLOSE[name])


@pytest.fixture
def kernels(shim: Any, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator runs the kernels, on host threads."""

    def patch_gram(*arguments: Any) -> None:
        *tensors, layout, arithmetic = arguments
        calls.append(len(tensors[0]))
        where = PatchLayout.from_numbers(layout)
        fused.launch_gram(shim, *tensors, where, arithmetic, multiprocessors=2, stream=0)

    def patch_mean(x: Tensor, layout: list[int], count: int, *listed: Tensor | None) -> Tensor:
        where = PatchLayout.from_numbers(layout)
        return fused.launch_mean(shim, x, where, count, *listed, stream=0)

    for module in (device_sums, all_patches):
        monkeypatch.setattr(module, "patch_gram", patch_gram)
    monkeypatch.setattr(device_sums, "patch_mean", patch_mean)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["convolutions", "tokens with padding"])
def test_kernels_on_host_threads(
    name: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, data = MODELS[name]
    found = weights(build, data(), patches=3)
    assert calls
    monkeypatch.undo()
    for one, other in zip(found, weights(build, data(), patches=3), strict=True):
        torch.testing.assert_close(one, other, rtol=CLOSE[name], atol=CLOSE[name])


def some_missing(labels: Tensor, nothing: float) -> Tensor:
    """Labels without a sixth of their entries, and without any in sample 3."""
    generator = torch.Generator().manual_seed(1)
    missing = torch.rand(labels.shape, generator=generator) < 1 / 6
    missing[3] = True
    return labels.masked_fill(missing, nothing)


def labeled_maps() -> dict[str, Tensor]:
    x = images(12, 5, 9, 9)
    scores = torch.stack((x[:, 0] + x[:, 1], x[:, 2] - x[:, 0], 3 * x[:, 3].square()), dim=1)
    means = scores.mean(dim=(2, 3))
    return {
        "targets": some_missing(means, torch.nan),
        "several labels": some_missing((means > means.mean(dim=0)).float(), torch.nan),
        "label maps": some_missing(scores.argmax(dim=1), -100),
        "label maps of another size": some_missing(scores.argmax(dim=1), -100)[:, ::2, ::2],
        "targets of rows": some_missing(scores, torch.nan),
    }


@pytest.mark.parametrize("route", ["operator", "kernels"])
@pytest.mark.parametrize("kind", labeled_maps())
def test_heads_for_labels_of_every_kind(
    kind: str,
    route: str,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The head alone, so that the operator has seen the targets and the rows' own labels."""
    if route == "kernels":
        request.getfixturevalue("kernels")
    x, labels = images(12, 5, 9, 9), labeled_maps()[kind]
    found, expected = nn.Conv2d(5, 3, 1), nn.Conv2d(5, 3, 1)
    report = sylvinit.initialize_head_(found, (x, labels), microbatch=5)
    assert calls == [5, 5, 2]
    monkeypatch.undo()
    other = sylvinit.initialize_head_(expected, (x, labels), microbatch=5)
    assert report.layers[0].rows == other.layers[0].rows
    for one, two in zip(found.parameters(), expected.parameters(), strict=True):
        # Rounding to 2^-24 of sums of float32 products, times the condition of B (up to 100).
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_padding_far_from_the_tokens(
    shim: Any, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shift is a mean of the rows that count: with zeros among them, float32 would not do."""
    x = images(200, 5, 6) + 1000
    kept = torch.arange(5) < 2
    layout = PatchLayout.of(None, (), 1)
    rows = x[:, kept].reshape(-1, 6)
    entry = torch.arange(1000).view(200, 5)[:, kept].flatten()
    flat = torch.where(kept[:, None], x, 0).reshape(-1, 6)
    position = torch.zeros_like(entry)
    shift = fused.launch_mean(shim, flat, layout, 256, entry, position, stream=0)
    torch.testing.assert_close(shift[0], rows[:256].mean(dim=0), rtol=1e-6, atol=0)

    sums = device_sums.PatchAccumulator(0, tap_major=True)
    sums.add(flat, layout, None, entry, position)
    moments = sylvinit.PatchMoments(6)
    moments.accumulator = sums
    torch.testing.assert_close(
        moments.covariance()[0], rows.double().T.cov(correction=0), rtol=1e-4, atol=1e-4
    )
    assert float((sums._held[1] - shift).abs().max()) <= 1e-3  # type: ignore[index]


def test_fewer_patches_than_features_are_kept(calls: list[int]) -> None:
    """The dual problem needs the patches themselves."""
    model = nn.Conv2d(8, 4, 3)
    report = sylvinit.initialize_(model, images(4, 8, 6, 6), preset="best", patches=2)
    assert not calls
    assert report.layers[0].rows == 8


def test_kept_patches_and_sums_add_up(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first microbatches are too small for the sums, the later ones are not."""
    options = {"patches": 2, "microbatch": 7}
    found = weights(lambda: nn.Conv2d(4, 4, 3), images(40, 4, 6, 6), **options)
    assert calls == [7, 7, 7, 5]  # 36 features: 14 and 28 patches are kept
    monkeypatch.undo()
    expected = weights(lambda: nn.Conv2d(4, 4, 3), images(40, 4, 6, 6), **options)
    torch.testing.assert_close(found[0], expected[0], rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("place", ["input", "output"])
def test_defects_are_found_without_waiting(
    place: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that is not looked at for every microbatch; the model stays as it was."""
    monkeypatch.setattr(finite, "looks_at_once", lambda x: False)

    class Model(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * float("nan") if place == "output" else y

    model = Model(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    if place == "input":
        model.insert(1, NotANumber())
    before = [p.detach().clone() for p in model.parameters()]
    expected = "input of 3" if place == "input" else "output of the model"
    with pytest.raises(NonFiniteError, match=expected):
        sylvinit.initialize_(model, images(30, 2, 6, 6), preset="best", microbatch=8)
    for now, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(now, was)


class NotANumber(nn.Module):
    """One in one sample of the second microbatch, in a pixel that few patches would take."""

    def __init__(self) -> None:
        super().__init__()
        self.counter = itertools.count(1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        if next(self.counter) % 4 == 2:
            x[1, 0, 0, 0] = float("nan")
        return x


def test_report_names_the_same_patches(calls: list[int]) -> None:
    report = sylvinit.initialize_(
        convolutional(), (images(60, 3, 9, 9), torch.arange(60) % 4), preset="best", patches=3
    )
    assert [layer.rows for layer in report.layers if layer.status == "solved"] == [180] * 3 + [60]


def test_patch_moments(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = images(40, 4, 7, 7), torch.arange(40) % 3
    options = {"padding": 1, "groups": 2, "labels": labels, "patches": 4}
    found = sylvinit.patch_moments(x, 3, **options)
    assert found.n == 160
    assert calls
    monkeypatch.undo()
    expected = sylvinit.patch_moments(x, 3, **options)
    # The reference multiplies in float64, gathering in float32: 2e-7 of the largest entry here.
    for name in ("mean", "covariance", "class_means", "class_counts"):
        torch.testing.assert_close(
            getattr(found, name)(), getattr(expected, name)(), rtol=2e-6, atol=2e-6
        )


@given(data=st.data(), dims=st.integers(1, 3))
def test_correlations_by_lags(data: st.DataObject, dims: int) -> None:
    """Against unfolding, exact on integers, for every stride-1 geometry."""
    kernel = tuple(data.draw(st.integers(1, 4 if dims < 3 else 2)) for _ in range(dims))
    dilation = tuple(data.draw(st.integers(1, 2)) for _ in range(dims))
    pads = tuple(data.draw(st.integers(0, 2)) for _ in range(dims))
    size = tuple(
        data.draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 9))
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    )
    groups = data.draw(st.sampled_from([1, 2]))
    geometry = PatchGeometry(kernel, (1,) * dims, dilation, pads, pads)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randint(-3, 6, (3, 2 * groups, *size), generator=generator).float()
    outputs = geometry.output_size(size)
    padded = pad_channels_last(x, geometry)
    found = correlation_gram(padded, geometry, outputs, groups, "3xtf32")
    source = PatchSource(x, geometry, groups, outputs, Rows.one_each(3, prod(outputs)), None)
    _, entry, position = source.rows.all_positions()
    patches = source.gather(entry, position).double()
    assert torch.equal(found, patches.mT @ patches)


def test_labels_of_any_stride(calls: list[int]) -> None:
    targets = torch.stack((torch.arange(60) % 4, torch.zeros(60).long()), dim=1)
    sylvinit.initialize_(
        convolutional(), (images(60, 3, 9, 9), targets[:, 0]), preset="best", patches=3
    )
    sylvinit.patch_moments(images(9, 2, 6, 6), 3, labels=torch.tensor([1]).expand(9))
    assert calls
