"""Regression on tables: ridge heads beside scikit-learn's, and networks from initialize_.

    OMP_NUM_THREADS=1 SYLVINIT_DATA=DIR python bench/targets_tables.py --out bench/results/targets_tables.json
    python bench/targets_tables.py --out FILE.json --show    # the tables, from the file alone

DIR contains uci_regression.npz: seven tables, each with ten splits. Inputs and targets are
standardized by the training rows, and R2 is that of the test rows.

Heads: `initialize_head_(head_code="ridge")` and RidgeCV with 19 ridges, both on 512 random ReLU
features. None of the tables has 15,000 rows: processor seconds are those of generated ones, a random
network of 19 normal inputs with noise, best of three; what RidgeCV is given is computed beforehand.

Networks: two hidden layers of 128 ReLU units, before and after training with AdamW. The rate of a
table is the one at which PyTorch's own start comes out best on validation rows, a fifth of the
training rows of the first three splits; all arms train at it, on the same batches. swimnetworks (on
PyPI) with its default settings is an arm where it is installed. Runs that the file holds already are
not repeated.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from experiments.analysis import compare, estimate
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn import functional

import sylvinit

ALPHAS = np.logspace(-6, 6, 19)
RATES = (3e-4, 1e-3, 3e-3)
EPOCHS, BATCH = 30, 64
FEATURES, WIDTH = 512, 128
OWN = "own start"
Rows = tuple[Tensor, Tensor]


def standardized(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> tuple[Rows, Rows]:
    """(inputs, targets) of the training and of the test rows, by the former's mean and deviation.

    Columns that are constant in the training rows become zero.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)[:, None]
    columns = []
    for values in (x, y):
        known = values[~test]
        size = known.std(axis=0)
        columns.append((values - known.mean(axis=0)) / np.where(size > 0, size, np.inf))
    x, y = (torch.from_numpy(values).float() for values in columns)
    return (x[~test], y[~test]), (x[test], y[test])


def r2(model: nn.Module, rows: Rows) -> float:
    """1 - (squared error) / (squared deviation from these rows' mean)."""
    x, y = rows
    with torch.inference_mode():
        error = (model(x).double() - y).square().sum()
    return float(1 - error / (y.double() - y.double().mean()).square().sum())


def perceptron(inputs: int, widths: Sequence[int], seed: int) -> nn.Sequential:
    """ReLU layers and one output, with PyTorch's own random weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 1))


# ---------------------------------------------------------------------------------------- the heads


def heads(train: Rows, test: Rows, seed: int) -> dict[str, float]:
    """R2 and processor seconds of both ridge regressions on random features of one split."""
    model = perceptron(train[0].shape[1], [FEATURES], seed)
    with torch.inference_mode():
        features = [model[:-1](x).double().numpy() for x, _ in (train, test)]
    begin = time.process_time()
    reference = RidgeCV(alphas=ALPHAS).fit(features[0], train[1][:, 0].double().numpy())
    middle = time.process_time()
    sylvinit.initialize_head_(model, train, head_code="ridge", seed=seed)
    end = time.process_time()
    return {
        "sylvinit": r2(model, test),
        "RidgeCV": float(reference.score(features[1], test[1][:, 0].double().numpy())),
        "sylvinit_seconds": end - middle,
        "RidgeCV_seconds": middle - begin,
    }


def generated(rows: int, seed: int) -> tuple[Rows, Rows]:
    """Normal inputs, and a random network of them with noise of half its deviation."""
    generator = np.random.default_rng(seed)
    total = rows + 2000
    x = generator.standard_normal((total, 19))
    hidden = np.tanh(x @ generator.standard_normal((19, 30)) / 2)
    y = hidden @ generator.standard_normal(30)
    y += 0.5 * y.std() * generator.standard_normal(total)
    return standardized(x, y, np.arange(total) >= rows)


# ------------------------------------------------------------------------------------- the networks


def swim_(model: nn.Sequential, rows: Rows, seed: int) -> None:
    """Weights by swimnetworks: layers from pairs of rows, and least squares for the last."""
    from swimnetworks import Dense, Linear

    x, y = (values.double().numpy() for values in rows)
    for layer in model:
        if not isinstance(layer, nn.Linear):
            continue
        if layer is model[-1]:
            found = Linear()
        else:
            found = Dense(layer_width=layer.out_features, activation="relu", random_seed=seed)
        x = found.fit_transform(x, y)
        seed += 1
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(found.weights.T))
            layer.bias.copy_(torch.from_numpy(found.biases[0]))


def _solved_head(model: nn.Sequential, rows: Rows, seed: int) -> None:
    sylvinit.initialize_head_(model, rows, head_code="ridge", seed=seed)


def _swim_solved_head(model: nn.Sequential, rows: Rows, seed: int) -> None:
    swim_(model, rows, seed)
    _solved_head(model, rows, seed)


ARMS: dict[str, Callable[[nn.Sequential, Rows, int], object]] = {
    OWN: lambda model, rows, seed: None,
    "own start, ridge head": _solved_head,
    "initialize_": lambda model, rows, seed: sylvinit.initialize_(model, rows, seed=seed),
    "initialize_, ridge head": lambda model, rows, seed: sylvinit.initialize_(
        model, rows, head_code="ridge", seed=seed
    ),
    "swimnetworks": swim_,
    "swimnetworks, ridge head": _swim_solved_head,
}


def train_(model: nn.Module, rows: Rows, rate: float, epochs: int, seed: int) -> None:
    """Least squares with AdamW; the order of the rows depends on the seed alone."""
    x, y = rows
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            functional.mse_loss(model(x[batch]), y[batch]).backward()
            optimizer.step()


def choose_rate(trainings: Sequence[Rows], epochs: int) -> float:
    """The rate of highest mean R2 of the own start on validation rows, a fifth of each of these."""
    means = []
    for rate in RATES:
        values = []
        for seed, (x, y) in enumerate(trainings):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            kept, out = order[len(x) // 5 :], order[: len(x) // 5]
            model = perceptron(x.shape[1], [WIDTH, WIDTH], seed)
            train_(model, (x[kept], y[kept]), rate, epochs, seed)
            values.append(r2(model, (x[out], y[out])))
        means.append(estimate(values).mean)
    return RATES[int(np.argmax(means))]


def networks(
    train: Rows, test: Rows, rate: float, epochs: int, seed: int, arms: Sequence[str]
) -> dict[str, dict[str, float]]:
    """R2 of every arm before and after training, from the same random weights."""
    start = perceptron(train[0].shape[1], [WIDTH, WIDTH], seed)
    found = {}
    for arm in arms:
        model = copy.deepcopy(start)
        ARMS[arm](model, train, seed)
        before = r2(model, test)
        train_(model, train, rate, epochs, seed)
        found[arm] = {"before": before, "after": r2(model, test)}
    return found


# --------------------------------------------------------------------------------------- the tables


def _interval(values: Sequence[float]) -> str:
    found = estimate(values)
    return f"{found.mean:+.3f} ± {found.half:.3f}"


def summarize(result: dict[str, Any]) -> str:
    """The stored runs as Markdown."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for run in result["runs"]:
        runs.setdefault(run["table"], {})[run["split"]] = run
    lines = ["| table (rows) | ridge head | RidgeCV | difference | smallest |", "|---|---|---|---|---|"]
    for table, splits in runs.items():
        pairs = [run["heads"] for run in splits.values()]
        gaps = [pair["sylvinit"] - pair["RidgeCV"] for pair in pairs]
        means = [estimate([pair[x] for pair in pairs]).mean for x in ("sylvinit", "RidgeCV")]
        rows = next(iter(splits.values()))["rows"]
        lines.append(
            f"| {table} ({rows:,}) | {means[0]:.3f} | {means[1]:.3f} | {_interval(gaps)} | "
            f"{min(gaps):+.3f} |"
        )
    lines += ["", "| generated rows | ridge head, R2, s | RidgeCV, R2, s | time |", "|---|---|---|---|"]
    for time_ in result["times"]:
        lines.append(
            f"| {time_['rows']:,} | {time_['sylvinit']:.4f}, {time_['sylvinit_seconds']:.2f} | "
            f"{time_['RidgeCV']:.4f}, {time_['RidgeCV_seconds']:.2f} | "
            f"{time_['sylvinit_seconds'] / time_['RidgeCV_seconds']:.0%} |"
        )
    arms = [arm for arm in ARMS if any(arm in r["networks"] for r in result["runs"])]
    for moment in ("before", "after"):
        lines += ["", f"R2 {moment} training; arms beside the own start are differences to it:", ""]
        lines += ["| table (rate) | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
        for table, splits in runs.items():
            values = {
                arm: {i: run["networks"][arm][moment] for i, run in splits.items()} for arm in arms
            }
            cells = [f"{estimate(list(values[OWN].values())).mean:.3f}"]
            for arm in arms[1:]:
                paired = compare(values[arm], values[OWN])
                cells.append("-" if paired is None else _paired(paired.gap.mean, paired.gap.half))
            rate = next(iter(splits.values()))["rate"]
            lines.append(f"| {table} ({rate:g}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _paired(mean: float, half: float) -> str:
    digits = 3 if abs(mean) < 10 and half < 10 else 0
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def store(result: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tables", nargs="+", help="default: all")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--generated", type=int, nargs="*", default=[15_000, 30_000])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="only print what --out holds")
    arguments = parser.parse_args()
    if arguments.show:
        print(summarize(json.loads(arguments.out.read_text())))
        return
    folder = os.environ.get("SYLVINIT_DATA")
    if not folder:
        parser.error("set SYLVINIT_DATA to the folder that contains uci_regression.npz")
    warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
    settings = {"epochs": arguments.epochs, "batch": BATCH, "features": FEATURES, "width": WIDTH}
    result: dict[str, Any] = {"environment": environment(), "settings": settings}
    result |= {"times": [], "runs": []}
    if arguments.out.exists():
        result |= {k: json.loads(arguments.out.read_text())[k] for k in ("times", "runs")}
    arms = list(ARMS)
    try:
        import swimnetworks  # noqa: F401
    except ImportError:
        arms = [arm for arm in ARMS if not arm.startswith("swim")]
        print("swimnetworks is not installed: its arms are left out")
    for rows in arguments.generated:
        if rows in [entry["rows"] for entry in result["times"]]:
            continue
        train, test = generated(rows, seed=0)
        tries = [heads(train, test, seed=0) for _ in range(3)]
        best = {key: min(x[key] for x in tries) for key in tries[0]}
        result["times"].append({"rows": rows, **best})
        store(result, arguments.out)
    data = np.load(Path(folder) / "uci_regression.npz")
    names = arguments.tables or [key[:-2] for key in data.files if key.endswith("_x")]
    done = {(run["table"], run["split"]) for run in result["runs"]}
    for name in names:
        if all((name, split) in done for split in range(arguments.splits)):
            continue
        x, y, test_rows = (data[f"{name}_{part}"] for part in ("x", "y", "test"))
        splits = [standardized(x, y, test_rows[:, i]) for i in range(arguments.splits)]
        rate = choose_rate([train for train, _ in splits[:3]], arguments.epochs)
        for split, (train, test) in enumerate(splits):
            if (name, split) in done:
                continue
            run: dict[str, Any] = {"table": name, "split": split, "rows": len(x), "rate": rate}
            run["heads"] = heads(train, test, split)
            run["networks"] = networks(train, test, rate, arguments.epochs, split, arms)
            result["runs"].append(run)
            store(result, arguments.out)
            print(f"{name}, split {split}", flush=True)
    print(summarize(result))


if __name__ == "__main__":
    main()
