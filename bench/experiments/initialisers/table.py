"""The initialisers by name.

All work in place on a float32 classification network, are deterministic given the seed, and leave
the global random states, the modes of the modules and ``requires_grad`` as they were. The running
statistics of batch norm are PyTorch's defaults afterwards (mean 0, variance 1), with the exception
of krahenbuhl, which passes the data through the network anyway: its are calibrated on all the data.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from torch import nn

from initialisers.gradinit import gradinit_
from initialisers.krahenbuhl import krahenbuhl_
from initialisers.lsuv import lsuv_
from initialisers.metainit import metainit_
from initialisers.random import (
    he_normal_,
    he_uniform_,
    orthogonal_,
    xavier_normal_,
    xavier_uniform_,
)
from initialisers.shared import Data


class Initialiser(Protocol):
    """Initialises ``model`` in place; settings of its own are keyword arguments with defaults."""

    def __call__(self, model: nn.Module, data: Data, seed: int) -> None: ...


BASELINES: dict[str, Initialiser] = {
    "he-uniform": he_uniform_,
    "he-normal": he_normal_,
    "xavier-uniform": xavier_uniform_,
    "xavier-normal": xavier_normal_,
    "orthogonal": orthogonal_,
    "lsuv": lsuv_,
    "gradinit": gradinit_,
    "metainit": metainit_,
    "krahenbuhl-pca": partial(krahenbuhl_, basis="pca"),
    "krahenbuhl-kmeans": partial(krahenbuhl_, basis="kmeans"),
}
