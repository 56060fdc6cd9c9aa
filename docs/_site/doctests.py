"""Sessions in docstrings, ``>>> ...``, as code; outside of "Examples" they would be quotes."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SESSION = re.compile(r"^(?P<indent> *)>>> .*(\n *\S.*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """For the reference."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put a fence around every session."""
        if obj.docstring is not None:
            obj.docstring.value = _SESSION.sub(
                lambda found: f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```",
                obj.docstring.value,
            )
