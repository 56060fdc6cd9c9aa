"""bench/zoo.py: processes with limits, runs that go on, the page."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zoo
from zoo_models.table import kind_of_reason, table


def row(name: str, **values: Any) -> dict[str, Any]:
    plain = {
        "name": name,
        "status": "initialized",
        "parameters": 1000,
        "forward_seconds": 0.5,
        "seconds": 2.0,
        "counts": {"solved": 3, "skipped": 1},
        "skipped": {"body.norm": "LayerNorm: no layer type is registered for LayerNorm"},
        "head": "fc",
        "head_status": "solved",
        "head_code": "onehot",
        "largest": 3.0,
        "largest_in": "conv.weight",
        "largest_before": 0.1,
        "finite": True,
        "accuracy": 1.0,
    }
    return plain | values


def cells(page: str, first: str) -> list[str]:
    """Of the line of a table that begins with this cell."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {first} |")]
    assert len(lines) == 1
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_a_process_that_takes_too_long_or_ends_without_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = zoo.measure_apart("timm/resnet18", seconds=0.0, memory=8)
    assert (slow["status"], slow["error"]) == ("not built", "more than 0 s")
    monkeypatch.setattr(zoo, "_limited", os.abort)  # called with arguments it fails: exit code 1
    ended = zoo.measure_apart("timm/resnet18", seconds=60, memory=8)
    assert (ended["status"], ended["error"]) == ("died", "exit code 1")


def test_slow_is_what_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thread(threading.Thread):
        """In place of a process; it says that the model is there, and no more."""

        def __init__(self, target: Any, args: tuple[str, float, Any], daemon: bool) -> None:
            super().__init__(target=lambda: args[2].send(None))
            self.kill = lambda: None

        def start(self) -> None:
            super().start()
            self.join()

    processes = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Thread)
    monkeypatch.setattr(zoo, "_PROCESSES", processes)
    monkeypatch.setattr(multiprocessing.connection.Connection, "close", lambda _: None)
    slow = zoo.measure_apart("timm/resnet18", seconds=0.01, memory=8)
    assert (slow["status"], slow["error"]) == ("too slow", "more than 0.01 s")


def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Library:
        @staticmethod
        def names(most_parameters: int) -> list[str]:
            return ["a", "b", "c"]

    measured: list[str] = []

    def measure_apart(name: str, seconds: float, memory: float) -> dict[str, Any]:
        measured.append(name)
        return {"name": name, "status": "refused", "error": "no"}

    results = tmp_path / "zoo.jsonl"
    results.write_text(json.dumps({"name": "timm/b", "status": "initialized"}) + "\n")
    monkeypatch.setattr(zoo, "library", lambda source: Library)
    monkeypatch.setattr(zoo, "versions", lambda: {"timm": "1"})
    monkeypatch.setattr(zoo, "measure_apart", measure_apart)
    command = ["zoo.py", "run", "--library", "timm", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", command)
    zoo.main()
    assert sorted(measured) == ["timm/a", "timm/c"]
    assert "2/2" in capsys.readouterr().out
    zoo.main()
    assert len(measured) == 2
    monkeypatch.setattr(sys, "argv", [*command, "--again", "--match", "/b"])
    zoo.main()
    assert measured[2:] == ["timm/b"]
    assert zoo.read(results)["timm/b"]["status"] == "refused"


def test_the_page_counts_what_the_rows_say() -> None:
    rows = [
        row("timm/one"),
        row("timm/two", largest=2000.0, seconds=6.0, accuracy=0.5),
        row("timm/three", head=None, head_status=None)
        | {"warnings": ["the head fc is not solved: frozen: 3 tensors"]},
        row("timm/four", status="refused", error="RowLayoutError: layer 'a.b' has 7 rows"),
        row("timm/five", status="refused", error="RowLayoutError: layer 'c' has 9 rows"),
        row("timm/six", status="not built", error="ImportError"),
        row("transformers/text/seven", status="died", error="exit code -9"),
    ]
    page = table(rows, 9)
    assert "6 of 9 networks were tried" in page
    assert "1 could not be built or run by their library here, or are too large, and 2 have" in page
    assert "**2 heads were solved**, 1 were not; 1: frozen: 3 tensors." in page
    assert "The largest weight anywhere is 2,000 (timm/two)" in page
    assert "Left alone were 3 modules:\n    - 3: no layer type" in page
    #             tried, done, refused, ended, heads, solved, right, > 100, > 1,000, largest
    counts = ["5", "3", "2", "0", "2", "2", "75%", "1", "1", "2,000"]
    assert cells(page, "timm")[1:11] == counts
    assert cells(page, "timm")[11:] == ["2.0", "4, 12"]  # medians of 2, 2, 6 s over half a second
    assert cells(page, "transformers text")[1:5] == ["1", "0", "0", "1"]
    left = "no layer type is registered for the type"
    assert cells(page, "3") == ["3", "3", left, "LayerNorm 3"]
    assert "| 1 | timm/three | frozen: 3 tensors |" in page
    assert cells(page, "2")[1].startswith("timm/five, timm/four")
    assert cells(page, "timm/two")[-3:] == ["2e+03 (0.1)", "6.00", "12"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("layer 'a.b' has 7 rows", "layer 'c' has 12 rows"),
        ("blocks.0.attn gives 1,024", "stages.1.mlp gives 5"),
        ("wrong (12 of 3)", "wrong (1 of 4)"),
    ],
)
def test_reasons_differ_by_more_than_names_and_numbers(first: str, second: str) -> None:
    assert kind_of_reason(first) == kind_of_reason(second)
    assert kind_of_reason(first) != kind_of_reason("no " + first)
