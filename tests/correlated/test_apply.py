"""correlated_init_ on whole models: what is drawn, with which matrix, and what is left alone."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from correlation_problems import equal_correlation, smooth_correlation
from driver_helpers import Snapshot, small_net, unchanged, weights_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sylvinit import correlated_init_, correlated_normal_, filter_correlation, priors
from sylvinit.checks import Selection
from sylvinit.correlated import (
    FilterCorrelation,
    fit_distance_model,
    resample_correlation,
    scale_correlation,
)
from sylvinit.correlated.choice import assign_matrices, choose_layers
from sylvinit.errors import (
    SylvinitWarning,
)
from sylvinit.report import Report

PRIOR = priors.load("resnet10-cifar10")
DRAWN = ("conv1.weight", "conv1.bias", "conv2.weight", "fc.weight", "fc.bias")


def init(model: nn.Module, corr: Any = PRIOR, *, seed: int = 0, **options: Any) -> Report:
    return correlated_init_(model, corr, generator=torch.Generator().manual_seed(seed), **options)


def expected(*layers: tuple[tuple[int, ...], Any], seed: int = 0) -> list[Tensor]:
    """Weights of correlated_normal_ one after the other; (outputs, inputs) is He's."""
    generator, found = torch.Generator().manual_seed(seed), []
    for shape, corr in layers:
        full = shape if len(shape) > 2 else (*shape, 1)
        matrix = np.eye(math.prod(full[2:])) if corr is None else corr
        weight = correlated_normal_(torch.empty(full), matrix, generator=generator)
        found.append(weight.reshape(shape))
    return found


def codes(report: Report) -> dict[str, str]:
    return {layer.name: layer.code or layer.reason for layer in report.layers}


# ---------------------------------------------------------------------------------- what is drawn


def test_every_layer_and_nothing_else() -> None:
    model = small_net()
    with unchanged(model, written=DRAWN):
        report = init(model)
    found = [model.conv1.weight, model.conv2.weight, model.fc.weight]
    shapes = [((8, 3, 3, 3), PRIOR), ((8, 4, 3, 3), PRIOR), ((4, 16), None)]
    for weight, wanted in zip(found, expected(*shapes), strict=True):
        assert torch.equal(weight, wanted)
        assert weight._version > 0
        assert weight.requires_grad
    assert not model.conv1.bias.any()
    assert codes(report) == {
        "conv1": "correlated",
        "conv2": "correlated",
        "fc": "he",
        "frozen": "frozen (its weight does not require a gradient)",
    }
    assert [layer.status for layer in report.layers] == ["drawn"] * 3 + ["skipped"]
    assert (report["conv2"].groups, report["conv2"].d_in, report["conv2"].d_out) == (2, 36, 4)
    assert "3 layers drawn, 2 with correlated filters, 1 left alone; R: a matrix of" in str(report)
    assert report.to_json()
    assert report.settings["corr"].startswith("a matrix of ")
    assert report.warnings == []


class Layers(nn.Module):
    """One of every kind; it need not run."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(4, 6, 3)
        self.point = nn.Conv2d(6, 6, 1)
        self.depthwise = nn.Conv2d(6, 12, 3, groups=6)
        self.line = nn.Conv1d(3, 5, 7)
        self.cube = nn.Conv3d(2, 4, 3, bias=False)
        self.wide = nn.Conv2d(3, 4, (1, 5))
        self.up = nn.ConvTranspose2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(6)
        self.attention = nn.MultiheadAttention(8, 2)
        self.words = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10)
        self.head.weight = self.words.weight
        self.twin = nn.Conv2d(4, 6, 3)
        self.twin.weight = self.square.weight
        self.quantized = nn.Conv2d(2, 2, 3, dtype=torch.complex64)


def test_kinds_of_layers() -> None:
    model = Layers()
    before = weights_of(model)
    report = init(model)
    resampled = "a model of correlation against distance"
    for name, note in (("line", "7"), ("cube", "3 x 3 x 3"), ("wide", "1 x 5")):
        (text,) = report[name].notes
        assert f"its matrix for {note} taps is made from the one for 3 x 3" in text
        assert text.endswith(resampled)
    assert not report["square"].notes
    assert codes(report) == {
        **dict.fromkeys(("square", "depthwise", "line", "cube", "wide"), "correlated"),
        **dict.fromkeys(("point", "attention.out_proj"), "he"),
        **{f"attention.{letter}_proj": "he" for letter in "qkv"},
        "up": "a transposed convolution, whose fan-in depends on the output pixel",
        "head": "its weight is tied to words (Embedding)",
        "twin": "shares its weight with square",
        "quantized": "its weight is complex, and equations of layers are real",
    }
    alone = ("up.weight", "up.bias", "norm.weight", "norm.bias", "words.weight", "quantized.weight")
    for name in (*alone, "head.bias", "twin.bias"):
        assert torch.equal(model.get_parameter(name), before[name]), name
    shapes = [
        ((6, 4, 3, 3), PRIOR),
        ((6, 6, 1, 1), None),
        ((12, 1, 3, 3), PRIOR),
        ((5, 3, 7), resample_correlation(PRIOR, (7,))),
        ((4, 2, 3, 3, 3), resample_correlation(PRIOR, (3, 3, 3))),
        ((4, 3, 1, 5), resample_correlation(PRIOR, (1, 5))),
        *[((8, 8), None)] * 4,
    ]
    packed = model.attention.in_proj_weight.chunk(3)
    found = [m.weight for m in (model.square, model.point, model.depthwise, model.line)]
    found += [model.cube.weight, model.wide.weight, *packed, model.attention.out_proj.weight]
    for weight, wanted in zip(found, expected(*shapes), strict=True):
        assert torch.equal(weight, wanted)
    assert not model.attention.in_proj_bias.any()


@pytest.mark.parametrize("other", ["excluded", "transposed"])
def test_a_weight_tied_to_a_layer_that_is_left_alone(other: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model.append(nn.Conv2d(4, 4, 3) if other == "excluded" else nn.ConvTranspose2d(4, 4, 3))
    model[2].weight = model[0].weight
    with unchanged(model, written=("1.weight", "1.bias")):
        report = init(model, exclude="2" if other == "excluded" else None)
    assert report["0"].reason.startswith("its weight is tied to 2 (Conv")


def test_biases() -> None:
    model = small_net()
    with unchanged(model, written=tuple(name for name in DRAWN if "bias" not in name)):
        init(model, bias="keep")
    model.fc.bias.requires_grad_(False)
    with unchanged(model, written=DRAWN[:4]):
        report = init(model, seed=1)
    assert report["fc"].notes == ["its bias is frozen and left alone"]


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_strength_zero_is_kaiming_normal(mode: str, dtype: torch.dtype) -> None:
    """Standard deviations over 9216 and 8192 numbers are known to 0.8 %."""
    model = nn.Sequential(nn.Conv2d(32, 64, 3, groups=2), nn.Linear(64, 128)).to(dtype)
    init(model, strength=0, gain=1.5, mode=mode)
    for module, fans in ((model[0], (16 * 9, 64 * 9)), (model[1], (64, 128))):
        wanted = 1.5 / math.sqrt(fans[mode == "fan_out"])
        assert float(module.weight.detach().double().std()) == pytest.approx(wanted, rel=0.032)


# ------------------------------------------------------------------------------------ which matrix

SMOOTH = smooth_correlation((3, 3))
NAMED = FilterCorrelation.of(torch.from_numpy(SMOOTH), (3, 3))


def matrices(model: nn.Module, corr: Any, strength: float = 1.0) -> Any:
    """R of every layer, None for He's distribution, and that weights are drawn with it."""
    choice = choose_layers(model, Selection.of(None, None))
    assign_matrices(corr, choice, strength)
    init(model, corr, strength=strength)
    weights = [job.layer.module.weight for job in choice.jobs]
    layers = [(tuple(w.shape), job.matrix) for w, job in zip(weights, choice.jobs, strict=True)]
    assert all(map(torch.equal, weights, expected(*layers)))
    return {job.layer.name: job.matrix for job in choice.jobs}


def stack(*kernels: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(2, 2, kernel) for kernel in kernels))


@pytest.mark.parametrize("corr", [SMOOTH, SMOOTH.tolist(), NAMED, torch.from_numpy(SMOOTH).float()])
def test_a_matrix_in_any_form(corr: Any) -> None:
    found = matrices(stack(3, 5, 1), corr, strength=0.5)
    # float32 costs 6e-8 of an entry, which the fit of the distance model does not enlarge.
    torch.testing.assert_close(found["0"], scale_correlation(SMOOTH, 0.5), rtol=0, atol=1e-7)
    made = scale_correlation(fit_distance_model(SMOOTH).matrix(5), 0.5)
    torch.testing.assert_close(found["1"], made, rtol=0, atol=1e-6)
    assert found["2"] is None


def test_names_and_files(tmp_path: Path) -> None:
    priors.save(PRIOR, tmp_path / "mine.txt")
    for corr in ("resnet10-cifar10", str(tmp_path / "mine.txt"), tmp_path / "mine.txt"):
        found = matrices(stack(3), {"0": corr})
        assert torch.equal(found["0"], PRIOR)
    assert init(stack(3), "resnet10-cifar10").settings["corr"] == "resnet10-cifar10"
    assert torch.equal(matrices(stack(3), [tmp_path / "mine.txt"])["0"], PRIOR)


def test_patterns() -> None:
    model = nn.ModuleDict({"a[0]": stack(3, 3), "b": nn.Conv2d(2, 2, 3), "c": nn.Linear(2, 2)})
    first, second = equal_correlation(9, 0.1), equal_correlation(9, 0.2)
    found = matrices(model, {"a[0].1": first, "a*": second})
    assert torch.equal(found["a[0].1"], torch.from_numpy(first))
    assert torch.equal(found["a[0].0"], torch.from_numpy(second))
    assert found["b"] is found["c"] is None
    report = init(model, {"a[0].1": first, "a*": second})
    assert report["b"].notes == ["no matrix is given for it: He's normal distribution"]
    assert (report["b"].code, report["c"].notes) == ("he", [])


def test_the_matrices_of_another_network() -> None:
    source = small_net(seed=3)
    each = filter_correlation(source, per_layer=True)
    found = matrices(small_net(), each)
    assert torch.equal(found["conv1"], each["conv1"])
    assert torch.equal(found["conv2"], each["conv2"])
    single = nn.Conv2d(3, 8, 3)
    found = matrices(nn.Conv2d(3, 8, 3), filter_correlation(single, per_layer=True))
    assert torch.equal(found[""], filter_correlation(single))


@pytest.mark.parametrize(
    ("count", "picked"), [(1, "0000"), (2, "0011"), (3, "0112"), (4, "0123"), (7, "0246")]
)
def test_a_list_by_relative_depth(count: int, picked: str) -> None:
    """A pointwise layer in between does not count."""
    several = [equal_correlation(9, 0.1 * (i + 1)) for i in range(count)]
    found = matrices(stack(3, 1, 3, 3, 3), several)
    chosen = [several[int(i)] for i in picked]
    for name, wanted in zip(("0", "2", "3", "4"), chosen, strict=True):
        assert torch.equal(found[name], torch.from_numpy(wanted))


@pytest.mark.parametrize("kernel", [(3,), (9,), (2, 2, 2), (4, 4, 4), (1, 3)])
def test_plain_matrices_of_other_kernels(
    kernel: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix of as many taps as the layer has is the layer's."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1](2, 2, kernel)
    corr = smooth_correlation(kernel)
    found = matrices(conv, corr)
    assert torch.equal(found[""], torch.from_numpy(corr))
    assert not init(conv, corr)[""].notes


def test_clipping_warns_once_at_the_callers_line() -> None:
    with pytest.warns(SylvinitWarning, match="not positive definite at strength 3") as caught:
        report = correlated_init_(small_net(), PRIOR, strength=3.0)  # this line
    (warning,) = caught
    assert warning.filename == __file__
    assert Path(__file__).read_text().splitlines()[warning.lineno - 1].endswith("# this line")
    assert report.warnings == [str(warning.message)]
    model = small_net()
    with warnings.catch_warnings(), unchanged(model):
        warnings.simplefilter("error")
        with pytest.raises(SylvinitWarning):
            init(model, strength=3.0)


# -------------------------------------------------------------------------------- reproducibility


def test_seeds() -> None:
    model = small_net()
    first, again, other = (copy.deepcopy(model) for _ in range(3))
    init(first), init(again), init(again), init(other, seed=1)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = Snapshot.of(other)
        correlated_init_(other, PRIOR)
        assert "random: torch" in before.differences(Snapshot.of(other))
        state = torch.get_rng_state()
        torch.manual_seed(0)
        correlated_init_(again, PRIOR)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.conv1.weight, other.conv1.weight)


def test_a_dry_run_changes_nothing() -> None:
    model = nn.Sequential(
        small_net(), parametrizations.spectral_norm(nn.Conv2d(2, 2, 3)), nn.Conv2d(2, 2, 5)
    )
    generator = torch.Generator()
    before = generator.get_state()
    with unchanged(model):
        report = correlated_init_(model, PRIOR, dry_run=True, generator=generator)
        correlated_init_(model, PRIOR, dry_run=True)
    assert torch.equal(generator.get_state(), before)
    assert {layer.status for layer in report.layers} == {"planned", "skipped"}
    assert codes(report)["2"] == "correlated"
    assert "\ndry run: 5 layers would be" in str(report)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norm_is_drawn_as_a_plain_weight_is() -> None:
    plain, normed = nn.Conv2d(3, 4, 3), nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    for model in (plain, normed):
        correlated_init_(model, PRIOR, generator=torch.Generator().manual_seed(1))
    # g |v| / |v| in float32.
    torch.testing.assert_close(normed.weight, plain.weight, rtol=1e-6, atol=0)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(normed(x), plain(x))
