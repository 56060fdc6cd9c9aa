"""Train a network, or take a trained one, and write the correlation matrix of its filters.

    SYLVINIT_DATA=DIR python bench/correlation_priors.py train vgg8 --epochs 60 \\
        --weights vgg8.pt --out sylvinit/priors/vgg8-cifar10.txt
    python bench/correlation_priors.py estimate WEIGHTS --source "what they are" --out FILE.txt
    python bench/correlation_priors.py draw LABEL=WEIGHTS ... --out docs/correlation_by_distance.png

DIR contains cifar-10-batches-py. Training: crops after 4 pixels of zero padding and flips for every
image, SGD with momentum 0.9 and Nesterov, weight decay 5e-4, one-cycle rate up to 0.2, batch 128.
All 3 x 3 filters are pooled and centered, as the paper's section 5 does; --profiles keeps the
correlation by distance, layer by layer, which ``draw`` shows (figure 1).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from environment import environment
from networks import NETWORKS
from torch import Tensor, nn

import sylvinit
from sylvinit.correlated import correlation_by_distance
from sylvinit.demo.training import accuracy
from sylvinit.diagnostics import draw_filter_profiles, filter_profiles
from sylvinit.io.datasets import Samples, load_cifar10, normalize_cifar10

BATCH = 128


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image shifted by up to 4 pixels of zeros along each axis, and flipped or not."""
    count, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (2, count, 1), generator=generator)
    rows = shift[0] + torch.arange(height)
    columns = shift[1] + torch.arange(width)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    sample = torch.arange(count)[:, None, None]
    picked = padded[sample, :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # channels_last, as convolutions like it


def train(model: nn.Module, samples: Samples, epochs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = len(samples.labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * steps)
    for epoch in range(epochs):
        begin = time.perf_counter()
        model.train()
        order = torch.randperm(len(samples.labels), generator=generator)
        for batch in order[: steps * BATCH].split(BATCH):
            optimizer.zero_grad()
            x = augmented(samples.inputs[batch], generator)
            loss = F.cross_entropy(model(x), samples.labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds = time.perf_counter() - begin
        print(f"epoch {epoch + 1}: loss {loss:.3f}, {seconds:.1f} s", flush=True)


def profiles(weights: object) -> dict[str, object]:
    """Correlation by distance, pooled and of every layer."""
    found = {"all layers": sylvinit.filter_correlation(weights)}
    found.update(sylvinit.filter_correlation(weights, per_layer=True))
    rows = {}
    for name, corr in found.items():
        profile = correlation_by_distance(corr)
        rows[name] = {
            "filters": corr.filters,
            "distance": profile.distance.tolist(),
            "correlation": profile.correlation.tolist(),
            "standard_error": profile.standard_error.tolist(),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("network", choices=sorted(NETWORKS))
    training.add_argument("--epochs", type=int, default=60)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--width", type=float, default=0.5)
    training.add_argument("--weights", type=Path, required=True, help="written there")
    estimate = commands.add_parser("estimate")
    estimate.add_argument("weights", type=Path)
    estimate.add_argument("--source", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("networks", nargs="+", metavar="LABEL=WEIGHTS")
    drawing.add_argument("--out", type=Path, required=True)
    for command in (training, estimate):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--profiles", type=Path, help="JSON file, for the figure")
    arguments = parser.parse_args()
    if arguments.command == "draw":
        pairs = [network.rpartition("=") for network in arguments.networks]
        draw_filter_profiles(
            {label: filter_profiles(path) for label, _, path in pairs}, arguments.out
        )
        return
    if arguments.command == "train":
        folder = os.environ.get("SYLVINIT_DATA")
        if not folder:
            parser.error("set SYLVINIT_DATA to the folder that contains cifar-10-batches-py")
        images, labels = load_cifar10(folder, train=True)
        samples = Samples(normalize_cifar10(images), labels)
        torch.manual_seed(arguments.seed)
        model = NETWORKS[arguments.network](width=arguments.width)
        model = model.to(memory_format=torch.channels_last)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        begin = time.perf_counter()
        train(model, samples, arguments.epochs, arguments.seed)
        seconds = time.perf_counter() - begin
        images, labels = load_cifar10(folder, train=False)
        reached = accuracy(model, Samples(normalize_cifar10(images), labels))
        torch.save(model.state_dict(), arguments.weights)
        source = (
            f"{arguments.network} (bench/networks.py, width {arguments.width:g}) trained by "
            f"bench/correlation_priors.py on {len(samples.labels)} images of CIFAR-10 for "
            f"{arguments.epochs} epochs, seed {arguments.seed}, to {reached:.1%} test accuracy; "
            "all 3 x 3 filters pooled, centered"
        )
        print(f"{source}; {seconds:.0f} s")
    else:
        source = arguments.source
    corr = sylvinit.filter_correlation(arguments.weights)
    sylvinit.priors.save(corr, arguments.out, source=source)
    print(corr)
    if arguments.profiles is not None:
        result = {
            "environment": environment(),
            "source": source,
            "layers": profiles(arguments.weights),
        }
        arguments.profiles.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
