"""Step "build": the extension, its ptxas report, and whether it runs here."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from gpu.context import ROOT, Context
from gpu.machine import source_hash
from gpu.processes import execute

# Asked in a process of its own: that of the step may have imported an older build.
_ASK = "import json; from gpu.building import installed; print(json.dumps(installed()))"


def installed() -> dict[str, Any]:
    """The extension and the cuSOLVER that this process would use."""
    from sylvinit.backends import cusolver, extension

    built = extension.module
    found: dict[str, Any] = {"reason": extension.reason(), "description": extension.description()}
    if built is not None:
        found.update(csrc=built.CSRC_HASH, architectures=built.ARCHITECTURES)
        found.update(cuda=built.CUDA_VERSION)
    if not found["reason"]:
        library = cusolver.library()
        found.update(cusolver=".".join(map(str, library.version)), cusolver_path=library.path)
        found.update(xsyev_batched=library.xsyev_batched)
    return found


def run(context: Context) -> None:
    if not context.dry and not is_current():
        _build(context)
    report = ROOT / "build" / "cuda" / "ptxas.json"
    if report.exists():
        ptxas = json.loads(report.read_text())
        spills = [row for row in ptxas["kernels"] if row["spill_stores"] + row["spill_loads"]]
        context.put(ptxas=ptxas, kernels=len(ptxas["kernels"]), kernels_that_spill=len(spills))
    else:
        context.put(ptxas=None)
    found = installed() if context.dry else _asked()
    context.put(**found, current=found.get("csrc") == source_hash())
    context.say(found["reason"] or found["description"])
    if not context.dry and found["reason"]:
        raise RuntimeError(found["reason"])
    if not context.dry and not context.results["current"]:
        raise RuntimeError("the extension that is installed is not built from these sources")
    if context.folder and not context.dry:
        for path in modules():
            shutil.copy2(path, context.folder)


def modules() -> list[Path]:
    """The compiled modules inside this tree."""
    return sorted((ROOT / "sylvinit").glob("_*.so"))


def is_current() -> bool:
    """Whether it has been built before, by an earlier call or on another machine."""
    if not (ROOT / "sylvinit" / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
        return False  # asking takes seconds
    found = _asked()
    return not found["reason"] and found.get("csrc") == source_hash()


def _build(context: Context) -> None:
    """Inside the tree, so that nothing is installed, and for this GPU alone, which is quicker."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    env = {"SYLVINIT_CUDA": "1"}
    capability = context.earlier.get("environment", {}).get("capability")
    if capability and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        env["TORCH_CUDA_ARCH_LIST"] = capability + ("a" if capability == "9.0" else "")
    done = execute(command, context.left() - 20, env=env, cwd=ROOT, show=True)
    context.put(command=" ".join(command), build_s=done.seconds, **env)
    if done.code != 0:
        context.put(output=done.tail)
        why = "took too long" if done.code is None else f"failed with status {done.code}"
        raise RuntimeError(f"the build {why}: {done.tail[-600:]}")


def _asked() -> dict[str, Any]:
    asked = execute([sys.executable, "-c", _ASK], 120, cwd=ROOT / "bench")
    if asked.code != 0:
        raise RuntimeError(f"sylvinit does not import: {asked.tail[-600:]}")
    return json.loads(asked.output.splitlines()[-1])
