"""Regression on tables: ridge heads beside scikit-learn's, and networks from initialize_.

    OMP_NUM_THREADS=1 SYLVINIT_DATA=DIR python bench/targets_tables.py --out FILE.json
    python bench/targets_tables.py --out bench/results/targets_tables.json --show

DIR contains uci_regression.npz: seven tables, each with ten splits. Inputs and targets are
standardized by the training rows, and R2 is that of the test rows.

Heads: `initialize_head_(head_code="ridge")` and RidgeCV with 19 ridges, both on 512 random ReLU
features. None of the tables has 15,000 rows: processor seconds are those of generated ones, a
random network of 19 normal inputs with noise, best of three; RidgeCV is given its features.

Networks: two hidden layers of 128 ReLU units, before and after 200 updates of AdamW. The rate of a
table is the one at which PyTorch's own start comes out best on validation rows, a fifth of the
training rows of the first two splits; all arms train at it, on the same batches. swimnetworks (on
PyPI) with its default settings is an arm where it is installed. Runs that the file holds already
are not repeated; it is written after every run, --show prints the tables from it alone.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
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
UPDATES, BATCH = 200, 64
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


ARMS: dict[str, Callable[[nn.Sequential, Rows, int], object]] = {
    OWN: lambda model, rows, seed: None,
    "own start, ridge head": _solved_head,
    "initialize_": lambda model, rows, seed: sylvinit.initialize_(
        model, rows, preset="best", seed=seed
    ),
    "initialize_, ridge head": lambda model, rows, seed: sylvinit.initialize_(
        model, rows, preset="best", head_code="ridge", seed=seed
    ),
    "swimnetworks": swim_,
}


def train_(model: nn.Module, rows: Rows, rate: float, updates: int, seed: int) -> None:
    """Least squares with AdamW; the order of the rows depends on the seed alone."""
    x, y = rows
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    batches: list[Tensor] = []
    for _ in range(updates):
        batches = batches or list(torch.randperm(len(x), generator=generator).split(BATCH))
        batch = batches.pop()
        optimizer.zero_grad()
        functional.mse_loss(model(x[batch]), y[batch]).backward()
        optimizer.step()


def choose_rate(trainings: Sequence[Rows], updates: int) -> float:
    """The rate of highest mean R2 of the own start on validation rows, a fifth of each of these."""
    means = []
    for rate in RATES:
        values = []
        for seed, (x, y) in enumerate(trainings):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            kept, out = order[len(x) // 5 :], order[: len(x) // 5]
            model = perceptron(x.shape[1], [WIDTH, WIDTH], seed)
            train_(model, (x[kept], y[kept]), rate, updates, seed)
            values.append(r2(model, (x[out], y[out])))
        means.append(estimate(values).mean)
    return RATES[int(np.argmax(means))]


def networks(
    train: Rows, test: Rows, rate: float, updates: int, seed: int, arms: Sequence[str]
) -> dict[str, dict[str, float]]:
    """R2 of every arm before and after training, from the same random weights."""
    start = perceptron(train[0].shape[1], [WIDTH, WIDTH], seed)
    found = {}
    for arm in arms:
        model = copy.deepcopy(start)
        ARMS[arm](model, train, seed)
        before = r2(model, test)
        train_(model, train, rate, updates, seed)
        found[arm] = {"before": before, "after": r2(model, test)}
    return found


# --------------------------------------------------------------------------------------- the tables


def summarize(result: dict[str, Any]) -> str:
    """The stored runs as Markdown."""
    lines = ["| table (rows) | ridge head | RidgeCV | difference | smallest |", "|---" * 5 + "|"]
    for table, runs in _by_table(result["heads"]).items():
        ours, theirs = (
            {i: run[name] for i, run in runs.items()} for name in ("sylvinit", "RidgeCV")
        )
        smallest = min(ours[i] - theirs[i] for i in runs)
        means = " | ".join(f"{estimate(list(x.values())).mean:.3f}" for x in (ours, theirs))
        rows = next(iter(runs.values()))["rows"]
        lines.append(f"| {table} ({rows:,}) | {means} | {_gap(ours, theirs)} | {smallest:+.4f} |")
    lines += [
        "",
        "| generated rows | ridge head: R2, s | RidgeCV: R2, s | time |",
        "|---" * 4 + "|",
    ]
    for run in result["times"]:
        cells = [f"{run[x]:.4f}, {run[f'{x}_seconds']:.2f}" for x in ("sylvinit", "RidgeCV")]
        share = run["sylvinit_seconds"] / run["RidgeCV_seconds"]
        lines.append(f"| {run['rows']:,} | {' | '.join(cells)} | {share:.0%} |")
    tables = _by_table(result["networks"])
    arms = [arm for arm in ARMS if any(arm in run["arms"] for run in result["networks"])]
    for moment in ("before", "after"):
        lines += ["", f"| R2 {moment} training (rate; splits) | " + " | ".join(arms) + " |"]
        lines.append("|---" * (len(arms) + 1) + "|")
        for table, runs in tables.items():
            values = {
                arm: {i: run["arms"][arm][moment] for i, run in runs.items() if arm in run["arms"]}
                for arm in arms
            }
            cells = [f"{estimate(list(values[OWN].values())).mean:.3f}"]
            cells += [_gap(values[arm], values[OWN]) for arm in arms if arm != OWN]
            rate = result["rates"][table]
            lines.append(f"| {table} ({rate:g}; {len(runs)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_table(runs: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(run["table"], {})[run["split"]] = run
    return found


def _gap(first: dict[int, float], second: dict[int, float]) -> str:
    """Mean difference over the common splits, with its interval."""
    paired = compare(first, second)
    if paired is None:
        return "-"
    mean, half = paired.gap.mean, paired.gap.half
    digits = 3 if max(abs(mean), abs(half)) < 10 else 0
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def store(result: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tables", nargs="+", help="default: all")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--updates", type=int, default=UPDATES)
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
    arms = list(ARMS)
    if importlib.util.find_spec("swimnetworks") is None:
        arms.remove("swimnetworks")
        print("swimnetworks is not installed: that arm is left out")
    settings = {"updates": arguments.updates, "batch": BATCH, "features": FEATURES, "width": WIDTH}
    result: dict[str, Any] = {"environment": environment(), "settings": settings}
    result |= {"times": [], "heads": [], "rates": {}, "networks": []}
    if arguments.out.exists():
        stored = json.loads(arguments.out.read_text())
        result |= {key: stored[key] for key in ("times", "heads", "rates", "networks")}
    for rows in arguments.generated:
        if rows in [run["rows"] for run in result["times"]]:
            continue
        train, test = generated(rows, seed=0)
        tries = [heads(train, test, seed=0) for _ in range(3)]
        best = {key: min(run[key] for run in tries) for key in tries[0]}
        result["times"].append({"rows": rows, **best})
        store(result, arguments.out)
    data = np.load(Path(folder) / "uci_regression.npz")
    names = arguments.tables or [key[:-2] for key in data.files if key.endswith("_x")]
    splits = {
        name: [
            standardized(data[f"{name}_x"], data[f"{name}_y"], test)
            for test in data[f"{name}_test"].T[: arguments.splits]
        ]
        for name in names
    }
    # All tables of a split together, so that a file that is cut short has some of each.
    order = [(split, name) for split in range(arguments.splits) for name in names]
    for kind in ("heads", "networks"):
        done = {(run["split"], run["table"]) for run in result[kind]}
        for split, name in order:
            if (split, name) in done:
                continue
            train, test = splits[name][split]
            run: dict[str, Any] = {"table": name, "split": split}
            if kind == "heads":
                run |= {"rows": len(train[0]) + len(test[0]), **heads(train, test, split)}
            else:
                if name not in result["rates"]:
                    trainings = [rows for rows, _ in splits[name][:2]]
                    result["rates"][name] = choose_rate(trainings, arguments.updates)
                rate = result["rates"][name]
                run["arms"] = networks(train, test, rate, arguments.updates, split, arms)
            result[kind].append(run)
            store(result, arguments.out)
            print(f"{kind}: split {split} of {name}", flush=True)
    print(summarize(result))


if __name__ == "__main__":
    main()
