"""The pages of the documentation, and the code in them.

A page's blocks of Python run one after the other with the names of those before. In front of them:

``<!-- from PATH -->``    the block is an excerpt of that file, which is run by itself
``<!-- needs: a, b -->``  packages without which the page is skipped
``<!-- python ... -->``   code that runs and is not shown

A block of text right behind one of Python is what that prints.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
_BLOCK = re.compile(
    r"(<!-- from (?P<path>\S+) -->\n)?```python\n(?P<code>.*?)```\n"
    r"(\n*```text\n(?P<output>.*?)```)?"
    r"|<!-- python\n(?P<hidden>.*?)-->\n",
    re.DOTALL,
)


class Block(NamedTuple):
    """Code of a page, where it comes from if it is an excerpt, and what it prints."""

    code: str
    path: str | None
    output: str | None


def blocks(page: str) -> list[Block]:
    return [
        Block(found["code"] or found["hidden"], found["path"], found["output"])
        for found in _BLOCK.finditer(PAGES[page])
    ]


def needs(page: str) -> list[str]:
    found = re.search(r"<!-- needs: (.+) -->", PAGES[page])
    return re.split(r",\s*", found[1]) if found else []


def shape(text: str) -> str:
    """A text without its numbers and without how wide columns are: digits differ on machines."""
    text = re.sub(r"(?:(?<=\s)-)?\d+(\.\d+)?(e[-+]?\d+)?", "#", text)
    return "\n".join(" ".join(re.sub("-{3,}", "---", line).split()) for line in text.splitlines())


def run(page: str) -> dict[str, Any]:
    """Run the code of a page, and return the names that it leaves."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks(page):
            if block.path is not None:
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.code, page, "exec"), names)
            if block.output is not None:
                assert shape(printed.getvalue()) == shape(block.output), printed.getvalue()
    return names
