from __future__ import annotations

import pytest
from gpu import sanitizing
from gpu.processes import Done

OURS = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 8 bytes
=========     at sylvinit::reduce_kernel(const double *, sylvinit::PatchGramPlan)+0x120
=========     by thread (0,0,0) in block (0,0,0)
=========
"""


OTHERS = OURS.replace("sylvinit::", "at::native::")


END = "all launches compared: 108 of patch_gram\n========= ERROR SUMMARY: {} errors\n"


@pytest.mark.parametrize(
    ("tool", "output", "code", "passed"),
    [
        ("memcheck", "========= COMPUTE-SANITIZER\n" + END.format(0), 0, True),
        ("memcheck", OURS + END.format(1), sanitizing.CODE, False),
        ("memcheck", "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", 2, False),
        ("memcheck", "========= COMPUTE-SANITIZER\n" + END.format(0), None, False),
        ("initcheck", OTHERS + END.format(1), sanitizing.CODE, True),
        ("initcheck", OTHERS + OURS + END.format(2), sanitizing.CODE, False),
        ("initcheck", END.format(3), sanitizing.CODE, False),
        (
            "racecheck",
            "========= Error: Race reported between Write access at sylvinit::tile_kernel+0x10\n"
            "=========\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
            "all launches compared: 108 of patch_gram\n",
            sanitizing.CODE,
            False,
        ),
    ],
)
def test_verdict_of_the_sanitizer(tool: str, output: str, code: int | None, passed: bool) -> None:
    row = sanitizing.judge(tool, Done(code, output, 1.0))
    assert row["passed"] is passed


def test_filter_for_the_kernels_of_this_library() -> None:
    assert sanitizing.only_ours("  --kernel-name arg") == ["--kernel-name", "kns=sylvinit"]
    assert sanitizing.only_ours("  --kernel-regex arg") == ["--kernel-regex", "kns=sylvinit"]
    assert sanitizing.only_ours("  --kernel-name-exclude arg") == []
