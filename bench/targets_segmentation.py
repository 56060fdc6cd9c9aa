"""Segmentation of street scenes: solved heads and networks, beside scikit-learn and the own start.

    OMP_NUM_THREADS=1 SYLVINIT_DATA=DIR python bench/targets_segmentation.py --out FILE.json
    python bench/targets_segmentation.py --out bench/results/targets_segmentation.json --show

DIR contains camvid_96x72.npz: CamVid (CC BY-NC) in 468 images of 96 x 72, 11 classes and void,
which is left out. A seed draws 60 images to learn from and 100 others to measure on, of all images,
since the set's own parts differ in light: neighboring frames may be on both sides, so these numbers
compare arms and are not those of the benchmark.

The network: five convolutions with batch norm, the first of stride 2, and a 1x1 head, whose map is
enlarged. Its own start is PyTorch's, running statistics calibrated. "features": heads on that
random body, beside scikit-learn's classifiers. "networks": whole networks, before and after AdamW
at the rate that suits the own start best on 40 more images (seed 0). "memory": growth of the
resident set with the number of images. Runs that the file holds already are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from experiments.analysis import compare, estimate
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

import sylvinit
from sylvinit.demo.training import calibrate_norm

CLASSES, VOID = 11, 11
IMAGES, TEST, VALIDATION = 60, 100, 40
PIXELS = 20_000  # that scikit-learn's classifiers are fitted to
RATES = (1e-3, 3e-3, 1e-2)
EPOCHS, BATCH = 6, 10
MEMORY = ("forward", "logistic", "logistic, recompute", "onehot, recompute")
OWN = "own start"
Samples = tuple[Tensor, Tensor]


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    previous = 3
    for width, kernel, stride, dilation in (
        (16, 3, 2, 1),
        (24, 3, 1, 1),
        (32, 3, 1, 2),
        (32, 3, 1, 4),
        (64, 1, 1, 1),
    ):
        around = dilation * (kernel // 2)
        convolution = nn.Conv2d(
            previous, width, kernel, stride, around, dilation=dilation, bias=False
        )
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        previous = width
    head = nn.Conv2d(previous, CLASSES, 1)
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(*layers, head, enlarge)


def own_start(seed: int, images: Tensor) -> nn.Sequential:
    model = network(seed)
    calibrate_norm(model, images)
    return model


def load(folder: Path) -> Samples:
    """All images, normalized by channel, and their masks."""
    data = np.load(folder / "camvid_96x72.npz")
    images = np.concatenate([data["train_images"], data["val_images"]])
    masks = np.concatenate([data["train_masks"], data["val_masks"]])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / x.std(dim=(0, 2, 3), keepdim=True)
    return x, torch.from_numpy(masks).long()


def split(data: Samples, seed: int) -> tuple[Samples, Samples, Samples]:
    """Images to learn from, to measure on, and to choose the rate by."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))
    parts = order[: IMAGES + TEST + VALIDATION].split((IMAGES, TEST, VALIDATION))
    first, second, third = ((data[0][part], data[1][part]) for part in parts)
    return first, second, third


# ------------------------------------------------------------------------------------- the measures


def confusion(found: Tensor, masks: Tensor) -> Tensor:
    """(truth, found) counts of the pixels that are not void."""
    seen = masks != VOID
    pairs = masks[seen] * CLASSES + found[seen]
    return torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)


def measures(counts: Tensor) -> dict[str, float]:
    """Pixel accuracy and mean intersection over union, per cent.

    The mean is over the classes that occur in the truth.
    """
    counts = counts.double()
    hits, truth = counts.diagonal(), counts.sum(dim=1)
    union = truth + counts.sum(dim=0) - hits
    there = truth > 0
    return {
        "accuracy": 100 * float(hits.sum() / truth.sum()),
        "iou": 100 * float((hits[there] / union[there]).mean()),
    }


def evaluate(model: nn.Module, samples: Samples) -> dict[str, float]:
    """Both measures at the size of the masks, in evaluation mode."""
    model.eval()
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    with torch.inference_mode():
        for x, y in zip(samples[0].split(20), samples[1].split(20), strict=True):
            counts += confusion(model(x).argmax(dim=1), y)
    return measures(counts)


# ---------------------------------------------------------------------------------------- the heads

HEADS: dict[str, dict[str, Any]] = {
    "onehot": {"head_code": "onehot"},
    "onehot, balanced": {"head_code": "onehot", "balance": True},
    "logistic": {"head_code": "logistic"},
    "logistic, balanced": {"head_code": "logistic", "balance": True},
}


def head_pixels(model: nn.Sequential, samples: Samples) -> Samples:
    """Features of the head, a row for each of its pixels that is not void, and their classes."""
    model.eval()
    with torch.inference_mode():
        x = model[:-2](samples[0]).permute(0, 2, 3, 1)
    y = samples[1][:, 1::2, 1::2]  # the nearest neighbor, as sylvinit takes it
    return x[y != VOID], y[y != VOID]


def features(start: nn.Sequential, train: Samples, test: Samples, seed: int) -> dict[str, Any]:
    """Measures and processor seconds of every head on the features of one body."""
    x, y = head_pixels(start, test)
    found: dict[str, Any] = {}
    for name, options in HEADS.items():
        model = copy.deepcopy(start)
        begin = time.process_time()
        sylvinit.initialize_head_(model, train, ignore_index=VOID, seed=seed, **options)
        seconds = time.process_time() - begin
        head = model[-2]
        scores = functional.linear(x, head.weight.detach().flatten(1), head.bias.detach())
        found[name] = measures(confusion(scores.argmax(dim=1), y)) | {"seconds": seconds}
    known, labels = head_pixels(start, train)
    some = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:PIXELS]
    known, labels = known[some].double().numpy(), labels[some].numpy()
    for name, classifier in (
        ("RidgeClassifier", RidgeClassifier()),
        ("RidgeClassifier, balanced", RidgeClassifier(class_weight="balanced")),
        ("LogisticRegression", LogisticRegression(max_iter=300)),
    ):
        begin = time.process_time()
        pipeline = make_pipeline(StandardScaler(), classifier).fit(known, labels)
        seconds = time.process_time() - begin
        guess = torch.from_numpy(pipeline.predict(x.double().numpy()))
        found[name] = measures(confusion(guess, y)) | {"seconds": seconds}
    return found


# ------------------------------------------------------------------------------------- the networks


def _whole(**options: Any) -> Callable[[nn.Module, Samples, int], object]:
    return lambda model, train, seed: sylvinit.initialize_(
        model, train, ignore_index=VOID, seed=seed, **options
    )


def _head(**options: Any) -> Callable[[nn.Module, Samples, int], object]:
    return lambda model, train, seed: sylvinit.initialize_head_(
        model, train, ignore_index=VOID, seed=seed, **options
    )


ARMS: dict[str, Callable[[nn.Module, Samples, int], object]] = {
    OWN: lambda model, train, seed: None,
    **{f"own start, {name} head": _head(**options) for name, options in HEADS.items()},
    **{f"initialize_, {name} head": _whole(**options) for name, options in HEADS.items()},
}
TRAINED = (
    OWN,
    "own start, logistic head",
    "initialize_, onehot head",
    "initialize_, logistic head",
)


def train_(model: nn.Module, samples: Samples, rate: float, epochs: int, seed: int) -> None:
    """Cross-entropy with AdamW; the order of the images depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(samples[0]), generator=generator).split(BATCH):
            optimizer.zero_grad()
            scores = model(samples[0][batch])
            functional.cross_entropy(scores, samples[1][batch], ignore_index=VOID).backward()
            optimizer.step()


def choose_rate(data: Samples, epochs: int) -> dict[str, float]:
    """Accuracy of the own start on the validation images of seed 0, by rate."""
    train, _, validation = split(data, 0)
    found = {}
    for rate in RATES:
        model = own_start(0, train[0])
        train_(model, train, rate, epochs, 0)
        found[f"{rate:g}"] = evaluate(model, validation)["accuracy"]
    return found


def networks(
    start: nn.Sequential, train: Samples, test: Samples, rate: float, epochs: int, seed: int
) -> dict[str, Any]:
    """Measures of every arm before training, and of some after it."""
    found: dict[str, Any] = {}
    for arm, initialize in ARMS.items():
        model = copy.deepcopy(start)
        initialize(model, train, seed)
        found[arm] = {"before": evaluate(model, test)}
        if arm in TRAINED:
            train_(model, train, rate, epochs, seed)
            found[arm]["after"] = evaluate(model, test)
    return found


# --------------------------------------------------------------------------------------- the memory


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(mode: str, count: int) -> float:
    """MiB at the peak beyond model and images, microbatches of 15 (Linux)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 72, 96, generator=generator)
    masks = torch.randint(CLASSES + 1, (count, 72, 96), generator=generator)
    model = network(0).eval()
    code, _, storage = mode.partition(", ")
    options: dict[str, Any] = {"head_code": code, "microbatch": 15, "ignore_index": VOID}

    def measured(x: Tensor, y: Tensor) -> None:
        if mode == "forward":
            with torch.inference_mode():
                for part in x.split(15):
                    model(part)
        else:
            sylvinit.initialize_head_(model, (x, y), storage=storage or "memory", **options)

    measured(images[:15].clone(), masks[:15].clone())  # loads kernels and fills the allocator
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_mib()
    measured(images, masks)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024 - before


def _memory_in_processes(counts: Sequence[int]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for mode in MEMORY:
        for count in counts:
            command = [sys.executable, __file__, "--memory", mode, str(count)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.setdefault(mode, {})[str(count)] = float(out)
    return found


# --------------------------------------------------------------------------------------- the tables


def summarize(result: dict[str, Any]) -> str:
    """The stored runs as Markdown."""
    runs = {run["seed"]: run for run in result["runs"]}
    lines = ["| head of the random body | accuracy | minus logistic | IoU | minus logistic | s |"]
    lines.append("|---" * 6 + "|")
    for name in next(iter(runs.values()))["features"]:
        cells = []
        for measure in ("accuracy", "iou"):
            values, reference = (
                {i: run["features"][head][measure] for i, run in runs.items()}
                for head in (name, "logistic")
            )
            cells += [_plain(values), "" if name == "logistic" else _gap(values, reference)]
        seconds = [run["features"][name]["seconds"] for run in runs.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {estimate(seconds).mean:.2f} |")
    for moment, arms in (("before", tuple(ARMS)), ("after", TRAINED)):
        lines += ["", f"| {moment} training | accuracy | minus own start | IoU | minus own start |"]
        lines.append("|---" * 5 + "|")
        for arm in arms:
            cells = []
            for measure in ("accuracy", "iou"):
                values, own = (
                    {i: run["networks"][x][moment][measure] for i, run in runs.items()}
                    for x in (arm, OWN)
                )
                cells += [_plain(values), "" if arm == OWN else _gap(values, own)]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    if result["memory"]:
        counts = list(next(iter(result["memory"].values())))
        lines += ["", "| MiB beyond model and images | " + " | ".join(counts) + " images |"]
        lines.append("|---" * (len(counts) + 1) + "|")
        for mode, peaks in result["memory"].items():
            lines.append(f"| {mode} | " + " | ".join(f"{x:.1f}" for x in peaks.values()) + " |")
    return "\n".join(lines)


def _plain(values: dict[int, float]) -> str:
    return f"{estimate(list(values.values())).mean:.1f}"


def _gap(values: dict[int, float], reference: dict[int, float]) -> str:
    found = compare(values, reference)
    return "-" if found is None else f"{found.gap.mean:+.1f} ± {found.gap.half:.1f}"


def store(result: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--counts", type=int, nargs="*", default=[15, 30, 60])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", action="store_true", help="only print what --out holds")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
    if arguments.memory:
        print(memory(arguments.memory[0], int(arguments.memory[1])))
        return
    if arguments.out is None:
        parser.error("--out is required")
    if arguments.show:
        print(summarize(json.loads(arguments.out.read_text())))
        return
    folder = os.environ.get("SYLVINIT_DATA")
    if not folder:
        parser.error("set SYLVINIT_DATA to the folder that contains camvid_96x72.npz")
    settings = {"epochs": arguments.epochs, "batch": BATCH, "images": IMAGES, "test_images": TEST}
    result: dict[str, Any] = {"environment": environment(), "settings": settings}
    result |= {"memory": {}, "rates": {}, "runs": []}
    if arguments.out.exists():
        stored = json.loads(arguments.out.read_text())
        result |= {key: stored[key] for key in ("memory", "rates", "runs")}
    if arguments.counts and not result["memory"]:
        result["memory"] = _memory_in_processes(arguments.counts)
        store(result, arguments.out)
    data = load(Path(folder))
    if not result["rates"]:
        result["rates"] = choose_rate(data, arguments.epochs)
        store(result, arguments.out)
    rate = float(max(result["rates"], key=result["rates"].get))
    for seed in range(arguments.seeds):
        if seed in {run["seed"] for run in result["runs"]}:
            continue
        train, test, _ = split(data, seed)
        start = own_start(seed, train[0])
        run: dict[str, Any] = {"seed": seed, "features": features(start, train, test, seed)}
        run["networks"] = networks(start, train, test, rate, arguments.epochs, seed)
        result["runs"].append(run)
        store(result, arguments.out)
        print(f"seed {seed}", flush=True)
    print(summarize(result))


if __name__ == "__main__":
    main()
