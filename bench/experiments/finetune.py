"""A pretrained network with a new head, all of it trained on few images (paper 1, table 1 (c))."""

from __future__ import annotations

from typing import Any

import data
from arms import now
from config import Arm, Run
from prepared import percent
from pretrained import (
    NORMALISATION,
    features,
    find_checkpoint,
    is_solved,
    new_head,
    pretrained_network,
    without_head,
)
from training import Recipe, train

from sylvinit.demo.networks import CifarResNet
from sylvinit.io.datasets import Samples


def run_finetune(run: Run, device: str) -> dict[str, Any]:
    """Give the pretrained network a head, measure it, train all of it, and measure it again.

    The seconds of initialisation contain the features of the images where the head looks at them.

    Args:
        run: of a configuration with runner "finetune".
        device: "cpu" or "cuda".

    Returns:
        The fields of the record beside those that identify it.

    Raises:
        MissingDataError: data or the checkpoint are not there.
    """
    recipe = Recipe.of(run.training)
    model = pretrained_network(find_checkpoint(run.config.checkpoint)).to(device)
    dataset = data.load(run.config.dataset, NORMALISATION)
    drawn = data.draw(dataset, run.cell.get("shots"), run.seed, run.config.split)
    samples, test = data.to_device(drawn.train, device), data.to_device(drawn.test, device)
    # The first calls of anything take longer.
    set_head(model, run.arm, data.limit(samples, 2, 0), dataset.classes, 0)
    begin = now(samples)
    set_head(model, run.arm, samples, dataset.classes, run.seed)
    init_seconds = now(samples) - begin
    before = percent(model, test, run.training)
    begin = now(samples)
    for _ in train(model, samples, recipe, run.seed):
        pass
    train_seconds = now(samples) - begin
    return {
        "accuracy_before": before,
        "accuracy_after": percent(model, test, run.training),
        "init_seconds": init_seconds,
        "train_seconds": train_seconds,
    }


def set_head(model: CifarResNet, arm: Arm, samples: Samples, classes: int, seed: int) -> None:
    """Replace the last layer of ``model``, in evaluation mode, with one made on the CPU."""
    size, device = model.fc.in_features, samples.inputs.device
    if is_solved(arm):
        seen = features(without_head(model), samples)
        samples = data.to_device(seen, "cpu")
    model.fc = new_head(arm, size, classes, samples, seed).to(device)
