"""The weight that is written solves the equation of explicit patches, for every kind of layer.

All models are float64. X is built by loops over the input that the finished model gives the layer,
S from the definition of the code, and A, B, Q from S and X.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from equation_checks import (
    CLASSES,
    CLOSE,
    SAMPLES,
    Affine,
    batches,
    check_head,
    check_layer,
    inputs_of,
    labels,
    samples,
)
from helpers import assert_near, chosen_rows, layer_patches, weight_matrix
from torch import Tensor, nn

import sylvinit

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel lengths:UserWarning",
)


def transposed_linear(outputs: int, features: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D  # here, for it takes seconds to import

    return Conv1D(outputs, features)


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 4), (7,)),
    "linear-no-bias": (lambda: nn.Linear(7, 4, bias=False), (7,)),
    "linear-3d": (lambda: nn.Linear(5, 4), (6, 5)),
    "linear-4d": (lambda: nn.Linear(5, 4), (2, 4, 5)),
    "linear-fewer-rows-than-features": (lambda: nn.Linear(60, 4), (60,)),
    "linear-more-outputs-than-rank": (lambda: nn.Linear(5, 8), (6, 5)),
    "transformers-conv1d": (lambda: transposed_linear(4, 5), (6, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1), (3, 9)),
    "conv1d-same-even-kernel": (lambda: nn.Conv1d(2, 4, 4, padding="same", dilation=2), (2, 9)),
    "conv1d-reflect": (lambda: nn.Conv1d(2, 4, 3, padding=2, padding_mode="reflect"), (2, 7)),
    "conv1d-no-bias": (lambda: nn.Conv1d(3, 4, 2, bias=False), (3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3, padding=1), (3, 6, 7)),
    "conv2d-1x1": (lambda: nn.Conv2d(5, 4, 1), (5, 4, 4)),
    "conv2d-valid": (lambda: nn.Conv2d(2, 4, (2, 3), padding="valid"), (2, 5, 6)),
    "conv2d-uneven": (
        lambda: nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        (2, 7, 6),
    ),
    "conv2d-dilated-stride-1": (lambda: nn.Conv2d(2, 5, 3, padding=2, dilation=2), (2, 8, 7)),
    "conv2d-same-even-kernel": (lambda: nn.Conv2d(2, 4, (2, 3), padding="same"), (2, 5, 6)),
    "conv2d-same-circular": (
        lambda: nn.Conv2d(2, 4, (4, 3), padding="same", padding_mode="circular"),
        (2, 6, 5),
    ),
    "conv2d-reflect": (
        lambda: nn.Conv2d(2, 4, 3, padding=(1, 2), padding_mode="reflect"),
        (2, 5, 6),
    ),
    "conv2d-replicate-stride-2": (
        lambda: nn.Conv2d(2, 4, 3, padding=1, stride=2, padding_mode="replicate"),
        (2, 6, 7),
    ),
    "conv2d-circular": (
        lambda: nn.Conv2d(2, 4, 3, padding=2, dilation=2, padding_mode="circular"),
        (2, 7, 8),
    ),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 6)),
    "conv2d-depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 6)),
    "conv2d-depthwise-multiplier": (
        lambda: nn.Conv2d(3, 9, 3, stride=2, groups=3, padding_mode="replicate", padding=1),
        (3, 7, 7),
    ),
    "conv2d-more-outputs-than-rank": (lambda: nn.Conv2d(1, 12, 3), (1, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 2), padding=(0, 1, 1)), (2, 4, 4, 3)),
    "conv3d-stride-circular": (
        lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 2), padding=1, padding_mode="circular"),
        (2, 3, 4, 4),
    ),
    "conv3d-groups-same": (lambda: nn.Conv3d(2, 4, 2, padding="same", groups=2), (2, 3, 4, 3)),
    "conv-transpose1d": (
        lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1),
        (3, 6),
    ),
    "conv-transpose1d-crop": (lambda: nn.ConvTranspose1d(3, 4, 4, stride=3, padding=5), (3, 6)),
    "conv-transpose2d": (lambda: nn.ConvTranspose2d(3, 4, 3), (3, 4, 4)),
    "conv-transpose2d-uneven": (
        lambda: nn.ConvTranspose2d(
            2, 4, (2, 3), stride=(3, 2), padding=(1, 2), output_padding=(2, 1), dilation=(2, 1)
        ),
        (2, 3, 4),
    ),
    "conv-transpose2d-groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False),
        (4, 3, 4),
    ),
    "conv-transpose3d": (
        lambda: nn.ConvTranspose3d(2, 3, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 0)),
        (2, 3, 3, 2),
    ),
    "conv-transpose2d-no-overlap": (lambda: nn.ConvTranspose2d(3, 5, 2, stride=2), (3, 3, 4)),
    "conv-transpose1d-gaps": (lambda: nn.ConvTranspose1d(3, 5, 2, stride=3), (3, 5)),
    "conv2d-circulant": (
        lambda: nn.Conv2d(2, 4, 3, padding=2, dilation=2, padding_mode="circular"),
        (2, 6, 7),
    ),
}
# Where the covariance of all patches has repeated eigenvalues by symmetry, principal axes are
# defined up to rotation, and no oracle can name them. LDA with fewer rows than features separates
# the classes
# perfectly in every discriminant: the same. These are checked with the other codes.
ROTATIONS = {
    ("conv-transpose2d-no-overlap", "all"): {"pca", "pca-uncentred", "lda"},
    ("conv-transpose1d-gaps", "all"): {"pca", "pca-uncentred", "lda"},
    ("conv2d-circulant", "all"): {"pca", "pca-uncentred", "lda"},
    ("linear-fewer-rows-than-features", "all"): {"lda"},
    ("linear-fewer-rows-than-features", 3): {"lda"},
}
CODES = ["pca", "pca-uncentred", "lda", Affine()]
CASES = [
    pytest.param(kind, code, option, id=f"{kind}-{getattr(code, 'name', code)}-{option}")
    for kind in KINDS
    for code in CODES
    for option in ("all", 3)
    if code not in ROTATIONS.get((kind, option), set())
]


def network(kind: str) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    module, x = make().double(), samples(*shape)
    features = module(x).flatten(1).shape[1]
    head = nn.Linear(features, CLASSES).double()
    return nn.Sequential(module, nn.Tanh(), nn.Flatten(), head), x


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_patches_times_weight_are_the_output_of_torch(kind: str) -> None:
    model, x = network(kind)
    module = model[0]
    y = np.einsum("gkd,gnpd->ngkp", weight_matrix(module), layer_patches(module, x))
    if module.bias is not None:
        bias = module.bias.detach().numpy().reshape(y.shape[1], -1)
        y = y + bias[None, :, :, None]
    with torch.no_grad():
        output = module(x)
    if not hasattr(module, "kernel_size"):
        output = output.movedim(-1, 1)
    assert_near(y.ravel(), output.numpy().ravel(), CLOSE)


@pytest.mark.parametrize(("kind", "code", "option"), CASES)
def test_equation_of_every_kind(kind: str, code: Any, option: int | str) -> None:
    model, x = network(kind)
    head = model[3]
    asked = sylvinit.codes.PCA(center=False) if code == "pca-uncentred" else code
    report = sylvinit.initialize_(
        model,
        batches(x),
        code=asked,
        lam=10.0,
        patches=option,
        seed=5,
        progress=False,
        preset="paper",
    )
    columns, owner = chosen_rows(layer_patches(model[0], x), "0", option, seed=5)
    check_layer(model[0], columns, labels().numpy()[owner], code, 10.0, report["0"])
    last, owner = chosen_rows(layer_patches(head, inputs_of(model, head, x)[0]), "3", option, 5)
    check_head(head, last[0], labels().numpy()[owner], 10.0)


@pytest.mark.parametrize("option", ["all", 3])
@pytest.mark.parametrize("code", ["lda", Affine()], ids=lambda code: getattr(code, "name", code))
@pytest.mark.parametrize("kind", KINDS)
def test_the_default_scales_and_centres_every_kind(kind: str, code: Any, option: int | str) -> None:
    """Rows that solve the equation over the deviation of their outputs, all from explicit patches.

    These codes are not centered, or leave rows to be filled. Rows, deviations and means are sums of
    up to a few thousand float64 products; the worst difference measured is 6e-15.
    """
    (plain, x), (scaled, _) = network(kind), network(kind)
    options: dict[str, Any] = {"code": {"0": code}, "patches": option, "progress": False}
    sylvinit.initialize_(plain, batches(x), preset="paper", **options)
    report = sylvinit.initialize_(scaled, batches(x), **{"preset": "best", **options})
    assert not any("not scaled" in note for note in report["0"].notes)
    columns, _ = chosen_rows(layer_patches(plain[0], x), "0", option)
    before, after = weight_matrix(plain[0]), weight_matrix(scaled[0])
    bias = None if scaled[0].bias is None else scaled[0].bias.detach().numpy()
    for group, part in enumerate(columns):
        std = (before[group] @ part).std(axis=1, keepdims=True)
        np.testing.assert_allclose(after[group] * std, before[group], rtol=0, atol=1e-12)
        if bias is not None:
            mean = after[group] @ part.mean(axis=1)
            np.testing.assert_allclose(
                bias.reshape(len(columns), -1)[group], -mean, rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3])
def test_equation_for_other_weights_of_the_encoding_loss(lam: float) -> None:
    model, x = network("conv2d")
    sylvinit.initialize_(
        model, batches(x), code=Affine(), lam=lam, patches="all", preset="paper", progress=False
    )
    columns, _ = chosen_rows(layer_patches(model[0], x), "0", "all")
    check_layer(model[0], columns, np.array([]), Affine(), lam)


def test_head_without_bias() -> None:
    model, x = network("linear")
    model[3] = nn.Linear(4, CLASSES, bias=False).double()
    sylvinit.initialize_(model, batches(x), preset="best", progress=False)
    check_head(model[3], inputs_of(model, model[3], x)[0].T.numpy(), labels().numpy(), 10.0)


@pytest.mark.parametrize("option", ["all", 4])
def test_every_layer_of_a_deep_model(option: int | str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.ConvTranspose2d(6, 4, 3, stride=2), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(4 * 5 * 5, 8), nn.Dropout(0.5), nn.GELU(), nn.Linear(8, CLASSES)),
    ).double()
    x = samples(2, 5, 5)
    report = sylvinit.initialize_(model, batches(x), patches=option, preset="paper", progress=False)
    for index in (0, 3, 6, 9):
        seen = inputs_of(model, model[index], x)[0]
        columns, owner = chosen_rows(layer_patches(model[index], seen), str(index), option)
        y = labels().numpy()[owner]
        check_layer(model[index], columns, y, "pca", 10.0, report[str(index)])
    check_head(model[12], inputs_of(model, model[12], x)[0].T.numpy(), labels().numpy(), 10.0)


class Upsampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1)
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(x, output_size=(8, 7)).tanh().flatten(1))


def test_transposed_convolution_with_a_given_output_size() -> None:
    model, x = Upsampler().double(), samples(2, 4, 4)
    sylvinit.initialize_(model, batches(x), patches="all", preset="paper", progress=False)
    model.up.output_padding = (1, 0)  # what output_size=(8, 7) means: without it, 7 x 7
    columns, _ = chosen_rows(layer_patches(model.up, x), "up", "all")
    assert columns.shape[2] == SAMPLES * 8 * 7
    check_layer(model.up, columns, np.array([]), "pca", 10.0)


@pytest.mark.parametrize("option", ["all", 3])
def test_channels_last(option: int | str) -> None:
    model, x = network("conv2d")
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    sylvinit.initialize_(model, batches(x), patches=option, preset="paper", progress=False)
    columns, _ = chosen_rows(layer_patches(model[0], x), "0", option)
    check_layer(model[0], columns, np.array([]), "pca", 10.0)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
