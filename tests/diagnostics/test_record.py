from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from diagnostics_helpers import batches, loss, make_model

from sylvinit.diagnostics import Record, monitor
from sylvinit.diagnostics import record as record_module
from sylvinit.errors import OptionError, OptionTypeError


def trained(epochs: tuple[int, ...], every: int = 1, features: str | None = None) -> Record:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with monitor(model, every=every, features=features) as record:
        for epoch, steps in enumerate(epochs):
            for x, y in batches(steps, seed=epoch):
                optimizer.zero_grad()
                loss(model, x, y).backward()
                optimizer.step()
            record.end_epoch(accuracy=epoch / 4)
    return record


def test_epochs_are_means_of_the_updates_between_them() -> None:
    record = trained((3, 0, 4), features="2")
    history = record.history()
    assert [row["epoch"] for row in record.epochs] == [1, 2, 3]
    assert [row["updates"] for row in record.epochs] == [3, 0, 4]
    assert [row["accuracy"] for row in record.epochs] == [0.0, 0.25, 0.5]
    for column in ("sign_changes", "gradient_magnitude", "effective_rank"):
        first, none, last = (row[column] for row in record.epochs)
        values = history[column]
        assert first == pytest.approx(np.nanmean(values[:3]), rel=1e-15)
        assert math.isnan(none)
        assert last == pytest.approx(np.mean(values[3:]), rel=1e-15)


def test_epochs_count_recorded_updates() -> None:
    record = trained((3, 4), every=2)
    assert record.history()["update"] == [0, 2, 4, 6]
    assert [row["updates"] for row in record.epochs] == [2, 2]
    assert record.updates == 7


def test_end_epoch_returns_its_row_and_works_after_the_block() -> None:
    record = trained((1,))
    row = record.end_epoch(accuracy=torch.tensor(0.5), loss=np.float32(2), samples=7)
    assert row is record.epochs[-1]
    assert (row["accuracy"], row["loss"], row["samples"]) == (0.5, 2.0, 7.0)
    assert row["updates"] == 0


def test_reading_early_and_often_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained((5, 6)).to_json()
    monkeypatch.setattr(record_module, "_KEPT_ON_DEVICE", 2)
    assert trained((5, 6)).to_json() == expected


def test_json_has_null_for_nan() -> None:
    record = trained((2, 1))
    record.end_epoch(accuracy=math.inf)
    values = json.loads(record.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert values == record.to_dict()
    assert values["history"]["sign_changes"][0] is None
    assert values["epochs"][2]["accuracy"] is None
    assert values["every"] == 1
    assert values["updates"] == 3
    assert values["units"] == {"0": 6, "2": 3}
    layers = values["history"]["layers"]
    assert {len(column) for layer in layers.values() for column in layer.values()} == {3}


def test_table() -> None:
    record = trained((2, 1))
    lines = str(record).splitlines()
    titles = ("layer", "activation variance", "gradient variance", "dead units")
    assert lines[0].split() == " ".join(titles).split()
    assert [line.split()[0] for line in lines[2:4]] == ["0", "2"]
    variance = record.history()["layers"]["0"]["activation_variance"][-1]
    assert f"{variance:.4g}" in lines[2]
    assert lines[2].endswith(" of 6")
    assert lines[4].startswith("above and here: update 2 (the first is 0): sign changes ")
    assert lines[5].startswith("epoch 1, means of ")
    with monitor(make_model()) as empty:
        assert str(empty) == "no update recorded"


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"sign_changes": 1.0}, OptionError, "'sign_changes' is a column of the record"),
        ({"epoch": 1.0}, OptionError, "'epoch' is a column of the record"),
        ({"layers": 1.0}, OptionError, "'layers' is a column of the record"),
        ({"accuracy": "0.5"}, OptionTypeError, "accuracy must be a number, got str"),
        ({"accuracy": [0.5, 0.6]}, OptionTypeError, "accuracy must be a number, got list"),
        ({"accuracy": torch.ones(2)}, OptionTypeError, "accuracy must be a number, got Tensor"),
    ],
)
def test_bad_values(values: dict, error: type[Exception], message: str) -> None:
    record = trained((1,))
    with pytest.raises(error, match=message):
        record.end_epoch(**values)
    assert len(record.epochs) == 1
