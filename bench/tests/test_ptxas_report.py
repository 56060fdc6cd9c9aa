"""The report on registers and spills, from what ptxas prints to the check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ptxas_report
import pytest
from build_helpers import ROOT, compilation, ptxas

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4kernIdEvv' for 'sm_90a'
ptxas info    : Function properties for _Z4kernIdEvv
    256 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 256 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compile time = 26.944 ms
ptxas info    : Function properties for _Z4slowPfi
    8 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z4kernIdEvv' for 'sm_80'
ptxas info    : Function properties for _Z4kernIdEvv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, 364 bytes cmem[0]
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized
csrc/cuda/kern.cu(7): warning #177-D: variable "x" was declared but never referenced
"""


def test_ptxas_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptxas.shutil, "which", lambda name: None)
    report = ptxas.report(LOG)
    kernel = {"kernel": "_Z4kernIdEvv"}
    assert report["kernels"] == [
        {
            **kernel,
            **{"arch": "sm_80", "registers": 32, "stack": 0, "shared": 0},
            **{"spill_stores": 0, "spill_loads": 0},
        },
        {
            **kernel,
            **{"arch": "sm_90a", "registers": 40, "stack": 264, "shared": 512},
            **{"spill_stores": 20, "spill_loads": 24},
        },
    ]
    performance, unused = report["messages"]
    assert "wgmma.mma_async instructions are serialized" in performance
    assert 'variable "x" was declared' in unused


@pytest.mark.skipif(not shutil.which("c++filt"), reason="no c++filt")
def test_ptxas_names_are_demangled() -> None:
    assert {row["kernel"] for row in ptxas.report(LOG)["kernels"]} == {"kern<double>"}


def test_spills_fail_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {
        "csrc": compilation.csrc_hash(ROOT),
        "nvcc": "13.0.88",
        "architectures": "8.0",
        **ptxas.report(LOG),
    }
    path, out = tmp_path / "ptxas.json", tmp_path / "out.json"

    def check(**changed: object) -> tuple[int, str, str]:
        path.write_text(json.dumps({**summary, **changed}))
        code = ptxas_report.main(["--check", "--report", str(path), "--out", str(out)])
        return (code, *capsys.readouterr())

    code, stdout, err = check()
    assert code == 1
    assert err.count("error:") == 1
    assert "spills 44 bytes a thread on sm_90a" in err
    assert "C7510" in stdout
    assert json.loads(out.read_text()) == summary
    clean = [row for row in summary["kernels"] if row["arch"] == "sm_80"]
    assert check(kernels=clean)[0] == 0
    code, _, err = check(kernels=clean, csrc="0" * 16)
    assert code == 1
    assert "build again" in err
    assert check(kernels=[])[0] == 1
    monkeypatch.setitem(ptxas_report.MAY_SPILL, summary["kernels"][0]["kernel"], "for a test")
    assert check()[0] == 0
    assert ptxas_report.main(["--report", str(tmp_path / "none.json")]) == 2
