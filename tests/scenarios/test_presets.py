"""What the presets choose, and that arguments of the user come before them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from driver_helpers import Snapshot
from torch import nn

import sylvinit
from sylvinit.codes import PCA, Discriminant, SignPairs
from sylvinit.demo.networks import digits_net
from sylvinit.errors import NonFiniteError, OptionError
from sylvinit.io.datasets import load_digits


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.Tanh(),
        nn.Conv2d(6, 6, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 4),
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 2, 8, 8, generator=generator), torch.arange(60) % 4


def codes(**settings: object) -> list[str]:
    x, y = data()
    inputs = x if settings.pop("unlabeled", False) else (x, y)
    report = sylvinit.initialize_(net(), inputs, dry_run=True, **{"preset": "best", **settings})  # type: ignore[arg-type]
    return [layer.code for layer in report.layers if layer.kind != "BatchNorm2d"]


def test_best_is_the_default() -> None:
    assert codes() == codes(preset="best") == ["pca", "pca", "pca", "onehot"]
    models = [net() for _ in range(3)]
    sylvinit.initialize_(models[0], data(), preset="best")
    sylvinit.initialize_(models[1], data(), preset="best")
    sylvinit.initialize_(
        models[2],
        data(),
        preset="frozen",
        code="pca",
        head_code="onehot",
        lam=10.0,
        patches=10,
        rescale="variance",
    )
    for a, *others in zip(*(model.parameters() for model in models), strict=True):
        for b in others:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_frozen() -> None:
    assert codes(preset="frozen") == ["pca-pairs", "discriminant", "discriminant-pairs", "onehot"]
    assert codes(preset="frozen", head_code="logistic")[-1] == "logistic"
    assert codes(preset="frozen", code={"3": "ica"})[:2] == ["pca-pairs", "ica"]
    assert codes(preset="frozen", code="lda")[:3] == ["lda", "lda", "lda"]
    with pytest.warns(sylvinit.SylvinitWarning, match="without labels"):
        assert codes(preset="frozen", unlabeled=True) == ["pca-pairs", "pca", "pca-pairs", "pca"]


FROZEN = {"0": SignPairs(PCA()), "3": Discriminant(), "5": SignPairs(Discriminant())}


@pytest.mark.parametrize(
    ("preset", "same"),
    [
        ("paper", {"code": "pca", "patches": 10, "rescale": "none"}),
        ("best", {"code": "pca", "patches": 10, "rescale": "variance"}),
        ("frozen", {"code": FROZEN, "patches": 30, "rescale": "variance"}),
    ],
)
def test_presets_are_what_they_say(preset: Any, same: dict[str, Any]) -> None:
    first, second = net(), net()
    report = sylvinit.initialize_(first, data(), preset=preset)
    assert report.settings["preset"] == preset
    assert report.settings["patches"] == same["patches"]
    assert report.settings["rescale"] == same["rescale"]
    sylvinit.initialize_(second, data(), **{"preset": "best", **same})
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_best_has_unit_variance_and_classifies_like_paper() -> None:
    x, y = data()
    paper, best = net().double(), net().double()
    for model, preset in ((paper, "paper"), (best, "best")):
        data_ = (x.double(), y)
        sylvinit.initialize_(model, data_, preset=preset, patches="all")  # type: ignore[arg-type]
    outputs = best[0](x.double())
    # Sums of 2,160 products in another order; worst seen 1e-14.
    torch.testing.assert_close(
        outputs.var(dim=(0, 2, 3), correction=0), torch.ones(8).double(), rtol=0, atol=1e-11
    )
    # Batch norm takes the scale away again, to its eps of 1e-5.
    torch.testing.assert_close(
        best[:3].eval()(x.double()), paper[:3].eval()(x.double()), rtol=1e-3, atol=1e-4
    )


MANY = "more than 4,096 classes preset 'frozen' uses no labels in hidden layers"


@pytest.mark.parametrize("count", [4096, 4097])
def test_many_classes(count: int, recwarn: pytest.WarningsRecorder) -> None:
    """Class means of every layer are kept of so many classes; above, there is one warning."""
    x, y = data()
    y[-1] = count - 1
    model = nn.Sequential(*net()[:-1], nn.Linear(6 * 16, 5000))

    def warnings(**settings: object) -> tuple[list[str], list[str]]:
        recwarn.clear()
        report = sylvinit.initialize_(model, (x, y), dry_run=True, **{"preset": "best", **settings})  # type: ignore[arg-type]
        raised = [str(item.message) for item in recwarn if MANY in str(item.message)]
        assert raised == [text for text in report.warnings if MANY in text]
        return raised, [layer.code for layer in report.layers if layer.kind != "BatchNorm2d"]

    raised, found = warnings(preset="frozen")
    if count > 4096:
        assert len(raised) == 1
        assert "labels go up to 4096" in raised[0]
        assert "code='discriminant'" in raised[0]
        assert found == ["pca-pairs", "pca", "pca-pairs", "onehot"]
    else:
        assert not raised
        assert found == ["pca-pairs", "discriminant", "discriminant-pairs", "onehot"]
    assert warnings(preset="paper") == ([], ["pca", "pca", "pca", "onehot"])
    assert warnings(preset="frozen", code="discriminant") == ([], [*["discriminant"] * 3, "onehot"])
    assert not warnings(preset="frozen", include=["0", "8"])[0]


def test_unknown_preset() -> None:
    with pytest.raises(OptionError, match="preset must be one of"):
        sylvinit.initialize_(net(), data(), preset="good")  # type: ignore[arg-type]


def test_a_failure_leaves_the_model_alone() -> None:
    model = net()
    model[0].register_forward_hook(lambda _, args, output: output / (args[0] < 1e30).all())
    before = Snapshot.of(model)
    x, y = data()
    x[-1] = 1e30  # what comes of it in the first layer is infinite in the second
    with pytest.raises(NonFiniteError):
        sylvinit.initialize_(model, (x, y), preset="frozen")
    assert before.differences(Snapshot.of(model)) == []


@pytest.mark.parametrize("microbatch", [7, 60])
def test_frozen_does_not_depend_on_the_microbatch(microbatch: int) -> None:
    one, other = net().double(), net().double()
    x, y = data()
    sylvinit.initialize_(one, (x.double(), y), preset="frozen", microbatch=16)
    sylvinit.initialize_(other, (x.double(), y), preset="frozen", microbatch=microbatch)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        # Sums in another order; worst seen 4e-12.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_frozen_on_digits() -> None:
    """Real data: above the paper's settings, and far above chance, before any training."""
    digits = load_digits()
    accuracy: dict[str, list[float]] = {"paper": [], "frozen": []}
    for seed in range(3):
        torch.manual_seed(seed)
        start = digits_net()
        index = np.random.default_rng(seed).permutation(len(digits.train.labels))[:200]
        x, y = digits.train.inputs[index], digits.train.labels[index]
        for preset, values in accuracy.items():
            model = copy.deepcopy(start)
            sylvinit.initialize_(model, (x, y), preset=preset, seed=seed)  # type: ignore[arg-type]
            with torch.no_grad():
                predicted = model.eval()(digits.test.inputs).argmax(dim=1)
            values.append(float((predicted == digits.test.labels).double().mean()))
    assert np.mean(accuracy["frozen"]) > np.mean(accuracy["paper"])
    assert np.mean(accuracy["frozen"]) > 0.8
