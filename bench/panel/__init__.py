"""The panel that a default has to pass; see __main__.py."""

from __future__ import annotations

import sys
from pathlib import Path

# The modules of bench/experiments find one another by their folder.
_EXPERIMENTS = str(Path(__file__).resolve().parent.parent / "experiments")
if _EXPERIMENTS not in sys.path:
    sys.path.append(_EXPERIMENTS)
