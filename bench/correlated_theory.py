"""What holds of the second paper's formulas, by simulation: step 4, table 1, theorem 3.1.

    SYLVINIT_DATA=DIR python bench/correlated_theory.py [--out bench/results/correlated_theory.json]

Without SYLVINIT_DATA the rows on CIFAR-10 patches are left out. Prints three tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

import torch
from environment import environment
from theory import single_filter
from theory.propagation import propagated_variance, simulated_variance
from torch import Tensor

import sylvinit
from sylvinit.correlated import output_variance
from sylvinit.io.datasets import load_cifar10, normalize_cifar10
from sylvinit.priors.strength import factor

DRAWS = 1_000_000


def cifar_correlation() -> Tensor | None:
    """Correlation about zero of the pixels of 3 x 3 patches of normalized CIFAR-10 images."""
    folder = os.environ.get("SYLVINIT_DATA")
    if not folder:
        return None
    images = normalize_cifar10(load_cifar10(folder, train=True).inputs)
    moments = sylvinit.patch_moments(images, 3, groups=3)
    mean = moments.mean()
    second = (moments.covariance() + mean[:, :, None] * mean[:, None, :]).mean(dim=0)
    scale = second.diagonal().rsqrt()
    return second * scale * scale[:, None]


def scaling_rules() -> list[dict[str, Any]]:
    """E[y^2] / E[x^2] of one filter, gain 1, by ways to read step 4 of algorithm 1."""
    corr = sylvinit.priors.load("resnet10-cifar10") * 1.0
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(DRAWS, 9, dtype=torch.float64, generator=generator)
    drawn = white @ factor(corr).mT
    total = drawn.sum(dim=1)
    inputs = {
        "white": torch.eye(9, dtype=torch.float64),
        "CIFAR-10 patches": cifar_correlation(),
        "equal pixels": torch.ones(9, 9, dtype=torch.float64),
    }
    rules = {
        "sum of R (eq. 17)": corr.sum().expand(DRAWS),
        "sum of S (step 4 as printed)": total,  # half of them negative: no square root
        "|sum of S|": total.abs(),
        "(sum of S)^2": total.square(),
        "k^2 (Kaiming)": torch.full_like(total, 9.0),
    }
    rows: list[dict[str, Any]] = []
    for rule, variance in rules.items():
        row: dict[str, Any] = {"rule": rule, "not real": float((variance < 0).double().mean())}
        kept = variance > 0
        filters = drawn[kept] / variance[kept].sqrt()[:, None]
        for label, matrix in inputs.items():
            if matrix is None:
                continue
            ratio = ((filters @ matrix) * filters).sum(dim=1)
            row[label] = {
                "mean": float(ratio.mean()),
                "mean of the first half": float(ratio[: len(ratio) // 2].mean()),
                "median": float(ratio.median()),
                "largest": float(ratio.max()),
            }
        if rule.startswith("sum of R"):
            row["expected"] = {
                label: output_variance(corr, matrix, gain=1.0)
                for label, matrix in inputs.items()
                if matrix is not None
            }
        rows.append(row)
    return rows


def table_1() -> list[dict[str, Any]]:
    """The four cases, filters of 3 x 3 and He's variance 2 / 9, up to four layers."""
    rows = []
    for inputs, weights in itertools.product(("equal", "independent"), repeat=2):
        for layers in (1, 2, 3, 4):
            case = {"inputs": inputs, "weights": weights, "weight_variance": 2 / 9}
            generator = torch.Generator().manual_seed(layers)
            found, error = simulated_variance(
                3, layers, **case, draws=4 * DRAWS, generator=generator
            )
            first = propagated_variance(3, 1, **case)
            power = 2 if (inputs, weights) == ("equal", "equal") else 1
            rows.append(
                {
                    "case": {"ee": "A", "ei": "B", "ie": "C", "ii": "D"}[inputs[0] + weights[0]],
                    "layers": layers,
                    "simulated": found,
                    "standard_error": error,
                    "derived": propagated_variance(3, layers, **case),
                    # eta k^(2 l) and eta k^l with eta = Var[y_1] (Var[w] / 2)^l, as printed.
                    "printed": first * (3**power / 9) ** layers,
                }
            )
    return rows


def theorem_3_1() -> dict[str, Any]:
    """Gradient descent on the paper's construction against eqs. 3 and 4, derived and printed."""
    distances = [0.5, 0.3, 0.6, 0.2]
    start = [0.6, 0.05, 0.04, 0.1]
    case = {"rate": 0.05, "steps": 200}
    found = single_filter.gradient_descent(start, distances, **case)
    derived = single_filter.closed_form(start, distances, **case)
    printed = single_filter.printed(start, distances, **case)
    return {
        "distances": distances,
        "start": start,
        **case,
        "all active throughout": all(single_filter.all_active(w, distances) for w in found),
        "largest error of eqs. 3 and 4 as derived": float((found - derived).abs().max()),
        "largest error of eq. 3 as printed": float((found - printed)[:, 0].abs().max()),
        "largest error of eq. 4 as printed": float((found - printed)[:, 1:].abs().max()),
        "last weights": found[-1].tolist(),
        "last weights as printed": printed[-1].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {
        "environment": environment(),
        "draws": DRAWS,
        "scaling": scaling_rules(),
        "table 1": table_1(),
        "theorem 3.1": theorem_3_1(),
    }
    print(f"E[y^2] / E[x^2] of {DRAWS} filters, by the divisor of step 4: mean, median, largest")
    for row in result["scaling"]:
        print(f"{row['rule']}: no real number {row['not real']:.0%}")
        for label, values in row.items():
            if isinstance(values, dict) and label != "expected":
                numbers = "  ".join(f"{values[k]:.4g}" for k in ("mean", "median", "largest"))
                print(f"    {label:<18}{numbers}")
    print(f"variances of {4 * DRAWS} networks of table 1")
    for row in result["table 1"]:
        print(
            f"    {row['case']}, {row['layers']} layers: simulated {row['simulated']:.4g} ± "
            f"{row['standard_error']:.2g}, derived {row['derived']:.4g}, printed "
            f"{row['printed']:.4g}"
        )
    print("theorem 3.1")
    for key, value in result["theorem 3.1"].items():
        values = value if isinstance(value, list) else [value]
        shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
        print(f"    {key}: {', '.join(shown)}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
