"""Step "environment": what the measurements depend on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu import preflight
from gpu.context import ROOT, Context

_SMI = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "temperature.gpu,power.draw,power.limit,pstate,mig.mode.current"
)


def run(context: Context) -> None:
    """Also the preflight: raises if something is missing that the other steps need."""
    missing = preflight.problems()
    if missing and not context.dry:
        context.put(missing=missing, gpu=None)
        raise RuntimeError("\n".join(("something is missing:", *missing)))
    import torch

    context.put(
        missing=missing,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        csrc=source_hash(),
        commit=_git("rev-parse", "HEAD"),
        modified=_git("status", "--porcelain", "--untracked-files=no") not in ("", None),
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.platform(),
        cpu=_cpu(),
        cores=os.cpu_count(),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        nvcc=_output("nvcc", "--version"),
    )
    context.put(smi=smi())
    if torch.cuda.is_available():
        found: Any = torch.cuda.get_device_properties(0)
        context.put(
            gpu=found.name,
            gpus=torch.cuda.device_count(),
            capability=f"{found.major}.{found.minor}",
            multiprocessors=found.multi_processor_count,
            memory_bytes=found.total_memory,
            l2_bytes=getattr(found, "L2_cache_size", None),
        )
    else:
        context.put(gpu=None)
    context.say(f"{context.results['gpu']}, torch {torch.__version__}")


def source_hash() -> str:
    """Of csrc/ as it lies here, by the rule of the build."""
    sys.path.append(str(ROOT))
    from buildtools.compilation import csrc_hash

    return csrc_hash(ROOT)


def smi() -> dict[str, str] | None:
    """Driver and clocks as they are found; nothing is set."""
    text = _output("nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader")
    if not text:
        return None
    values = [value.strip() for value in text.splitlines()[0].split(",")]
    return dict(zip(_SMI.split(","), values, strict=False))


def _git(*arguments: str) -> str | None:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
