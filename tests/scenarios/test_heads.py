"""Which layer is the head, and what happens where there is none that can be solved."""

from __future__ import annotations

import warnings

import pytest
import torch
from driver_helpers import CLASSES, images, mlp, unchanged
from torch import Tensor, nn
from torch.nn import functional

import sylvinit
from sylvinit.errors import ModelError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


def frozen_head() -> nn.Sequential:
    model = mlp()
    model[4].weight.requires_grad_(False)
    return model


def test_a_head_that_cannot_be_solved() -> None:
    model = frozen_head()
    with unchanged(model), pytest.raises(ModelError, match=r"head 4 is not solved: frozen .*head="):
        sylvinit.initialize_head_(model, (ROWS, Y))
    with pytest.warns(sylvinit.SylvinitWarning, match="the head 4 is not solved: frozen"):
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert report.head is None


class Prototypes(nn.Module):
    """A classifier that is no layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(CLASSES, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cosine":
            return functional.linear(functional.normalize(x), functional.normalize(self.weight))
        if self.kind == "product":
            return x @ self.weight.T
        return torch.cdist(x, self.weight)


@pytest.mark.parametrize("kind", ["cosine", "product", "distance"])
def test_a_classifier_that_is_no_layer(kind: str) -> None:
    body = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8))
    model = nn.Sequential(body, Prototypes(kind))
    with unchanged(model), pytest.raises(ModelError, match=r"parameter 1\.weight follows .* 0\.2;"):
        sylvinit.initialize_head_(model, (ROWS, Y))
    with pytest.warns(sylvinit.SylvinitWarning, match=r"no head is solved; head= names one"):
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert report.head is None
    assert [layer.code for layer in report.solved] == ["pca", "pca"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best", head="0.2")
    assert (report.head, report["0.2"].code) == ("0.2", "onehot")


def test_products_without_parameters_leave_the_head_alone() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.temperature = mlp(), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            logits = self.body(x) * self.temperature.exp()
            return logits @ torch.eye(CLASSES)

    assert sylvinit.initialize_(Scaled(), (ROWS, Y), preset="best").head == "body.4"


def test_the_head_is_the_layer_that_is_called_last() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.between = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.between(self.shared(x).relu()).relu())

    assert sylvinit.initialize_(Again(), (ROWS, Y), preset="best").head == "shared"
