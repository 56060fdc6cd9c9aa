"""The packages of bench/experiments, which runs as a script with its own folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = str(Path(__file__).parents[2] / "bench" / "experiments")
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)
