"""What mkdocs does not do by itself: links to files of the repository, and formulas as MathML."""

from __future__ import annotations

import html
import posixpath
import re
from typing import Any

from latex2mathml.converter import convert

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\.?/[^)\s]*)\)")
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
_ROLE = re.compile(r":(class|func|meth|data|mod):(?=<code>)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Links that lead out of docs/ lead to the repository, or are names where it has no address."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def outside(found: re.Match[str]) -> str:
        path, _, place = found["target"].partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if path.startswith("docs/"):
            return found[0]
        if not config.repo_url:
            return found["text"] if found["text"] == path else f"{found['text']} (`{path}`)"
        place = f"#{place}" if place else ""
        return f"[{found['text']}]({config.repo_url.rstrip('/')}/blob/main/{path}{place})"

    return _LINK.sub(outside, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas that browsers show without a script; names in docstrings without their roles."""

    def mathml(found: re.Match[str]) -> str:
        display = "block" if found["tag"] == "div" else "inline"
        formula = convert(html.unescape(found["tex"]).strip(), display=display)
        return f'<div class="formula">{formula}</div>' if display == "block" else formula

    return _ROLE.sub("", _FORMULA.sub(mathml, content))
