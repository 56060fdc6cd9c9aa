"""The scripts in examples/ and the code in the docs that show them do what is written there."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = {name: (ROOT / "docs" / name).read_text("utf-8") for name in ("solver.md", "targets.md")}
FENCE = re.compile(r"(<!-- from (?P<path>\S+) -->\n)?```python\n(?P<code>.*?)```\n", re.DOTALL)
OUTPUT = re.compile(r"```text\n(.*?)```", re.DOTALL)


def shape(text: str) -> str:
    """A text with its numbers taken out: digits differ between machines."""
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", text)


def test_every_example_is_documented():
    blocks = (block["path"] for text in PAGES.values() for block in FENCE.finditer(text))
    assert {path for path in blocks if path} == {f"examples/{path.name}" for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("error::sylvinit.errors.SylvinitWarning")
def test_example(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [str(path), str(picture)])
    runpy.run_path(str(path), run_name="__main__")  # fails where a claim does not hold
    printed = shape(capsys.readouterr().out)
    assert printed in {shape(text) for page in PAGES.values() for text in OUTPUT.findall(page)}
    assert picture.exists() == (ROOT / "docs" / f"{path.stem}.png").exists()


def test_excerpts_are_those_of_the_examples():
    for text in PAGES.values():
        for block in FENCE.finditer(text):
            if block["path"]:
                assert block["code"] in (ROOT / block["path"]).read_text(encoding="utf-8")


def run_documented(page: str) -> dict[str, Any]:
    """The names that the code of a page leaves, one block after the other."""
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in FENCE.finditer(PAGES[page]):
            if not block["path"]:
                exec(compile(block["code"], f"docs/{page}", "exec"), names)
    return names


def test_documented_code_of_the_solver_runs():
    names = run_documented("solver.md")
    a, x = names["a"] / 4, names["x"]  # of the last block
    torch.testing.assert_close(x - a @ x @ a.mT, torch.eye(2))


def test_documented_code_of_targets_runs():
    names = run_documented("targets.md")
    assert names["explained"] > 0.5
    assert names["loss"] < names["zero"]
