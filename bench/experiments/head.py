"""A new last layer on the features of a pretrained network (first paper, table 1 (c))."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import torch
from config import Arm, Run
from meaning import SKLEARN
from pretrained import (
    NORMALISATION,
    features,
    find_checkpoint,
    new_head,
    pretrained_network,
    without_head,
)

from sylvinit.datasets import Samples
from sylvinit.demo.training import accuracy

_REPETITIONS = 3


def run_head(run: Run) -> dict[str, Any]:
    """Fit a head on few images and measure it before any training.

    The features are computed once; the seconds are those of the head alone, the best of three
    after a warm-up, on one thread.

    Args:
        run: of a configuration with runner "head".

    Returns:
        The fields of the record beside those that identify it.

    Raises:
        MissingDataError: the checkpoint is not there.
    """
    everything = _features(find_checkpoint(run.config.checkpoint), run.config.dataset)
    drawn = data.draw(everything, run.cell.get("shots"), run.seed, run.config.split)
    samples, test = _flat(drawn.train), _flat(drawn.test)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit = _fit(run.arm, samples, everything.classes, run.seed)
        predict, seconds = fit(), float("inf")
        for _ in range(_REPETITIONS):
            begin = time.perf_counter()
            predict = fit()
            seconds = min(seconds, time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return {
        "accuracy_before": 100 * predict(test),
        "accuracy_after": None,
        "init_seconds": seconds,
        "train_seconds": None,
    }


Predict = Callable[[Samples], float]


def _fit(arm: Arm, samples: Samples, classes: int, seed: int) -> Callable[[], Predict]:
    """A function that fits the arm's head and returns what measures its accuracy."""
    if arm.initialiser == SKLEARN:
        return functools.partial(_logistic, samples, **arm.settings)

    def network() -> Predict:
        head = new_head(arm, samples.inputs.shape[1], classes, samples, seed)
        return functools.partial(accuracy, head)

    return network


def _logistic(samples: Samples, standardise: bool = False) -> Predict:
    """scikit-learn's logistic regression, on features as they are or standardised."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    steps = [StandardScaler()] if standardise else []
    classifier = make_pipeline(*steps, LogisticRegression(max_iter=1000))
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(samples.inputs.numpy(), samples.labels.numpy())

    def predict(test: Samples) -> float:
        return float(classifier.score(test.inputs.numpy(), test.labels.numpy()))

    return predict


@functools.lru_cache(maxsize=1)
def _features(checkpoint: Path, dataset: str) -> data.Dataset:
    """The inputs of the last layer for all images, float32 (N, 64, 1, 1)."""
    model = without_head(pretrained_network(checkpoint))
    images = data.load(dataset, NORMALISATION)
    return data.Dataset(
        _as_pixels(features(model, images.train)), _as_pixels(features(model, images.test))
    )


def _as_pixels(samples: Samples) -> Samples:
    """Features as images of one pixel, so that whatever draws images draws features."""
    return Samples(samples.inputs[:, :, None, None], samples.labels)


def _flat(samples: Samples) -> Samples:
    return Samples(samples.inputs.flatten(1).contiguous(), samples.labels)
