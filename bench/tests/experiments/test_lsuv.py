"""LSUV: unit variance, and the package itself."""

from __future__ import annotations

import sys

import pytest
import torch
from data import MissingDataError
from initialiser_helpers import plain
from initialisers.lsuv import lsuv_
from torch import Tensor, nn


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
    with pytest.raises(MissingDataError, match="pip install lsuv"):
        lsuv_(plain(), data, 0)
