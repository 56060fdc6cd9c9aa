"""Step "sanitizer": compute-sanitizer over small launches of every kernel."""

from __future__ import annotations

import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu import sanitize_target
from gpu.context import Context
from gpu.processes import Done, execute

TARGET = [sys.executable, "-m", "gpu.sanitize_target"]
BENCH = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck")
CODE = 86  # exit status that stands for errors
OURS = "sylvinit"  # in the names of the kernels


def run(context: Context) -> None:
    program = find_sanitizer()
    if context.dry:
        context.put(target=sanitize_target.main(["--device", "cpu"]))
    if program is None:
        context.put(passed=False, skipped="compute-sanitizer was not found")
        context.say(context.results["skipped"])
        return
    tools = TOOLS[:1] if context.quick else TOOLS
    said = execute([program, "--help"], 30).output
    with ThreadPoolExecutor(len(tools)) as pool:  # they mostly wait for the host
        limit = context.left()
        running = [pool.submit(check, tool, program, said, limit) for tool in tools]
        for tool, future in zip(tools, running, strict=True):
            context.row("tools", "tool passed summary seconds", tool=tool, **future.result())
    rows = context.results["tools"]
    context.put(passed=len(rows) == len(TOOLS) and all(row["passed"] for row in rows))


def find_sanitizer() -> str | None:
    """On the path, or in a toolkit."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.path.join(home, "bin") for home in homes if home]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(folders)
    )


def check(tool: str, program: str, said: str, limit: float) -> dict[str, Any]:
    """One tool over all launches."""
    command = [program, "--tool", tool, "--error-exitcode", str(CODE), "--print-limit", "5000"]
    # What torch's kernels write has to be seen by initcheck, or reading it looks like an error.
    if tool != "initcheck":
        command += only_ours(said)
    if tool == "memcheck" and "--report-api-errors" in said:
        command += ["--report-api-errors", "no"]  # torch asks the driver what it may not know
    command += TARGET
    # Every tensor has memory of its own, so that a neighbor is not taken for it.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return judge(tool, execute(command, limit, env=env, cwd=BENCH))


def only_ours(said: str) -> list[str]:
    """The option that leaves other kernels unchecked, if the tool's help knows it."""
    for option in ("--kernel-name", "--kernel-regex"):
        if re.search(rf"{option}\b(?!-)", said):
            return [option, f"kns={OURS}"]
    return []


def judge(tool: str, done: Done) -> dict[str, Any]:
    """Whether a tool has found nothing, from what it printed.

    initcheck also reads other libraries' kernels; reports that do not name ours are counted beside.
    """
    blocks = re.split(r"\n=========\s*\n", done.output)
    reports = [block for block in blocks if _is_report(block)]
    ours = [block for block in reports if OURS in block]
    summary = re.findall(r"========= (?:ERROR|RACECHECK) SUMMARY: .*", done.output)
    ran = sanitize_target.DONE in done.output and bool(summary)
    clean = done.code == 0 or (tool == "initcheck" and done.code == CODE and bool(reports))
    row: dict[str, Any] = {
        "passed": ran and clean and not ours,
        "status": done.code,
        "summary": summary[-1] if summary else "",
        "reports": len(ours),
        "reports_of_others": len(reports) - len(ours),
        "seconds": done.seconds,
    }
    if not row["passed"]:
        row.update(first_report=ours[0][:2000] if ours else "", output=done.tail)
    return row


def _is_report(block: str) -> bool:
    lines = [line for line in block.splitlines() if "SUMMARY" not in line]
    return any(re.match(r"========= .*(Invalid|Uninitialized|hazard|Race|Error)", x) for x in lines)
