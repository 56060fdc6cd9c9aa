from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from sylvinit import cli
from sylvinit.demo import experiment


def test_demo_writes_picture_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "_VIEWED_SAMPLES", 60)  # t-SNE takes seconds for all of them
    out = tmp_path / "new" / "folder"
    assert cli.main(["demo", "--out", str(out), "--seeds", "1", "--epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert "solved head" in captured.out
    assert re.search("auto chose, seed by seed: (own|best)", captured.out)
    assert str(out / "sylvinit-demo.png") in captured.out
    assert captured.err.count("before training") == 3  # progress, a line for each training
    assert json.loads((out / "sylvinit-demo.json").read_text())["task"]["epochs"] == 1
    assert (out / "sylvinit-demo.png").stat().st_size > 20_000
    assert logging.getLogger("sylvinit").handlers in ([], [logging.NullHandler])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--data", "."], "neither data_batch_"),
        (["--model", "timm:resnet18"], "model: expected a folder of images"),
    ],
)
def test_demo_reports_errors_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
