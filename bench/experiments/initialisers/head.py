"""Random features with a solved classifier: what sylvinit's head alone is worth."""

from __future__ import annotations

import warnings

from torch import nn

import sylvinit
from initialisers.random import he_normal_
from initialisers.shared import Data, as_found
from sylvinit.demo.training import calibrate_norm
from sylvinit.errors import SylvinitWarning


def random_head_(model: nn.Module, data: Data, seed: int) -> None:
    """He's normal weights, batch norm calibrated on the data, then the last layer solved.

    Args:
        model: overwritten; its head is the one that :func:`sylvinit.initialize_head_` finds.
        data: all of them are used for both steps.
        seed: of the weights.
    """
    he_normal_(model, data, seed)
    with as_found(model, seed) as device, warnings.catch_warnings():
        warnings.simplefilter("ignore", SylvinitWarning)  # few samples are no news to a benchmark
        calibrate_norm(model, data[0].to(device))
        sylvinit.initialize_head_(model, data, seed=seed, progress=False)
