"""Nothing is left alone without a word: reports, and one warning for each kind of reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from driver_helpers import CLASSES, images, mlp, unchanged
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import sylvinit
from sylvinit.errors import ModelError, SylvinitWarning
from sylvinit.model import obstacles
from sylvinit.model.obstacles import Obstacle

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


def _warned(model: nn.Module, x: Tensor = ROWS, **options: Any) -> tuple[sylvinit.Report, list]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = sylvinit.initialize_(model, (x, Y), microbatch=8, **{"preset": "best", **options})
    return report, [str(w.message) for w in caught if w.category is SylvinitWarning]


def _of_kind(obstacle: Obstacle, texts: list[str]) -> str:
    """The one warning of a kind, with the way out."""
    (text,) = [text for text in texts if text.startswith(f"{obstacle.kind}: ")]
    assert text.endswith(f"; {obstacle.remedy}")
    return text


# ---------------------------------------------------------------------- one warning for each kind


def _pruned() -> nn.Module:
    model = mlp()
    for index in (0, 2):
        prune.l1_unstructured(model[index], "weight", 0.3)
    return model


def _spectral() -> nn.Module:
    model = mlp()
    for index in (0, 2):
        nn.utils.spectral_norm(model[index])
    return model


def _orthogonal() -> nn.Module:
    model = mlp()
    for index in (0, 2):
        parametrizations.orthogonal(model[index])
    return model


def _buffers() -> nn.Module:
    model = mlp()
    for index in (0, 2):
        weight = model[index].weight.data
        del model[index].weight
        model[index].register_buffer("weight", weight)
    return model


def _for_quantization() -> nn.Module:
    model = mlp().train()
    for index in (0, 2):
        model[index].qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    model = torch.ao.quantization.prepare_qat(model)
    model(ROWS)  # sets the ranges of weights, in which other ones would not be seen
    return model.eval()


def _quantized() -> nn.Module:
    model = mlp()
    torch.ao.quantization.quantize_dynamic(model, {"0", "2"}, inplace=True)
    return model


def _scripted() -> nn.Module:
    model = mlp()
    for index in (0, 2):
        model[index] = torch.jit.script(model[index])
    return model


def _mapped() -> nn.Module:
    class Mapped(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.vmap(lambda row: self[2](self[0](row).relu()).relu())(x)
            return self[4](hidden)

    return Mapped(*mlp())


SKIPS: dict[str, tuple[Callable[[], nn.Module], Obstacle]] = {
    "pruned": (_pruned, obstacles.PRUNED),
    "old spectral_norm": (_spectral, obstacles.SPECTRAL_NORM),
    "parametrized": (_orthogonal, obstacles.PARAMETRIZED),
    "buffers": (_buffers, obstacles.COMPUTED),
    "quantization-aware": (_for_quantization, obstacles.QUANTIZED),
    "quantized": (_quantized, obstacles.QUANTIZED),
    "scripted": (_scripted, obstacles.SCRIPTED),
    "vmap": (_mapped, obstacles.MAPPED),
}


@pytest.mark.parametrize("kind", SKIPS)
def test_one_warning_lists_the_layers_of_a_kind(kind: str) -> None:
    make, obstacle = SKIPS[kind]
    model = make()
    before = {name: value.clone() for name, value in _tensors(model).items()}
    report, texts = _warned(model)
    text = _of_kind(obstacle, texts)
    assert f"{obstacle.kind}: 0 (" in text
    assert ", 2 (" in text
    assert "4 (" not in text
    assert report["4"].status == "solved"
    for name in ("0", "2"):
        assert report[name].status == "skipped"
        assert obstacle.reason in report[name].reason
    after = _tensors(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert report.warnings == texts


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything of the first two layers that has values of its own."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and not value.is_quantized and name[0] in "02"
    }


@pytest.mark.parametrize("kind", sorted(SKIPS.keys() - {"parametrized"}))
def test_what_is_not_asked_for_is_not_warned_of(kind: str) -> None:
    make, obstacle = SKIPS[kind]
    _, texts = _warned(make(), include="4")
    assert not any(text.startswith(obstacle.kind) for text in texts)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sylvinit.initialize_head_(make(), (ROWS, Y), microbatch=8)
    assert not any(str(w.message).startswith(obstacle.kind) for w in caught)


def test_long_lists_are_cut() -> None:
    model = nn.Sequential(*(prune.identity(nn.Linear(12, 12), "weight") for _ in range(11)))
    model.append(nn.Linear(12, CLASSES))
    text = _of_kind(obstacles.PRUNED, _warned(model)[1])
    assert ", 7 (Linear) and 3 more; " in text


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.cell = nn.LSTM(4, 6, batch_first=True), nn.GRUCell(6, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.body(x.unflatten(1, (3, 4)))[0][:, -1]))


def test_recurrent_layers() -> None:
    model = Recurrent()
    with unchanged(model, written=("head.weight", "head.bias")):
        report, texts = _warned(model)
    assert "body (LSTM), cell (GRUCell)" in _of_kind(obstacles.RECURRENT, texts)
    assert [layer.name for layer in report.solved] == ["head"]
    _, texts = _warned(model, exclude=["body", "cell"])  # as the warning says
    assert not any("recurrent" in text for text in texts)


def test_nothing_that_can_be_solved() -> None:
    model = nn.LSTM(12, CLASSES)
    with unchanged(model), pytest.raises(ModelError, match=r"no layer .* recurrent: \(model\)"):
        sylvinit.initialize_(model, ROWS, preset="best", forward_fn=lambda model, x: model(x)[0])
    with pytest.raises(ModelError, match=r"TorchScript: 0 \(Linear\), 2 \(Linear\), 4 .*then$"):
        sylvinit.initialize_(torch.jit.script(mlp()), (ROWS, Y), preset="best")


def test_a_head_that_cannot_be_solved_names_the_way_out() -> None:
    model = mlp()
    prune.l1_unstructured(model[4], "weight", 0.3)
    with unchanged(model), pytest.raises(ModelError, match=r"head 4 .*pruned.* prune it then"):
        sylvinit.initialize_head_(model, (ROWS, Y))


def test_a_pruned_bias_is_left_alone() -> None:
    model = mlp()
    prune.l1_unstructured(model[2], "bias", 0.5)
    before = model[2].bias.clone()
    report, _ = _warned(model)
    assert [layer.name for layer in report.solved] == ["0", "2", "4"]
    assert torch.equal(model[2].bias, before)


# ------------------------------------------------------------------------- used past their modules


class Bypassing(nn.Module):
    """Two of its layers are used and not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(12, 12) for _ in range(3))
        self.norm, self.unused = nn.BatchNorm1d(12), nn.Linear(12, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.first.weight, self.first.bias).relu()
        x = self.norm.forward(x)
        x = self.second.forward(x).relu()
        return self.head(self.third(x).relu())


def test_weights_that_are_used_past_their_modules() -> None:
    report, texts = _warned(Bypassing())
    text = _of_kind(obstacles.BYPASSED, texts)
    assert "first (Linear), second (Linear), norm (BatchNorm1d);" in text
    assert report["unused"].reason == "its forward was not called"
    assert [layer.name for layer in report.solved] == ["third", "head"]


@pytest.mark.parametrize(
    "use",
    [
        lambda layer, x: x @ layer.weight.t(),
        lambda layer, x: torch.einsum("ni,oi->no", x, layer.weight),
        lambda layer, x: F.conv1d(x[..., None], layer.weight[..., None])[..., 0],
    ],
)
def test_products_of_other_kinds(use: Callable[[nn.Module, Tensor], Tensor]) -> None:
    class Other(Bypassing):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.third(self.second(use(self.first, x))))

    text = _of_kind(obstacles.BYPASSED, _warned(Other())[1])
    assert text.startswith(f"{obstacles.BYPASSED.kind}: first (Linear);")


def test_a_weight_that_is_used_both_ways_is_solved_from_its_calls() -> None:
    class Both(Bypassing):
        def forward(self, x: Tensor) -> Tensor:
            x = self.third(x)
            return self.head(x + 0 * F.linear(x, self.third.weight))

    report, texts = _warned(Both())
    assert "third (Linear);" in _of_kind(obstacles.USED_BESIDE, texts)
    assert report["third"].status == "solved"


@pytest.mark.parametrize("parametrized", [False, True])
def test_layers_that_are_called_are_not_suspected(parametrized: bool) -> None:
    model = nn.Sequential(
        nn.TransformerEncoderLayer(12, 2, 8, dropout=0, batch_first=True), nn.Linear(12, CLASSES)
    )
    if parametrized:
        parametrizations.weight_norm(model[1])
    tokens = ROWS[:, None].expand(-1, 3, -1) + torch.randn(30, 3, 12)
    _, texts = _warned(nn.Sequential(model, nn.AvgPool2d((3, 1)), nn.Flatten()), tokens)
    assert not any("past" in text for text in texts)


# --------------------------------------------------------------------------------- old weight_norm


class Generator(nn.Module):
    """Upsampling and a residual block of dilated convolutions, as vocoders have them."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.pre = wrap(nn.Conv1d(8, 12, 7, padding=3))
            self.up = wrap(nn.ConvTranspose1d(12, 6, 4, 2, 1))
            self.near = wrap(nn.Conv1d(6, 6, 3, padding=1))
            self.far = wrap(nn.Conv1d(6, 6, 3, padding=3, dilation=3))
            self.post = wrap(nn.Conv1d(6, 1, 7, padding=3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.leaky_relu(self.pre(x), 0.1))
        x = x + self.far(F.leaky_relu(self.near(F.leaky_relu(x, 0.1)), 0.1))
        return self.post(F.leaky_relu(x, 0.1)).tanh()


SOUND = torch.randn(20, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{}, {"storage": "recompute"}, {"preset": "paper"}])
def test_old_weight_norm_is_solved_as_plain_weights_are(options: dict[str, Any]) -> None:
    model, plain = Generator(nn.utils.weight_norm), Generator(lambda module: module)
    for network in (model, plain):
        sylvinit.initialize_(network, SOUND, microbatch=5, **{"preset": "best", **options})
    # Both in float64; PCA amplifies rounding by about 3 per layer.
    for name in ("pre", "up", "near", "far", "post"):
        found, expected = getattr(model, name).weight, getattr(plain, name).weight
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model(SOUND), plain(SOUND), rtol=1e-9, atol=1e-12)


def test_old_weight_norm_with_factors_loaded_since_the_last_forward() -> None:
    model, other = Generator(nn.utils.weight_norm), Generator(nn.utils.weight_norm)
    with torch.no_grad():
        other.pre.weight_g.mul_(3)
    model.load_state_dict(other.state_dict())  # model.pre.weight is not computed before a forward
    report = sylvinit.initialize_(model, SOUND, exclude=["up", "near", "far"])
    other(SOUND)
    expected = sylvinit.initialize_(other, SOUND, exclude=["up", "near", "far"])
    assert report["pre"].std_before == expected["pre"].std_before


def test_old_weight_norm_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(4)
                self.body = wrap(nn.Linear(12, 12, dtype=torch.float64))
                self.head = wrap(nn.Linear(12, CLASSES, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.body(x).relu()))

    model, plain = Twice(nn.utils.weight_norm), Twice(lambda module: module)
    rows = SOUND.flatten(0, 1)[:30, :12]  # noise: no eigenvalue near 0
    for network in (model, plain):
        sylvinit.initialize_(network, (rows, Y), preset="best", microbatch=8)
    torch.testing.assert_close(model.body.weight, plain.body.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.head.weight, plain.head.weight, rtol=1e-9, atol=1e-12)


def test_a_failed_call_leaves_old_weight_norm_as_it_was() -> None:
    model = Generator(nn.utils.weight_norm)
    calls = 0

    def fails_late(module: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        output = module(x)
        if calls > 8:
            raise RuntimeError("the forward fails")
        return output

    with unchanged(model), pytest.raises(RuntimeError, match="the forward fails"):
        sylvinit.initialize_(model, SOUND, preset="best", microbatch=5, forward_fn=fails_late)
    frozen = Generator(nn.utils.weight_norm)
    frozen.pre.weight_g.requires_grad_(False)
    report = sylvinit.initialize_(frozen, SOUND, preset="best")
    assert report["pre"].reason.startswith("frozen")
