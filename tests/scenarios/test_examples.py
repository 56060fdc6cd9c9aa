"""The scripts in examples/ and the code in docs/solver.md do what is written there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCUMENTATION = (ROOT / "docs" / "solver.md").read_text(encoding="utf-8")
FENCE = re.compile(r"(<!-- from (?P<path>\S+) -->\n)?```python\n(?P<code>.*?)```\n", re.DOTALL)
OUTPUT = re.compile(r"```text\n(.*?)```", re.DOTALL)


def shape(text: str) -> str:
    """A text with its numbers taken out: digits differ between machines."""
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", text)


def test_every_example_is_documented():
    named = {block["path"] for block in FENCE.finditer(DOCUMENTATION) if block["path"]}
    assert named == {f"examples/{path.name}" for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("error::sylvinit.errors.SylvinitWarning")
def test_example(path: Path, capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(path), run_name="__main__")  # fails where a claim does not hold
    printed = shape(capsys.readouterr().out)
    assert printed in {shape(text) for text in OUTPUT.findall(DOCUMENTATION)}


def test_excerpts_are_those_of_the_examples():
    for block in FENCE.finditer(DOCUMENTATION):
        if block["path"]:
            assert block["code"] in (ROOT / block["path"]).read_text(encoding="utf-8")


def test_documented_code_runs():
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in FENCE.finditer(DOCUMENTATION):
            if not block["path"]:
                exec(compile(block["code"], "docs/solver.md", "exec"), names)
    assert names["x"].shape == (5, 4, 6)
