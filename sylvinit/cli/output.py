"""Standard output."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line, or lines."""
    sys.stdout.write(text + "\n")
