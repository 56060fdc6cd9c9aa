"""patch_gram's kernels on host threads under the sanitizers: races, bad addresses, overflow."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from compiler import KERNELS, build_on_host_threads, find_compiler

MAIN = Path(__file__).parent / "patch_gram_main.cpp"


def has_sanitizer(flag: str, folder: Path) -> bool:
    """Whether a program that does nothing can be built with it and runs."""
    source, program = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() { return 0; }\n")
    command = [find_compiler(), flag, str(source), "-o", str(program)]
    if subprocess.run(command, capture_output=True).returncode:
        return False
    return subprocess.run([program], capture_output=True).returncode == 0


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_no_findings(sanitizers: str, tmp_path: Path) -> None:
    flag = f"-fsanitize={sanitizers}"
    if not has_sanitizer(flag, tmp_path):
        pytest.skip(f"the compiler has no {flag}, or its programs do not run here")
    program = tmp_path / "patch_gram"
    flags = (flag, "-fno-sanitize-recover=all", "-O0", "-g")
    build_on_host_threads([*KERNELS, MAIN], program, *flags, shared=False)
    done = subprocess.run([program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") == 8
