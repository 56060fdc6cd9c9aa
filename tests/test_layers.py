"""The weight that is written solves the equation of explicit patches, for every kind of layer.

All models are float64. X is built by loops over the input that the finished model gives the layer,
S from the definition of the code, and A, B, Q from S and X.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    chosen_rows,
    equation,
    layer_patches,
    one_hot,
    relative_defect,
    scores,
    weight_matrix,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

import sylvinit

pytestmark = pytest.mark.filterwarnings("ignore::sylvinit.SylvinitWarning")

# Relative to (|A| + |B|)|W| + |Q|. The solver's own residual is below 2e-15; S comes from
# eigenvectors of moments that were summed in another order: they differ by eps |Sigma| / gap.
# The worst value seen over all tests of this file is 4e-13.
DEFECT = 1e-10
# Of an output or a bias of size 1 to 10, computed by two orders of summation; worst seen 2e-13.
CLOSE = 1e-10
CLASSES, SAMPLES = 3, 14


class Affine:
    """A code of the user's own, s = E (x - c) with an arbitrary E; A commutes with nothing."""

    name, needs_labels, reservoir, reducible = "affine", False, 0, False

    def fit(self, stats: sylvinit.LayerStatistics, k: int, seed: int) -> sylvinit.Latent:
        encoder, centre = self.draw(stats.groups, k, stats.d)
        return sylvinit.Latent.affine(stats, torch.from_numpy(encoder), torch.from_numpy(centre))

    @staticmethod
    def draw(groups: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(3)
        return generator.normal(size=(groups, k, d)), generator.normal(size=(groups, d))


def samples(*shape: int, seed: int = 0) -> Tensor:
    """Correlated inputs with a mean: neighbours along the last axis are averaged."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, *shape, generator=generator, dtype=torch.float64)
    return x + 0.7 * x.roll(1, dims=-1) + 0.4 + 0.3 * torch.arange(shape[-1])


def labels(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CLASSES, (SAMPLES,), generator=generator)


def expected_scores(
    code: Any, x: np.ndarray, y: np.ndarray, k: int, group: int, groups: int
) -> np.ndarray:
    if isinstance(code, Affine):
        encoder, centre = code.draw(groups, k, len(x))
        return encoder[group] @ (x - centre[group][:, None])
    return scores(code, x, y, k)


def check_rows(
    weight: np.ndarray, bias: Tensor | None, x: np.ndarray, s: np.ndarray, lam: float
) -> None:
    """One group: a weight (k, d), its bias, columns (d, n) and their scores (rows <= k, n)."""
    solved = weight[: len(s)]
    assert relative_defect(*equation(s, x, lam), solved) < DEFECT
    if bias is not None:
        expected = s.mean(axis=1) - solved @ x.mean(axis=1)
        np.testing.assert_allclose(bias.detach().numpy()[: len(s)], expected, atol=CLOSE)


def check_layer(
    module: nn.Module,
    x: np.ndarray,
    y: np.ndarray,
    code: Any,
    lam: float,
    report: sylvinit.LayerReport | None = None,
) -> None:
    """All groups of a module, given its columns (groups, d, n) and their labels."""
    weight = weight_matrix(module)
    groups, k, _ = weight.shape
    biases = [None] * groups if module.bias is None else module.bias.reshape(groups, -1)
    exempt = 0
    for group in range(groups):
        s = expected_scores(code, x[group], y, k, group, groups)
        check_rows(weight[group], biases[group], x[group], s, lam)
        exempt = max(exempt, k - len(s))
    if report is not None:
        assert report.status == "solved"
        assert report.patches == x.shape[2]
        # Rows beyond the rank are mixtures; nothing else is exempt.
        assert ("orthogonal mixtures" in " ".join(report.notes)) == (exempt > 0)


def check_head(module: nn.Module, x: np.ndarray, y: np.ndarray, lam: float) -> None:
    """One-hot codes; with a bias, the system augmented by the constant 1."""
    weight = module.weight.detach().numpy()
    if module.bias is not None:
        weight = np.concatenate((weight, module.bias.detach().numpy()[:, None]), axis=1)
        x = np.concatenate((x, np.ones((1, x.shape[1]))))
    assert relative_defect(*equation(one_hot(y, len(weight)), x, lam), weight) < DEFECT


def inputs_of(model: nn.Module, module: nn.Module, *args: Tensor) -> list[Tensor]:
    """The inputs of a module in every call of one forward of the finished model."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        model.eval()(*args)
    handle.remove()
    return seen


def batches(*inputs: Tensor) -> list[tuple[Any, Tensor]]:
    """Two uneven batches."""
    y = labels()
    part = [(tuple(x[:5] for x in inputs), y[:5]), (tuple(x[5:] for x in inputs), y[5:])]
    return part if len(inputs) > 1 else [(x[0], y) for x, y in part]


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 4), (7,)),
    "linear-no-bias": (lambda: nn.Linear(7, 4, bias=False), (7,)),
    "linear-3d": (lambda: nn.Linear(5, 4), (6, 5)),
    "linear-4d": (lambda: nn.Linear(5, 4), (2, 4, 5)),
    "linear-fewer-rows-than-features": (lambda: nn.Linear(60, 4), (60,)),
    "linear-more-outputs-than-rank": (lambda: nn.Linear(5, 8), (6, 5)),
    "transformers-conv1d": (lambda: Conv1D(4, 5), (6, 5)),
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
    np.testing.assert_allclose(y.ravel(), output.numpy().ravel(), atol=CLOSE)


@pytest.mark.parametrize(("kind", "code", "option"), CASES)
def test_equation_of_every_kind(kind: str, code: Any, option: int | str) -> None:
    model, x = network(kind)
    head = model[3]
    asked = sylvinit.codes.PCA(center=False) if code == "pca-uncentred" else code
    report = sylvinit.initialize_(
        model, batches(x), code=asked, lam=10.0, patches=option, seed=5, progress=False
    )
    columns, owner = chosen_rows(layer_patches(model[0], x), "0", option, seed=5)
    check_layer(model[0], columns, labels().numpy()[owner], code, 10.0, report["0"])
    last, owner = chosen_rows(layer_patches(head, inputs_of(model, head, x)[0]), "3", option, 5)
    check_head(head, last[0], labels().numpy()[owner], 10.0)


@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3])
def test_equation_for_other_weights_of_the_encoding_loss(lam: float) -> None:
    model, x = network("conv2d")
    sylvinit.initialize_(model, batches(x), code=Affine(), lam=lam, patches="all", progress=False)
    columns, _ = chosen_rows(layer_patches(model[0], x), "0", "all")
    check_layer(model[0], columns, np.array([]), Affine(), lam)


def test_head_without_bias() -> None:
    model, x = network("linear")
    model[3] = nn.Linear(4, CLASSES, bias=False).double()
    sylvinit.initialize_(model, batches(x), progress=False)
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
    report = sylvinit.initialize_(model, batches(x), patches=option, progress=False)
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
    sylvinit.initialize_(model, batches(x), patches="all", progress=False)
    model.up.output_padding = (1, 0)  # what output_size=(8, 7) means: without it, 7 x 7
    columns, _ = chosen_rows(layer_patches(model.up, x), "up", "all")
    assert columns.shape[2] == SAMPLES * 8 * 7
    check_layer(model.up, columns, np.array([]), "pca", 10.0)


@pytest.mark.parametrize("option", ["all", 3])
def test_channels_last(option: int | str) -> None:
    model, x = network("conv2d")
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    sylvinit.initialize_(model, batches(x), patches=option, progress=False)
    columns, _ = chosen_rows(layer_patches(model[0], x), "0", option)
    check_layer(model[0], columns, np.array([]), "pca", 10.0)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------- shared and repeated weights


class Siamese(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.second = nn.Linear(6, 4) if tied else self.first
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joined = torch.cat((self.first(a).mean(1), self.second(b).mean(1)), dim=1)
        return self.head(joined.tanh())


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("option", ["all", 2])
@pytest.mark.parametrize("tied", [False, True])
def test_calls_of_one_weight_are_summed(tied: bool, option: int | str, storage: Any) -> None:
    model = Siamese(tied).double()
    a, b = samples(5, 6), samples(3, 6, seed=2).square()
    report = sylvinit.initialize_(
        model, batches(a, b), patches=option, storage=storage, progress=False
    )
    one, _ = chosen_rows(layer_patches(model.first, a), "first", option)
    name, call = ("second", 0) if tied else ("first", 1)
    two, _ = chosen_rows(layer_patches(model.second, b), name, option, call=call)
    columns = np.concatenate((one, two), axis=2)
    check_layer(model.first, columns, np.array([]), "pca", 10.0, report["first"])
    if tied:
        assert model.second.weight is model.first.weight
        assert "shares its weight with first" in report["second"].reason
        check_layer(model.second, columns, np.array([]), "pca", 10.0)
    features = inputs_of(model, model.head, a, b)[0]
    check_head(model.head, features.T.numpy(), labels().numpy(), 10.0)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(9, 4) for _ in range(3))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat((self.q(x), self.k(x), self.v(x)), dim=1).tanh())


@pytest.mark.parametrize("siblings", ["split", "same"])
def test_siblings(siblings: Any) -> None:
    model, x = Branches().double(), samples(9)
    report = sylvinit.initialize_(model, batches(x), siblings=siblings, progress=False)
    columns, y = x.T.numpy(), labels().numpy()
    every = scores("pca", columns, y, 9)
    for index, name in enumerate("qkv"):
        # v is left with the last component: the other three rows are mixtures of it.
        part = every[4 * index : 4 * index + 4] if siblings == "split" else every[:4]
        module = getattr(model, name)
        check_rows(module.weight.detach().numpy(), module.bias, columns, part, 10.0)
        told = any("shares its input" in note for note in report[name].notes)
        assert told == (siblings == "split" and index > 0)


# --------------------------------------------------------------------------------- parametrised


def test_weight_norm() -> None:
    model, x = network("conv2d")
    parametrizations.weight_norm(model[0])
    parametrizations.weight_norm(model[3])
    report = sylvinit.initialize_(model, batches(x), code="lda", patches="all", progress=False)
    columns, owner = chosen_rows(layer_patches(model[0], x), "0", "all")
    check_layer(model[0], columns, labels().numpy()[owner], "lda", 10.0, report["0"])
    check_head(model[3], inputs_of(model, model[3], x)[0].T.numpy(), labels().numpy(), 10.0)


@pytest.mark.parametrize(
    "parametrise", [parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrisation_that_cannot_hold_the_solution_is_skipped(parametrise: Any) -> None:
    model, x = network("linear")
    parametrise(model[0])
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    report = sylvinit.initialize_(model, batches(x), progress=False)
    assert report["0"].status == "skipped"
    assert "parametrisation" in report["0"].reason
    after = model[0].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    check_head(model[3], inputs_of(model, model[3], x)[0].T.numpy(), labels().numpy(), 10.0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norm_is_skipped_with_a_reason() -> None:
    model, x = network("linear")
    nn.utils.weight_norm(model[0])
    before = model[0](x).detach()
    report = sylvinit.initialize_(model, batches(x), progress=False)
    assert report["0"].status == "skipped"
    assert "torch.nn.utils.parametrizations" in report["0"].reason
    torch.testing.assert_close(model[0](x), before, rtol=0, atol=0)
