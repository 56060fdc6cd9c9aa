"""Methods of others on the splits that sylvinit is measured on, called as their users call them.

    OMP_NUM_THREADS=1 SYLVINIT_DATA=DIR python bench/peers.py tables dictionary [--seeds 3]
    python bench/peers.py --show

DIR contains uci_regression.npz and cifar-10-batches-py.

tables: xRFM (on PyPI), kernel regression that learns which features count, with its defaults, on
the seven tables of bench/targets_tables.py, whose splits and standardized rows it gets; a fifth of
the training rows validate it. It is compared with the network of that benchmark after training.

dictionary: single-layer features of CIFAR-10 (Coates, Ng and Lee 2011; Coates and Ng 2011) from 100
images a class, those of the seeds of bench/experiments: patches of 6 x 6 pixels, contrast
normalized and ZCA whitened, an atom for each of 400 clusters of them, the triangle activation at
every position, means over quadrants, and a linear classifier on the 1,600 standardized features,
whose ridge scikit-learn chooses by leave-one-out. 2,000 test images, 200 of each class.

Finished runs are stored in bench/results/peers.json and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from environment import environment
from experiments.analysis import compare, estimate
from experiments.data import draw, limit, load
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import RidgeClassifierCV
from targets_tables import OWN, standardized
from torch import Tensor

RESULTS = Path(__file__).resolve().parent / "results"
FILE = RESULTS / "peers.json"
PER_CLASS, MEASURED = 100, 200
PATCH, ATOMS, PATCHES = 6, 400, 20  # pixels, clusters, patches of an image
CONTRAST, WHITENING = 10.0 / 255**2, 0.1  # added to variances before division, as in the papers


# --------------------------------------------------------------------------------------- the tables


def xrfm_r2(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, seed: int) -> float:
    """R2 on the test rows of xRFM with its defaults."""
    from xrfm import xRFM

    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    kept, out = order[len(x) // 5 :], order[: len(x) // 5]
    model: Any = xRFM(device=torch.device("cpu"), tuning_metric="mse", random_state=seed)
    model.fit(x[kept], y[kept], x[out], y[out])
    found = torch.as_tensor(model.predict(test_x)).double().reshape(-1, 1)
    truth = test_y.double()
    return float(1 - (found - truth).square().sum() / (truth - truth.mean()).square().sum())


def tables(result: dict[str, Any], splits: int, folder: str) -> None:
    """Do what is missing, one split of all tables after the other."""
    data = np.load(Path(folder) / "uci_regression.npz")
    names = [key[:-2] for key in data.files if key.endswith("_x")]
    for split in range(splits):
        for name in names:
            values = result["xrfm"].setdefault(name, {})
            if str(split) in values:
                continue
            test = data[f"{name}_test"].T[split]
            rows = standardized(data[f"{name}_x"], data[f"{name}_y"], test)
            values[str(split)] = xrfm_r2(*rows[0], *rows[1], split)
            store(result)
            print(f"xRFM, split {split} of {name}: {values[str(split)]:.3f}", flush=True)


# ----------------------------------------------------------------------------------- the dictionary


def patches_of(images: Tensor, seed: int) -> Tensor:
    """Random patches (N * PATCHES, 3 * PATCH * PATCH) of images (N, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    high = images.shape[-1] - PATCH + 1
    found = []
    for image in images:
        for row, column in torch.randint(high, (PATCHES, 2), generator=generator).tolist():
            found.append(image[:, row : row + PATCH, column : column + PATCH].reshape(-1))
    return torch.stack(found)


def normalized(patches: Tensor) -> Tensor:
    """Rows without their mean, divided by their deviation."""
    centered = patches - patches.mean(dim=1, keepdim=True)
    return centered / (centered.square().mean(dim=1, keepdim=True) + CONTRAST).sqrt()


class Dictionary:
    """Whitening and atoms learned from images (N, 3, H, W) with values from 0 to 1."""

    def __init__(self, images: Tensor, seed: int) -> None:
        patches = normalized(patches_of(images, seed))
        self.mean = patches.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        self.whitening = (vectors * (values.clamp(min=0) + WHITENING).rsqrt()) @ vectors.T
        white = (patches - self.mean) @ self.whitening
        clusters: Any = MiniBatchKMeans(ATOMS, n_init=1, random_state=seed)
        self.atoms = torch.from_numpy(clusters.fit(white.numpy()).cluster_centers_)

    def features(self, images: Tensor) -> Tensor:
        """Means of the triangle activation over quadrants, (N, 4 * ATOMS)."""
        return torch.cat([self._features(part) for part in images.split(20)])

    def _features(self, images: Tensor) -> Tensor:
        rows = F.unfold(images, PATCH).transpose(1, 2)
        count, positions, size = rows.shape
        white = (normalized(rows.reshape(-1, size)) - self.mean) @ self.whitening
        distance = torch.cdist(white, self.atoms)
        active = (distance.mean(dim=1, keepdim=True) - distance).clamp(min=0)
        side = round(positions**0.5)
        maps = active.view(count, side, side, ATOMS).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(maps, 2).flatten(1)


def dictionary_accuracy(seed: int) -> float:
    """Of the classifier on the dictionary's features, in per cent."""
    data = load("cifar10")
    drawn = draw(data, PER_CLASS, seed)
    test = limit(data.test, MEASURED, 0)
    low, high = float(data.train.inputs.min()), float(data.train.inputs.max())
    train_x, test_x = ((x.inputs - low) / (high - low) for x in (drawn.train, test))
    found = Dictionary(train_x, seed)
    features, measured = found.features(train_x), found.features(test_x)
    mean, deviation = features.mean(dim=0), features.std(dim=0) + 1e-6
    classifier: Any = RidgeClassifierCV(np.logspace(0, 6, 13))
    classifier.fit(((features - mean) / deviation).numpy(), drawn.train.labels.numpy())
    measured = ((measured - mean) / deviation).numpy()
    return 100 * float(classifier.score(measured, test.labels.numpy()))


def dictionary(result: dict[str, Any], seeds: int) -> None:
    """Do what is missing."""
    for seed in range(seeds):
        if str(seed) not in result["dictionary"]:
            result["dictionary"][str(seed)] = dictionary_accuracy(seed)
            store(result)
            print(f"dictionary, seed {seed}: {result['dictionary'][str(seed)]:.1f} %", flush=True)


# ----------------------------------------------------------------------------------------- the page


def summarize(result: dict[str, Any]) -> str:
    """The stored runs as Markdown, beside the trained networks of the same splits."""
    stored = json.loads((RESULTS / "targets_tables.json").read_text())
    lines = ["| table (splits) | xRFM | own start, trained | difference |", "|---|---|---|---|"]
    for name, values in result["xrfm"].items():
        theirs = {int(split): value for split, value in values.items()}
        ours = {
            run["split"]: run["arms"][OWN]["after"]
            for run in stored["networks"]
            if run["table"] == name and run["split"] in theirs
        }
        gap = compare(theirs, ours)
        means = [f"{estimate(list(x.values())).mean:.3f}" for x in (theirs, ours)]
        end = "-" if gap is None else f"{gap.gap.mean:+.3f} ± {gap.gap.half:.3f}"
        lines.append(f"| {name} ({len(theirs)}) | {' | '.join(means)} | {end} |")
    if result["dictionary"]:
        found = estimate(list(result["dictionary"].values()))
        lines += [
            "",
            f"Whitened dictionary, {found.count} seeds: {found.mean:.1f} ± {found.half:.1f} %",
        ]
    return "\n".join(lines)


def store(result: dict[str, Any]) -> None:
    FILE.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="*", choices=("tables", "dictionary"), metavar="WHAT")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--show", action="store_true", help="only print what is stored")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(), "xrfm": {}, "dictionary": {}}
    if FILE.exists():
        result = json.loads(FILE.read_text())
    folder = os.environ.get("SYLVINIT_DATA")
    if not arguments.show:
        if not folder:
            parser.error("set SYLVINIT_DATA to the folder that contains the data")
        if "dictionary" in arguments.what:
            dictionary(result, arguments.seeds)
        if "tables" in arguments.what:
            tables(result, arguments.splits, folder)
    print(summarize(result))


if __name__ == "__main__":
    main()
