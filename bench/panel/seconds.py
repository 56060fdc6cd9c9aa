"""Processor seconds of initialization, side by side: the speed of a machine changes with time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from environment import environment

from panel import arms
from panel.data import draw, load
from panel.networks import build
from panel.pairs import TEST_SEEDS, Pair

Seconds = Mapping[str, Mapping[str, float]]  # of arms, by the titles of pairs
_FILE = "seconds.json"


def measure(pair: Pair, names: Sequence[str]) -> dict[str, float]:
    """Medians over the test seeds, of the most samples that the pair has, on one thread."""
    torch.set_num_threads(1)
    pools = load(pair.data)
    shots = list(pair.updates)[-1]
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in (*TEST_SEEDS[:1], *TEST_SEEDS):  # the first one is for what is done only once
        samples, _ = draw(pools, shots, seed, "test", pair.size)
        for name in names:
            shape = samples.inputs.shape[1:]
            model = build(pair.network, dict(pair.settings), pools.outputs, shape, seed)
            begin = time.process_time()
            arms.apply(name, model, samples, seed)
            found[name].append(time.process_time() - begin)
    return {name: median(values[1:]) for name, values in found.items()}


def store(seconds: Seconds, folder: Path) -> None:
    """Add to what is stored; later measurements replace earlier ones."""
    content: dict[str, Any] = {"environment": environment(), "seconds": {}}
    content["seconds"] = {**read(folder), **seconds}
    (folder / _FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Seconds:
    """What is stored, of all pairs."""
    path = folder / _FILE
    return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else {}
