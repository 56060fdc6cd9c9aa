"""Correlated against Kaiming normal filters in training: the second paper's figures 4 to 6.

    SYLVINIT_DATA=DIR python bench/correlated_training.py --out FILE.json [--seeds 0 1 2]
    python bench/correlated_training.py --out FILE.json --show docs/correlated_training.png

DIR contains cifar-10-batches-py. As in the paper: SGD with momentum 0.8, no weight decay, no
augmentation, batch norm, learning rates 0.005 and 0.1, sign changes and magnitude of the gradient
at every update. Kaiming normal is strength 0; the arms of a seed have the same random numbers, the
same batches in the same order, zero biases. Under batch norm the scale of the weights changes no
output, but the smaller they are the larger a step is beside them, and eq. 17 makes them smaller: so
a third arm has Kaiming's independent weights at the scale of the correlated ones. Runs that the
file holds already are not repeated; it is written after every run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy.stats
import torch
import torch.nn.functional as F
from environment import environment
from networks import NETWORKS
from torch import nn

import sylvinit
from sylvinit.demo.training import accuracy
from sylvinit.diagnostics import monitor
from sylvinit.io.datasets import Samples, load_cifar10, normalize_cifar10

RATES = (0.005, 0.1)
KAIMING, SCALED, CORRELATED = "Kaiming normal", "Kaiming, scale of correlated", "correlated"
ARMS = (KAIMING, CORRELATED, SCALED)
MOMENTUM = 0.8


def load(folder: str, train: bool) -> Samples:
    images, labels = load_cifar10(folder, train=train)
    images = normalize_cifar10(images).to(memory_format=torch.channels_last)
    return Samples(images, labels)


def initialize_(model: nn.Module, corr: str, arm: str, generator: torch.Generator) -> None:
    """Draw the weights of one arm."""
    strength = 1.0 if arm == CORRELATED else 0.0
    sylvinit.correlated_init_(model, corr, strength=strength, generator=generator)
    if arm == SCALED:
        matrix = sylvinit.priors.load(corr)
        factor = (matrix.shape[0] / float(matrix.sum())) ** 0.5
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Conv2d) and module.weight[0, 0].numel() > 1:
                    module.weight.mul_(factor)


def train_once(
    run: dict[str, Any], settings: dict[str, Any], train: Samples, test: Samples
) -> None:
    """Train one network, and put its epochs and its final accuracy into ``run``."""
    generator = torch.Generator().manual_seed(run["seed"])
    model = NETWORKS[settings["network"]](width=settings["width"])
    model = model.to(memory_format=torch.channels_last)
    initialize_(model, settings["corr"], run["initialisation"], generator, preset="best")
    optimizer = torch.optim.SGD(model.parameters(), lr=run["rate"], momentum=MOMENTUM)
    some = Samples(test.inputs[: settings["probe"]], test.labels[: settings["probe"]])
    begin = time.perf_counter()
    run["accuracy_before"] = accuracy(model, some)
    with monitor(model, activations=False) as record:
        for _ in range(settings["epochs"]):
            model.train()
            order = torch.randperm(len(train.labels), generator=generator)
            losses = []
            for batch in order.split(settings["batch"]):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(train.inputs[batch]), train.labels[batch])
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            record.end_epoch(loss=sum(losses) / len(losses), accuracy=accuracy(model, some))
    run["epochs"] = record.epochs
    run["accuracy"] = accuracy(model, test)
    run["train_accuracy"] = accuracy(model, train)
    run["seconds"] = round(time.perf_counter() - begin, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="vgg8")
    parser.add_argument("--width", type=float, default=0.25, help="the paper has 0.5")
    parser.add_argument("--epochs", type=int, default=50, help="the paper has 40, of 196 updates")
    parser.add_argument("--batch", type=int, default=128, help="the paper has 256")
    parser.add_argument("--corr", default="resnet10-cifar10")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--probe", type=int, default=2000, help="test images after every epoch")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="add the runs of these")
    parser.add_argument("--show", type=Path, help="only summarize and draw what --out holds")
    arguments = parser.parse_args()
    if arguments.show is not None:
        result = json.loads(arguments.out.read_text())
        merge(result, arguments.merge)
        store(result, arguments.out)
        summarize(result)
        draw(result, arguments.show)
        return
    folder = os.environ.get("SYLVINIT_DATA")
    if not folder:
        parser.error("set SYLVINIT_DATA to the folder that contains cifar-10-batches-py")
    settings = {
        key: getattr(arguments, key)
        for key in ("network", "width", "epochs", "batch", "corr", "probe")
    }
    result: dict[str, Any] = {"environment": environment(), "settings": settings, "runs": []}
    if arguments.out.exists():
        result["runs"] = json.loads(arguments.out.read_text())["runs"]
    train, test = load(folder, train=True), load(folder, train=False)
    settings |= {"train_images": len(train.labels), "test_images": len(test.labels)}
    done = {(run["initialisation"], run["rate"], run["seed"]) for run in result["runs"]}
    for seed in arguments.seeds:
        for rate in RATES:
            for name in arguments.arms:
                if (name, rate, seed) in done:
                    continue
                run = {"initialisation": name, "rate": rate, "seed": seed}
                train_once(run, settings, train, test)
                result["runs"].append(run)
                store(result, arguments.out)
                print(
                    f"{name}, rate {rate}, seed {seed}: {run['accuracy']:.1%} on the test set, "
                    f"{run['seconds']} s",
                    flush=True,
                )


def store(result: dict[str, Any], path: Path) -> None:
    """Write the file, a line for each run, numbers with six digits."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        if isinstance(value, list):
            return [short(item) for item in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    head = json.dumps({key: result[key] for key in ("environment", "settings")}, indent=1)
    runs = ",\n".join(json.dumps(short(run)) for run in result["runs"])
    path.write_text(f'{head[:-2]},\n "runs": [\n{runs}\n ]\n}}\n')


def merge(result: dict[str, Any], paths: list[Path]) -> None:
    """Add the runs of other files of the same settings, say of processes side by side."""

    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["seed"], run["rate"], ARMS.index(run["initialisation"])

    runs = {key(run): run for run in result["runs"]}
    for path in paths:
        other = json.loads(path.read_text())
        if other["settings"] != result["settings"]:
            raise SystemExit(f"{path} has other settings")
        runs.update((key(run), run) for run in other["runs"])
    result["runs"] = [runs[place] for place in sorted(runs)]


def summarize(result: dict[str, Any]) -> None:
    """Print accuracies, and their differences seed by seed with 95 % intervals (Student's t).

    At a constant learning rate the accuracy after the last update is noisy; the mean over the last
    ten epochs, on the test images looked at after each, is less so.
    """
    measures: dict[str, Callable[[dict[str, Any]], float]] = {
        "after the last epoch": lambda run: 100 * run["accuracy"],
        "mean of the last ten epochs": lambda run: (
            100 * statistics.mean(epoch["accuracy"] for epoch in run["epochs"][-10:])
        ),
    }
    for rate in RATES:
        for measure, value in measures.items():
            print(f"learning rate {rate}, test accuracy in %, {measure}: mean, standard deviation")
            _compare(
                {
                    arm: {
                        run["seed"]: value(run)
                        for run in result["runs"]
                        if run["rate"] == rate and run["initialisation"] == arm
                    }
                    for arm in ARMS
                }
            )


def _compare(found: dict[str, dict[int, float]]) -> None:
    for arm, values in found.items():
        mean, spread = statistics.mean(values.values()), statistics.stdev(values.values())
        print(f"  {arm:<30}{mean:6.1f} ± {spread:.1f}  ({len(values)} seeds)")
    for first, second in ((CORRELATED, KAIMING), (SCALED, KAIMING), (CORRELATED, SCALED)):
        seeds = sorted(found[first].keys() & found[second].keys())
        gaps = [found[first][seed] - found[second][seed] for seed in seeds]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        half = float(scipy.stats.t.ppf(0.975, len(gaps) - 1)) * error
        print(f"  {first} - {second}: {statistics.mean(gaps):+.1f} ± {half:.1f}")


def draw(result: dict[str, Any], path: Path) -> None:
    """Figure 4 of the paper from these runs: a row for each learning rate."""
    from matplotlib.figure import Figure

    runs, settings = result["runs"], result["settings"]
    panels = {
        "sign_changes": "sign changes of the gradient\n(share of parameters)",
        "gradient_magnitude": "mean |gradient|",
        "accuracy": f"accuracy on {settings['probe']:,} test images",
    }
    colors = {KAIMING: "#8a8a8a", SCALED: "#2f7fb8", CORRELATED: "#d1495b"}
    figure = Figure(figsize=(12, 6.4), dpi=120, layout="constrained")
    axes = figure.subplots(len(RATES), len(panels), squeeze=False)
    for row, rate in zip(axes, RATES, strict=True):
        for axis, (key, label) in zip(row, panels.items(), strict=True):
            for name, color in colors.items():
                curves = torch.tensor(
                    [
                        [epoch[key] for epoch in run["epochs"]]
                        for run in runs
                        if run["initialisation"] == name and run["rate"] == rate
                    ],
                    dtype=torch.float64,
                )
                epochs = torch.arange(1, curves.shape[1] + 1)
                mean = curves.mean(dim=0)
                spread = curves.std(dim=0) if len(curves) > 1 else torch.zeros_like(mean)
                axis.plot(epochs, mean, color=color, label=name)
                axis.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.2)
            axis.set_xlabel("epoch")
            axis.set_ylabel(label)
            axis.set_title(f"learning rate {rate}", fontsize="medium")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, -1].legend(frameon=False, loc="lower right")
    seeds = len({run["seed"] for run in runs})
    figure.suptitle(
        f"{settings['network']} (width {settings['width']:g}), {settings['train_images']:,} "
        f"CIFAR-10 images, batch {settings['batch']}: mean and standard deviation of {seeds} seeds"
    )
    figure.savefig(path, format="png")


if __name__ == "__main__":
    main()
