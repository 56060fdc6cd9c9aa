"""Networks and a lookup that the tests of the initialisers share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
from initialisers.gradinit import gradinit_
from initialisers.metainit import metainit_
from initialisers.table import BASELINES
from torch import nn

from sylvinit.demo.networks import resnet20

QUICK = {
    "gradinit": lambda *args: gradinit_(*args, iterations=3, batch=16),
    "metainit": lambda *args: metainit_(*args, steps=2, batch=4),
}


def tiny_resnet() -> nn.Module:
    return resnet20(num_classes=4, widths=(4, 8), blocks=1)


def plain(norm: bool = False, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 6), (6, 8)):
        layers.append(nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4))


def initialiser(name: str) -> Callable[..., None]:
    if name == "lsuv" and importlib.util.find_spec("lsuv") is None:
        pytest.skip("needs lsuv")
    return QUICK.get(name, BASELINES[name])
