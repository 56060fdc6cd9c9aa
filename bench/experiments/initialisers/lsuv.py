"""Layer-sequential unit variance, by its authors' package.

Mishkin and Matas, "All you need is a good init", ICLR 2016, and ``pip install lsuv`` (0.3.0 here):
orthonormal weights, zero biases, then, from the first layer to the last, weights divided by the
standard deviation of the layer's output on one batch, over all its entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from data import MissingDataError
from torch import nn

from initialisers.random import orthonormal_
from initialisers.shared import Data, as_found, random_batch


def require_package() -> Callable[..., Any]:
    """The function of the package.

    Raises:
        MissingDataError: the package is not installed.
    """
    try:
        from lsuv import lsuv_with_singlebatch
    except ImportError as error:
        raise MissingDataError(
            "initialiser 'lsuv' is that of the package lsuv, which is missing: pip install lsuv"
        ) from error
    return lsuv_with_singlebatch


def lsuv_(
    model: nn.Module,
    data: Data,
    seed: int,
    *,
    batch: int = 256,
    std_tolerance: float = 0.1,
    max_attempts: int = 10,
) -> None:
    """Call ``lsuv_with_singlebatch`` as its documentation does, on a random batch.

    The orthonormal weights are drawn here, with the numbers that the package would draw on a CPU:
    the package cannot write them to channels-last weights, and on a GPU they would be others. The
    package runs the model in evaluation mode, so a batch norm that has its defaults is the
    identity here, and the residual branches of a ResNet add up as they would without it.

    Args:
        model: its convolutions and linear layers are overwritten, batch norm gets its defaults.
        data: where the batch is drawn from; labels are not used.
        seed: of the weights and of the choice of the batch.
        batch: images; the package leaves that to its caller.
        std_tolerance: a layer is done when its standard deviation is that close to 1; the
            package's default.
        max_attempts: divisions a layer; the package's default.

    Raises:
        MissingDataError: the package is not installed.
    """
    lsuv_with_singlebatch = require_package()
    orthonormal_(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with as_found(model, seed) as device:
        inputs, _ = random_batch(data, batch, generator, device)
        lsuv_with_singlebatch(
            model,
            inputs,
            std_tol=std_tolerance,
            do_orthonorm=False,  # done above
            max_attempts=max_attempts,
            verbose=False,
            device=device,
        )
