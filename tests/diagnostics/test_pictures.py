from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diagnostics_helpers import batches, loss, make_model

from sylvinit.diagnostics import Record, draw_layers, draw_record, monitor
from sylvinit.diagnostics.pictures import _curve
from sylvinit.errors import DataError, OptionError, OptionTypeError
from sylvinit.report.drawing import MissingMatplotlibError


def trained(seed: int = 0, epochs: int = 2, **options: Any) -> Record:
    model = make_model(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with monitor(model, **options) as record:
        for epoch in range(max(epochs, 1)):
            for x, y in batches(3, seed):
                optimizer.zero_grad()
                loss(model, x, y).backward()
                optimizer.step()
            if epochs:
                record.end_epoch(accuracy=epoch / 2)
    return record


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written."""
    from matplotlib.figure import Figure

    written, save = [], Figure.savefig

    def remember(figure: Any, *arguments: Any, **keywords: Any) -> None:
        written.append(figure)
        save(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", remember)
    return written


def titles(figure: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def test_record_over_epochs(tmp_path: Path, figures: list[Any]) -> None:
    groups = {"first": [trained(0, 3), trained(1, 2)], "second": trained(2, 3)}
    draw_record(groups, tmp_path / "record.png")
    assert (tmp_path / "record.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    figure = figures[0]
    assert titles(figure) == ["Gradient sign changes", "Gradient magnitude", "Accuracy"]
    changes, _, accuracy = figure.axes
    assert changes.get_xlabel() == "epoch"
    assert changes.get_ylabel() == "entries whose sign changed (%)"
    expected = 100 * groups["second"].epochs[0]["sign_changes"]
    assert changes.lines[1].get_ydata()[0] == pytest.approx(expected, rel=1e-15)
    assert list(accuracy.lines[0].get_ydata()) == [0.0, 0.5, 1.0]
    assert len(changes.collections) == 1  # the area of the only group with two seeds
    assert [text.get_text() for text in figure.legends[0].texts] == ["first", "second"]


def test_record_over_updates(tmp_path: Path, figures: list[Any]) -> None:
    record = trained(epochs=0, features="2")
    draw_record(record, str(tmp_path / "record.svg"))
    assert "<svg" in (tmp_path / "record.svg").read_text()
    assert titles(figures[0])[2] == "Effective rank of the features"
    assert figures[0].axes[0].get_xlabel() == "update"
    assert list(figures[0].axes[1].lines[0].get_ydata()) == record.history()["gradient_magnitude"]
    assert figures[0].legends == []


def test_curve_of_runs_of_different_lengths() -> None:
    runs = [{1: 1.0, 2: 3.0, 3: 5.0}, {1: 2.0, 2: math.nan}, {1: 6.0, 2: math.inf}]
    curve = _curve(runs)
    assert curve.x == [1, 2, 3]
    assert curve.mean == [3.0, 3.0, 5.0]
    assert curve.deviation[0] == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / (3 - 1)
    assert all(math.isnan(value) for value in curve.deviation[1:])


def test_layers(tmp_path: Path, figures: list[Any]) -> None:
    record = trained()
    draw_layers(record, tmp_path / "layers")  # without a suffix
    assert (tmp_path / "layers").read_bytes()[:4] == b"\x89PNG"
    activations, gradients, dead = figures[0].axes
    assert (activations.get_xscale(), gradients.get_xscale(), dead.get_xscale()) == (
        "log",
        "log",
        "linear",
    )
    assert [label.get_text() for label in activations.get_yticklabels()] == ["0", "2"]
    for axes, column in ((activations, "activation_variance"), (gradients, "gradient_variance")):
        layers = [layer[column] for layer in record.history()["layers"].values()]
        first, last = axes.lines[-2:]
        assert list(first.get_xdata()) == [layer[0] for layer in layers]
        assert list(last.get_xdata()) == [layer[-1] for layer in layers]
    labels = [text.get_text() for text in figures[0].legends[0].texts]
    assert labels == ["first recorded update (0)", "last recorded update (5)"]


def test_layers_whose_variance_is_zero_or_unknown(tmp_path: Path, figures: list[Any]) -> None:
    model = make_model()
    torch.nn.init.zeros_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    optimizer = torch.optim.SGD(model[2].parameters(), 0.1)
    with monitor(model) as record:
        model(next(batches(1))[0])
        optimizer.step()
    draw_layers(record, tmp_path / "layers.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["0", "0"]


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        ([1], OptionTypeError, "records must be a Record or a mapping"),
        ({"a": 1}, OptionTypeError, "records: 'a' must be a Record or a list of Records"),
        ({"a": [1]}, OptionTypeError, "records: 'a' must be a Record or a list of Records"),
        ({}, OptionError, "at least one Record"),
        ({"a": []}, OptionError, "at least one Record"),
    ],
)
def test_bad_records(tmp_path: Path, records: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw_record(records, tmp_path / "a.png")


def test_nothing_to_draw(tmp_path: Path) -> None:
    with monitor(make_model()) as empty:
        pass
    with pytest.raises(DataError, match="expected updates or epochs, got none"):
        draw_record(empty, tmp_path / "a.png")
    with pytest.raises(DataError, match="expected statistics of layers, got none"):
        draw_layers(trained(activations=False), tmp_path / "a.png")
    with pytest.raises(OptionTypeError, match="record must be a Record, got dict"):
        draw_layers({"a": empty}, tmp_path / "a.png")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"path: expected a suffix of .*'png'"):
        draw_record(trained(), tmp_path / "a.picture")
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, real_import = trained(), builtins.__import__

    def without_matplotlib(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    for draw in (draw_record, draw_layers):
        with pytest.raises(MissingMatplotlibError, match=r"pip install 'sylvinit\[plot\]'"):
            draw(record, tmp_path / "a.png")
