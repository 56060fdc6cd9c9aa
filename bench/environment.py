"""What a measurement depends on, stored beside every result."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
import scipy
import sklearn
import torch

import sylvinit

ROOT = Path(__file__).resolve().parent.parent


def csrc_hash() -> str:
    """Of the tracked files of csrc/: the first 16 digits of sha256 over their sorted sha256sum
    lines."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "csrc"], cwd=ROOT, capture_output=True, check=False
    ).stdout
    names = sorted(name for name in listed.decode().split("\0") if name)
    digests = ((hashlib.sha256((ROOT / name).read_bytes()).hexdigest(), name) for name in names)
    lines = [f"{digest}  {name}\n" for digest, name in digests]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def environment() -> dict[str, Any]:
    """Versions, processor, threads, date, and the hash of csrc/."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sylvinit": sylvinit.__version__,
        "csrc": csrc_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "system": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
