"""The scripts in examples/ and the code in the docs that show them do what is written there."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import documentation
import pytest
from documentation import PAGES, ROOT, shape

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EXCERPTS = [block for page in PAGES for block in documentation.blocks(page) if block.path]


def test_every_example_is_documented() -> None:
    assert {block.path for block in EXCERPTS} == {f"examples/{path.name}" for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("error::sylvinit.errors.SylvinitWarning")
def test_example(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
):
    """What holds for every seed of an example is seen on its first; on all with --thorough."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    if hasattr(example, "SEEDS") and not request.config.getoption("thorough"):
        example.SEEDS = 1
    picture = tmp_path / "picture.png"
    arguments = [str(picture)] if inspect.signature(example.main).parameters else []
    example.main(*arguments)  # fails where a claim does not hold
    printed = shape(capsys.readouterr().out)
    assert printed in {shape(block.output) for block in EXCERPTS if block.output}
    assert picture.exists() == (ROOT / "docs" / f"{path.stem}.png").exists()


def test_excerpts_are_those_of_the_examples() -> None:
    for block in EXCERPTS:
        assert block.code in (ROOT / str(block.path)).read_text(encoding="utf-8")
