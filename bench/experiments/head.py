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
from meaning import SKLEARN, SKLEARN_LDA, arguments_from
from pretrained import (
    NORMALISATION,
    features,
    find_checkpoint,
    new_head,
    pretrained_network,
    without_head,
)

from sylvinit.demo.training import accuracy
from sylvinit.io.datasets import Samples

# Of a timing, the best counts: of so many, and at most so many more in so many seconds.
_REPETITIONS, _MORE, _ENOUGH = 5, 25, 0.5


def run_head(run: Run) -> dict[str, Any]:
    """Fit a head on few images and measure it before any training.

    The features are computed once; the seconds are those of the head alone, the best of
    several after a warm-up, on one thread.

    Args:
        run: of a configuration with runner "head".

    Returns:
        The fields of the record beside those that identify it.

    Raises:
        MissingDataError: the checkpoint is not there.
    """
    checkpoint, views = find_checkpoint(run.config.checkpoint), run.arm.settings.get("views")
    grid = int(run.network_settings.get("grid", 1))

    def drawn(mirrored: bool) -> data.Dataset:
        everything = _features(checkpoint, run.config.dataset, mirrored, grid)
        return data.draw(everything, run.cell.get("shots"), run.seed, run.config.split)

    plain = drawn(False)
    samples, test = _flat(plain.train), _flat(plain.test)
    if views is not None:
        samples = _both_views(samples, _flat(drawn(True).train), views)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit = _fit(run.arm, samples, plain.classes, run.seed)
        predict, seconds = fit(), float("inf")
        first = time.perf_counter()
        for repetition in range(1, _REPETITIONS + _MORE + 1):
            begin = time.perf_counter()
            predict = fit()
            end = time.perf_counter()
            seconds = min(seconds, end - begin)
            if repetition >= _REPETITIONS and end - first > _ENOUGH:
                break
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
        return functools.partial(_logistic, samples, **arguments_from(arm.settings))
    if arm.initialiser == SKLEARN_LDA:
        return functools.partial(_discriminant_analysis, samples)

    def network() -> Predict:
        head = new_head(arm, samples.inputs.shape[1], classes, samples, seed)
        return functools.partial(accuracy, head)

    return network


def _logistic(samples: Samples, *, standardise: bool = False, C: float | str = 1.0) -> Predict:
    """scikit-learn's logistic regression.

    Args:
        samples: to fit.
        standardise: whether the features are standardised.
        C: how little the weights are held back, or "cv": one of ten by its cross-validation.
    """
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [StandardScaler()] if standardise else []
    if C == "cv":
        classifier = LogisticRegressionCV(max_iter=1000, scoring="accuracy")
    else:
        classifier = LogisticRegression(C=C, max_iter=1000)
    return _fit_sklearn(make_pipeline(*steps, classifier), samples)


def _discriminant_analysis(samples: Samples) -> Predict:
    """scikit-learn's LDA with the shrinkage of Ledoit and Wolf (2004)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return _fit_sklearn(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), samples)


def _fit_sklearn(classifier: Any, samples: Samples) -> Predict:
    """Fit a classifier of scikit-learn, on one thread."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)  # what defaults will be in later versions
        classifier.fit(samples.inputs.numpy(), samples.labels.numpy())

    def predict(test: Samples) -> float:
        return float(classifier.score(test.inputs.numpy(), test.labels.numpy()))

    return predict


@functools.lru_cache(maxsize=4)
def _features(checkpoint: Path, dataset: str, mirrored: bool, grid: int) -> data.Dataset:
    """The inputs of the last layer for all images or all mirror images.

    float32 (N, d, 1, 1), with d = 64 channels times the parts of the map.
    """
    model = without_head(pretrained_network(checkpoint), grid)
    parts = data.load(dataset, NORMALISATION)
    if mirrored:
        parts = data.Dataset(*(Samples(part.inputs.flip(3), part.labels) for part in parts))
    return data.Dataset(*(_as_pixels(features(model, part)) for part in parts))


def _both_views(samples: Samples, mirrored: Samples, views: str) -> Samples:
    """Features of images (n, d) and of their mirror images: 2 n samples, or their n means."""
    if views == "mean":
        return Samples((samples.inputs + mirrored.inputs) / 2, samples.labels)
    return Samples(
        torch.cat((samples.inputs, mirrored.inputs)), torch.cat((samples.labels, mirrored.labels))
    )


def _as_pixels(samples: Samples) -> Samples:
    """Features as images of one pixel, so that whatever draws images draws features."""
    return Samples(samples.inputs[:, :, None, None], samples.labels)


def _flat(samples: Samples) -> Samples:
    return Samples(samples.inputs.flatten(1).contiguous(), samples.labels)
