"""initialize_ beside the forward pass of the same data, and beside the floor of its own work.

    python bench/initialize_speed.py [--only NAME] [--output bench/results/initialize_speed.json]

Networks of timm and transformers are left out where these are not installed. The forward pass is
the fastest over a few microbatches. The floor is what any method has to do that solves the same
layers from the same rows: the forward pass, half of the products of every Gram matrix (syrk, of
the smaller of d x d and n x n), and the reduction of each to tridiagonal form (dsytrd). Both parts
are timed here, on matrices of the same sizes. In every round the contenders take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from scipy.linalg import lapack
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.networks import resnet20


@dataclass(frozen=True)
class Case:
    """A network, its data, and the ratio to the forward pass that is aimed at."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    microbatches: tuple[int, ...]
    classes: int
    target: float
    rounds: int


def _images(samples: int, size: int) -> Callable[[], Tensor]:
    def make() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(samples, 3, size, size, generator=generator)
        return x.to(memory_format=torch.channels_last)

    return make


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return make


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    return GPT2ForSequenceClassification(GPT2Config(num_labels=10, pad_token_id=0))


def _tokens() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(1, 50257, (64, 128), generator=generator)}


CASES = (
    Case("ResNet-20, 1,000 of 32 px", resnet20, _images(1000, 32), (64, 125, 250), 10, 2.0, 5),
    Case("resnet18, 500 of 64 px", _timm("resnet18"), _images(500, 64), (50, 100, 250), 10, 8.0, 3),
    Case(
        "edgenext_small, 12 of 96 px", _timm("edgenext_small"), _images(12, 96), (12,), 10, 20.0, 5
    ),
    Case(
        "ViT-B/16, 64 of 224 px",
        _timm("vit_base_patch16_224"),
        _images(64, 224),
        (16, 32, 64),
        10,
        2.0,
        1,
    ),
    Case("GPT-2 small, 64 x 128 tokens", _gpt2, _tokens, (8, 16, 32), 10, 2.0, 1),
)


def _part(inputs: Any, begin: int, end: int) -> Any:
    if isinstance(inputs, dict):
        return {name: value[begin:end] for name, value in inputs.items()}
    return inputs[begin:end]


def _size(inputs: Any) -> int:
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def _forward(model: nn.Module, inputs: Any, microbatch: int) -> None:
    with torch.inference_mode():
        for begin in range(0, _size(inputs), microbatch):
            part = _part(inputs, begin, begin + microbatch)
            model(**part) if isinstance(part, dict) else model(part)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@cache
def _syrk_seconds(rows: int, size: int) -> float:
    """Half of the products of x^T x, x (rows, size) in float32, as the BLAS of SciPy does them."""
    from scipy.linalg import blas

    rows_at_once = min(rows, 4096)
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((size, rows_at_once), "float32"))
    return min(_seconds(lambda: blas.ssyrk(1.0, x)) for _ in range(3)) * rows / rows_at_once


@cache
def _reduction_seconds(size: int) -> float:
    """Of a symmetric matrix in float64 to tridiagonal form."""
    x = np.random.default_rng(0).standard_normal((size, size))
    x = np.asfortranarray(x + x.T)
    work = int(lapack.dsytrd_lwork(size)[0])
    return min(_seconds(lambda: lapack.dsytrd(x, lwork=work)) for _ in range(2))


def _floor_of_layers(report: sylvinit.Report) -> float:
    seconds = 0.0
    for layer in report.solved:
        size, long = sorted((layer.rows, layer.d_in))
        seconds += layer.groups * (_syrk_seconds(long, size) + _reduction_seconds(size))
    return seconds


def measure(case: Case) -> dict[str, Any]:
    """All figures of a case."""
    torch.manual_seed(0)
    model, inputs = case.model().eval(), case.inputs()
    labels = torch.arange(_size(inputs)) % case.classes
    if isinstance(inputs, dict):
        data: Any = {**inputs, "labels": labels}
    else:
        data = (inputs, labels)
    forward = {
        m: min(_seconds(lambda m=m: _forward(model, inputs, m)) for _ in range(2))
        for m in case.microbatches
    }
    best = min(forward, key=lambda m: forward[m])
    ours: list[float] = []
    ratios: list[float] = []
    report = sylvinit.Report()
    for _ in range(case.rounds + 1):  # the first one warms up
        passing = min(_seconds(lambda: _forward(model, inputs, best)) for _ in range(2))
        begin = time.perf_counter()
        report = sylvinit.initialize_(model, data, preset="best", microbatch=best, progress=False)
        ours.append(time.perf_counter() - begin)
        ratios.append(ours[-1] / passing)
    skip = 1 if case.rounds > 1 else 0
    of_layers = sum(layer.seconds for layer in report.solved)
    fastest = min(forward.values())
    floor = fastest + _floor_of_layers(report)
    return {
        "case": case.name,
        "microbatch": best,
        "forward": fastest,
        "initialize": statistics.median(ours[skip:]),
        "of which layers": of_layers,
        "ratio": statistics.median(ratios[skip:]),
        "target": case.target,
        "met": statistics.median(ratios[skip:]) <= case.target,
        "floor": floor,
        "floor / forward": floor / fastest,
        "layers": len(report.solved),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results: list[dict[str, Any]] = []
    for case in CASES:
        if arguments.only not in case.name:
            continue
        try:
            row = measure(case)
        except ImportError as error:
            print(f"{case.name}: left out, {error}")
            continue
        results.append(row)
        print(
            f"{case.name:32s} forward {row['forward']:7.2f} s   initialize_ "
            f"{row['initialize']:7.2f} s   {row['ratio']:5.1f} x (target {row['target']:g}: "
            f"{'met' if row['met'] else 'missed'})   floor {row['floor / forward']:5.2f} x   "
            f"in layers {row['of which layers']:.2f} s",
            flush=True,
        )
        if arguments.output:
            stored = {"environment": environment(), "unit": "seconds", "rows": results}
            arguments.output.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
