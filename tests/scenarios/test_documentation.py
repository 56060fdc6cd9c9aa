"""README and docs/: their code runs, prints what stands below it, and the reference is whole."""

from __future__ import annotations

import pydoc
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import documentation
import pytest
import torch
from documentation import PAGES, ROOT

import sylvinit

RUN = [page for page in PAGES if any(block.path is None for block in documentation.blocks(page))]


@pytest.mark.parametrize("page", RUN)
def test_code_of_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in documentation.needs(page):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # some write pictures
    names = documentation.run(page)
    if page == "docs/solver.md":
        a, x = names["a"] / 4, names["x"]  # of the last block
        torch.testing.assert_close(x - a @ x @ a.mT, torch.eye(2))
    if page == "docs/targets.md":
        assert names["explained"] > 0.5
        assert names["loss"] < names["zero"]


def test_code_that_does_not_run_and_other_output_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PAGES, "a", "```python\nprint(1, 'a')\n```\n```text\n2 a\n```\n")
    documentation.run("a")  # numbers may differ
    monkeypatch.setitem(PAGES, "b", PAGES["a"].replace("2 a", "2 b"))
    with pytest.raises(AssertionError, match="1 a"):
        documentation.run("b")
    monkeypatch.setitem(PAGES, "c", "<!-- python\nx = 1\n-->\n```python\nx / 0\n```\n")
    with pytest.raises(ZeroDivisionError):
        documentation.run("c")


# -------------------------------------------------------------------------------------- reference


def located(name: str) -> Any:
    """What a path means to mkdocstrings: a module where there is one of that name."""
    head, _, last = name.rpartition(".")
    module = sys.modules.get(head)
    return getattr(module, last) if isinstance(module, ModuleType) else pydoc.locate(name)


def documented() -> list[str]:
    """Every path that the reference shows, members of modules included."""
    found: list[str] = []
    for page, text in PAGES.items():
        if not page.startswith("docs/reference/"):
            continue
        for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", text, re.MULTILINE):
            found.append(name)
            members = re.search(r"members:\s*(\[[^\]]*\]|(?:\n\s+- \w+)+)", options)
            names = re.findall(r"\w+", members[1]) if members else []
            found += [f"{name}.{member}" for member in names]
    return found


@pytest.mark.parametrize(
    "module", [sylvinit, sylvinit.correlated, sylvinit.diagnostics, sylvinit.priors]
)
def test_the_reference_has_every_public_name(module: ModuleType) -> None:
    shown = [located(name) for name in documented()]
    for name in module.__all__:
        if name == "__version__":
            assert "sylvinit.__version__" in documented()
        else:
            value = getattr(module, name)
            assert sum(value is other for other in shown) == 1, name


def test_the_reference_index_names_what_is_there() -> None:
    index = PAGES["docs/reference/index.md"]
    modules = {"correlated", "diagnostics", "errors", "priors", "__version__"}
    for name in set(sylvinit.__all__) - modules:
        assert f"`{name}`" in index, name


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES:
        if page.startswith("docs/"):
            assert page.removeprefix("docs/") in navigation, page
