"""The benchmark of regression heads: its data, its arms, and that runs are not repeated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import targets_tables
import torch


def table(rows: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs in unlike units, one constant, a target of the first two, and which rows test."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 4)) * [1, 1000, 1, 0] + [0, 5, 0, 3]
    y = 20 * x[:, 0] - x[:, 1] / 50 + 7
    test = np.zeros((rows, 2), dtype=bool)
    test[:30, 0] = test[30:60, 1] = True
    return x.astype(np.float32), y.astype(np.float32), test


def test_rows_are_standardized_by_the_training_rows() -> None:
    x, y, test = table()
    (inputs, targets), (others, _) = targets_tables.standardized(x, y, test[:, 0])
    assert inputs.shape == (60, 4)
    assert others.shape == (30, 4)
    # float32 rounding of 60 values of order 1.
    assert inputs.mean(dim=0).tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert inputs.std(dim=0, correction=0).tolist() == pytest.approx([1, 1, 1, 0], abs=1e-5)
    assert float(targets.std(correction=0)) == pytest.approx(1, abs=1e-5)
    expected = (x[0, 1] - x[30:, 1].mean()) / x[30:, 1].std()
    assert float(others[0, 1]) == pytest.approx(float(expected), rel=1e-4)


def test_heads_of_a_linear_target() -> None:
    x, y, test = table(600)
    found = targets_tables.heads(*targets_tables.standardized(x, y, test[:, 0]), seed=0)
    assert found["sylvinit"] == pytest.approx(found["RidgeCV"], abs=0.01)
    assert found["RidgeCV"] > 0.98


def test_a_network_gets_the_weights_of_swimnetworks() -> None:
    swim = pytest.importorskip("swimnetworks")
    x, y, test = table()
    rows, _ = targets_tables.standardized(x, y, test[:, 0])
    model = targets_tables.perceptron(4, [8, 6], seed=0)
    targets_tables.swim_(model, rows, seed=3)
    inputs, targets = (values.double().numpy() for values in rows)
    for width, seed in ((8, 3), (6, 4)):
        layer = swim.Dense(layer_width=width, activation="relu", random_seed=seed)
        inputs = layer.fit_transform(inputs, targets)
    expected = swim.Linear().fit_transform(inputs, targets)
    # float32 weights of pairs of close rows are large, and so is what rounding they make.
    torch.testing.assert_close(
        model(rows[0]).detach().double(), torch.from_numpy(expected), atol=1e-3, rtol=1e-3
    )


def test_runs_are_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, test = table()
    np.savez(tmp_path / "uci_regression.npz", some_x=x, some_y=y, some_test=test)
    monkeypatch.setenv("SYLVINIT_DATA", str(tmp_path))
    out = tmp_path / "out.json"
    arguments = ["", "--out", str(out), "--updates", "2", "--generated", "--splits"]
    monkeypatch.setattr("sys.argv", [*arguments, "1"])
    targets_tables.main()
    first = json.loads(out.read_text())
    assert [len(first[kind]) for kind in ("heads", "networks")] == [1, 1]
    monkeypatch.setattr("sys.argv", [*arguments, "2"])
    targets_tables.main()
    second = json.loads(out.read_text())
    for kind in ("heads", "networks"):
        assert second[kind][:1] == first[kind]
        assert [run["split"] for run in second[kind]] == [0, 1]


def test_summary_pairs_the_splits() -> None:
    heads = [
        {"table": "t", "split": i, "rows": 10, "sylvinit": 0.5 + i, "RidgeCV": 0.5 + i - gap}
        for i, gap in enumerate((0.01, 0.03))
    ]
    result = {"heads": heads, "times": [], "rates": {}, "networks": []}
    # t(0.975, 1) = 12.706, s / sqrt(2) of (0.01, 0.03) is 0.01.
    assert "| t (10) | 1.000 | 0.980 | +0.020 ± 0.127 | +0.0100 |" in targets_tables.summarize(
        result
    )
