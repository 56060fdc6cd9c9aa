"""Accuracy before any training: ResNet-20 on CIFAR-10, 100 training images a class, 5 seeds.

    SYLVINIT_DATA=DIR python bench/before_training.py [--out bench/results/before_training.json]

DIR contains cifar-10-batches-py. Every seed draws its own images and its own He weights. Three
networks
a seed: He's random weights, the same with only the head solved, and sylvinit with the paper's
settings (PCA and one-hot codes, lam 10, 10 patches an image). Batch normalization is calibrated in
all of them, and all 10,000 test images are classified.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
import warnings
from pathlib import Path

import torch
from environment import environment

import sylvinit
from sylvinit.demo.networks import resnet20
from sylvinit.demo.tasks import he_init_
from sylvinit.demo.training import accuracy, calibrate_norm
from sylvinit.io.datasets import Samples, few_per_class, load_cifar10, normalize_cifar10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--codes", nargs="+", default=["pca"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = os.environ.get("SYLVINIT_DATA")
    if not folder:
        parser.error("set SYLVINIT_DATA to the folder that contains cifar-10-batches-py")
    warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
    train_images, train_labels = load_cifar10(folder, train=True)
    test_images, test_labels = load_cifar10(folder, train=False)
    test = Samples(
        normalize_cifar10(test_images).to(memory_format=torch.channels_last), test_labels
    )
    results: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        chosen = few_per_class(train_labels, arguments.per_class, seed)
        images = normalize_cifar10(train_images[chosen]).to(memory_format=torch.channels_last)
        data = (images, train_labels[chosen])
        he = he_init_(resnet20(), seed)
        calibrate_norm(he, images)
        head = copy.deepcopy(he)
        sylvinit.initialize_head_(head, data, seed=seed)
        networks = {"He": he, "He + solved head": head}
        for code in arguments.codes:
            network = copy.deepcopy(he)
            begin = time.perf_counter()
            sylvinit.initialize_(network, data, preset="paper", code=code, seed=seed)
            seconds.setdefault(code, []).append(time.perf_counter() - begin)
            networks[f"sylvinit, {code}"] = network
        for method, network in networks.items():
            value = 100 * accuracy(network, test)
            results.setdefault(method, []).append(value)
            print(f"seed {seed}  {method:20s} {value:6.2f} %", flush=True)
    for method, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{method:20s} {statistics.mean(values):6.2f} +- {spread:.2f} %")
    if arguments.out:
        payload = {
            "environment": environment(),
            "per_class": arguments.per_class,
            "accuracy_percent": results,
            "init_seconds": seconds,
        }
        arguments.out.write_text(json.dumps(payload, indent=2) + "\n")


if __name__ == "__main__":
    main()
