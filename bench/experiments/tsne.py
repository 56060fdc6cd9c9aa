"""Maps of the features before the last layer, before any training (first paper, figure 2)."""

from __future__ import annotations

from typing import Any

import data
import numpy as np
import torch
from config import ConfigError, Run
from prepared import Prepared
from torch import Tensor, nn

from sylvinit.io.datasets import Samples

_BATCH = 250
_PERPLEXITY = 30.0


def run_tsne(run: Run, device: str) -> dict[str, Any]:
    """Initialise a network, and map what its last layer gets of a fixed choice of test images.

    Args:
        run: of a configuration with runner "tsne".
        device: "cpu" or "cuda", for the network; the map is always made on the CPU.

    Returns:
        The fields of the record beside those that identify it: "points", (x, y) of each image with
        three significant digits, and "labels" among them.
    """
    prepared = Prepared(run, device)
    shown = data.probe(prepared.test)
    points = embed(last_inputs(prepared.model, shown))
    return prepared.outcome | {
        "points": [[float(f"{value:.3g}") for value in point] for point in points.tolist()],
        "labels": shown.labels.tolist(),
    }


@torch.no_grad()
def last_inputs(model: nn.Module, samples: Samples) -> Tensor:
    """Inputs of the last linear layer in evaluation mode, float32 (N, features) on the CPU."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError("tsne: the network has no linear layer")
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(1).cpu())

    training = model.training
    hook = layers[-1].register_forward_pre_hook(keep)
    try:
        model.eval()
        for part in samples.inputs.split(_BATCH):
            model(part)
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(seen)


def embed(features: Tensor) -> np.ndarray:
    """t-SNE of ``features`` (N, features), float32 (N, 2): the same for the same features."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    method = TSNE(init="pca", perplexity=perplexity, random_state=0)
    with threadpool_limits(1):
        return method.fit_transform(features.numpy())
