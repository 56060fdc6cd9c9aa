"""Regression on a table: a network's outputs as numbers, in the units of the table.

Friedman's first function of ten columns (Friedman 1991, "Multivariate adaptive regression
splines"), five of them without meaning, with noise; as prices between 0 and 30,000. A small network
is started in four ways and trained shortly on the prices as they are, beside the usual remedy for
targets in large units: standardize them for the training, and map the outputs back.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.datasets import make_friedman1
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

import sylvinit

SEEDS, TRAIN, EPOCHS = 5, 500, 20


def table() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training rows (500, 10) and prices (500, 1), test rows and prices; rows standardized."""
    columns, values = make_friedman1(2500, 10, noise=1.0, random_state=0)
    x = torch.tensor(columns, dtype=torch.float32)
    y = torch.tensor(1000 * values, dtype=torch.float32)[:, None]
    x = (x - x[:TRAIN].mean(dim=0)) / x[:TRAIN].std(dim=0)
    return x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(10, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    )


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[index]), y[index]).backward()
            optimizer.step()


@torch.no_grad()
def r2(prediction: Tensor, y: Tensor) -> float:
    return float(1 - (prediction - y).square().mean() / y.var(correction=0))


def start(model: nn.Module, x: Tensor, y: Tensor, name: str) -> None:
    if name == "head solved":
        sylvinit.initialize_head_(model, (x, y), head_code="ridge")
    elif name == "all layers solved":
        with warnings.catch_warnings():
            # Ten columns have ten components, and the first layer has 64 outputs.
            warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
            sylvinit.initialize_(model, (x, y), head_code="ridge")


def main() -> None:
    x, y, x_test, y_test = table()
    mean, deviation = y.mean(), y.std()
    starts = ("own", "own, prices standardized", "head solved", "all layers solved")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    ridge = []
    for seed in range(SEEDS):
        for name in starts:
            torch.manual_seed(seed)
            model = network()
            start(model, x, y, name)
            unit = (mean, deviation) if name.endswith("standardized") else (0.0, 1.0)
            before = r2(unit[0] + unit[1] * model(x_test), y_test)
            if name == "head solved":
                features = [model[:-1](part).detach() for part in (x, x_test)]
                expected = RidgeCV(np.logspace(-3, 4, 15)).fit(features[0], y[:, 0])
                ridge.append(expected.score(features[1], y_test[:, 0]))
            train(model, x, (y - unit[0]) / unit[1])
            found[name].append((before, r2(unit[0] + unit[1] * model(x_test), y_test)))
    print("R2 on 2,000 other rows, mean of five seeds  before training  after")
    for name, pairs in found.items():
        before, after = (sum(values) / SEEDS for values in zip(*pairs, strict=True))
        print(f"{name:42s} {before:16.3f} {after:6.3f}")
    print(f"scikit-learn's RidgeCV on the own start's features: {np.mean(ridge):.3f}")
    before = [pair[0] for pair in found["head solved"]]
    assert min(a - b for a, b in zip(before, ridge, strict=True)) > -0.01


if __name__ == "__main__":
    main()
