"""What a run does, by the runner of its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import data
from architectures import make_network
from arms import now
from config import PRETRAINED, TRAINED, Run
from directions import cosine, filters
from finetune import run_finetune
from head import run_head
from initialisers.lsuv import require_package
from prepared import Prepared, percent
from pretrained import NORMALISATION, find_checkpoint
from stacked import train_stacked
from torch import nn
from training import Recipe, train
from tsne import run_tsne

from sylvinit.io.datasets import Samples

CURVE_STEP = 10  # epochs between two points of a curve, fewer where it would have fewer than 10


def execute(runs: Sequence[Run], device: str) -> list[dict[str, Any]]:
    """Do some runs, at the same time where there are several.

    Args:
        runs: one run; or several of one configuration with runner "train" and one cell.
        device: "cpu" or "cuda".

    Returns:
        A record for each run, without its environment.
    """
    run = runs[0]
    if run.config.runner == "train":
        return _train(runs, device)
    if run.config.runner == "before":
        return [run.fields | Prepared(run, device).outcome for run in runs]
    if run.config.runner == "tsne":
        return [run.fields | run_tsne(run, device) for run in runs]
    if run.config.runner == "finetune":
        return [run.fields | run_finetune(run, device) for run in runs]
    return [run.fields | run_head(run) for run in runs]


def check(run: Run) -> None:
    """Raise what is missing or wrong before anything is run: data, network, recipe or package."""
    pretrained = run.config.runner in PRETRAINED
    dataset = data.load(run.config.dataset, NORMALISATION if pretrained else None)
    data.draw(dataset, run.cell.get("shots"), 0, run.config.split)
    if run.arm.initialiser.startswith("lsuv"):
        require_package()
    if run.config.runner in TRAINED:
        Recipe.of(run.training)
    if pretrained:
        find_checkpoint(run.config.checkpoint)
    else:
        make_network(run.network, run.network_settings, dataset.classes, dataset.channels)


def _train(runs: Sequence[Run], device: str) -> list[dict[str, Any]]:
    """Train, look at the networks every few epochs if there is to be a curve, and measure."""
    recipe = Recipe.of(runs[0].training)
    curve = bool(runs[0].cell.get("curve", runs[0].config.curve))
    stops = {recipe.epochs}
    if curve:
        step = max(min(CURVE_STEP, recipe.epochs // 10), 1)
        stops |= set(range(step, recipe.epochs, step))
    prepared = [Prepared(run, device) for run in runs]
    probes = [data.probe(item.test) for item in prepared] if curve else []
    curves: list[list[list[float]]] = [[] for _ in runs]
    starts = [filters(item.model) for item in prepared] if runs[0].config.directions else []
    _look(curves, prepared, probes, 0, 0.0, runs[0].training)
    seconds, begin = 0.0, now(prepared[0].samples)
    for epoch in _epochs(runs, prepared, recipe, stops):
        seconds += now(prepared[0].samples) - begin
        # Stacked networks share the time.
        _look(curves, prepared, probes, epoch, seconds / len(runs), runs[0].training)
        begin = now(prepared[0].samples)
    for item, points in zip(prepared, curves, strict=True):
        item.outcome["accuracy_after"] = percent(item.model, item.test, runs[0].training)
        item.outcome["train_seconds"] = seconds / len(runs)
        if curve:
            item.outcome["curve"] = points
        if len(runs) > 1:
            item.outcome["stacked"] = len(runs)
    for item, start in zip(prepared, starts, strict=False):
        item.outcome["cosine"] = cosine(start, filters(item.model))
    return [run.fields | item.outcome for run, item in zip(runs, prepared, strict=True)]


def _epochs(
    runs: Sequence[Run], prepared: Sequence[Prepared], recipe: Recipe, stops: set[int]
) -> Iterator[int]:
    """Train one network, or a stack of them, and stop after the epochs in ``stops``."""
    if len(runs) > 1:
        models: list[nn.Module] = [item.model for item in prepared]
        samples = [item.samples for item in prepared]
        yield from train_stacked(models, samples, recipe, [run.seed for run in runs], stops)
        return
    for epoch in train(prepared[0].model, prepared[0].samples, recipe, runs[0].seed):
        if epoch in stops:
            yield epoch


def _look(
    curves: list[list[list[float]]],
    prepared: Sequence[Prepared],
    probes: Sequence[Samples],
    epoch: int,
    seconds: float,
    training: dict[str, Any],
) -> None:
    """Add a point to every curve: epoch, seconds since the start of initialisation, accuracy."""
    for item, probe, points in zip(prepared, probes, curves, strict=False):
        total = item.outcome["init_seconds"] + seconds
        points.append([epoch, total, percent(item.model, probe, training)])
