"""bench/gpu_check.py without a GPU: its flow and its records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import fake_cuda
import gpu_check
import pytest
import torch
from gpu import building, machine
from gpu.context import Context
from gpu.processes import execute

from sylvinit.backends import extension

QUICK_STEPS = "environment,build,ceilings,gram,eigen,initialize,sylvester,sanitizer,all_patches"


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document of a dry run of all steps but the tests, which have one of their own."""
    output = tmp_path_factory.mktemp("dry")
    arguments = ["--dry-run", "--in-process", "--output", str(output)]
    assert gpu_check.main([*arguments, "--only", QUICK_STEPS]) == 0
    return read(output)


def read(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def test_every_step_of_a_dry_run_leaves_results(dry: dict[str, Any]) -> None:
    assert list(dry["steps"]) == QUICK_STEPS.split(",")
    for step in dry["steps"].values():
        assert step["status"] == "ok"
        assert step["error"] == ""
        assert "failures" not in step["results"]
    results = {name: step["results"] for name, step in dry["steps"].items()}
    assert results["environment"]["torch"] == torch.__version__
    assert results["ceilings"]["copy_bytes_per_s"] > 0
    row = results["gram"]["beside"][0]
    assert row["floor_s"] > 0
    for name in ("gather", "halves", "unfold", "product"):
        assert row[f"{name}_ratio"] == pytest.approx(row[f"{name}_s"] / row["ours_s"])
    assert results["sylvester"]["equations"][0]["pos_residual"] < 1e-13
    assert [row["network"] for row in results["initialize"]["networks"]] == [
        "ResNet-20",
        "ResNet-50",
    ]
    assert results["initialize"]["waits_per_microbatch"] == 0
    assert {row["n"] for row in results["eigen"]["table"]} == {3, 5}


def test_a_dry_run_is_no_evidence(dry: dict[str, Any]) -> None:
    assert dry["dry_run"] is True
    assert dry["verified"] is None
    assert "dry run" in dry["not_verified"]


def test_a_dry_run_is_kept_out_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    inside = str(gpu_check.ROOT / "bench" / "results" / "dry")
    with pytest.raises(SystemExit):
        gpu_check.main(["--dry-run", "--output", inside])
    assert "choose an --output" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_stops_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would build for minutes, and then every step would fail."""
    for steps in (["--call", "1"], ["--call", "2"], ["--only", "gram"]):
        assert gpu_check.main(["--in-process", "--output", str(tmp_path), *steps]) == 2
        captured = capsys.readouterr()
        assert "no GPU" in captured.err
        assert "build, at most" not in captured.out
        assert set(read(tmp_path)["steps"]) == {"environment"}


def test_a_failed_build_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the other steps would measure plain torch under the name of this library."""

    def fail(context: Context) -> None:
        raise RuntimeError("the build failed with status 1")

    monkeypatch.setattr(machine, "run", lambda context: context.put(gpu="some"))
    monkeypatch.setattr(building, "run", fail)
    assert gpu_check.main(["--in-process", "--output", str(tmp_path), "--call", "1"]) == 2
    assert list(read(tmp_path)["steps"]) == ["environment", "build"]
    assert "the build failed with status 1" in capsys.readouterr().err


def test_the_calls_have_every_step_but_one_and_fit() -> None:
    """Steps before the last may take all they are allowed, and the last still has half a minute."""
    seen: set[str] = set()
    for names, seconds in gpu_check.CALLS.values():
        seen |= set(names)
        assert set(names) <= set(gpu_check.STEPS)
        limits = [gpu_check.STEPS[name].seconds for name in names]
        built = gpu_check.STEPS["build"].seconds if names[-1] == "sanitizer" else 0.0
        assert sum(limits[:-1]) - built <= seconds - 39
    assert set(gpu_check.STEPS) - seen == {"all_patches"}


def test_targets_are_collected(dry: dict[str, Any]) -> None:
    assert dry["targets"]
    for target in dry["targets"]:
        bounds = [name for name in ("at_least", "at_most") if name in target]
        assert len(bounds) == 1
        bound, value = target[bounds[0]], target["value"]
        assert target["met"] == (value >= bound if bounds == ["at_least"] else value <= bound)


def test_an_unknown_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "gram,grim"])
    assert "grim" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- steps that fail


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Steps of bench/gpu replaced by modules of the test: one raises, one ends, one hangs."""
    package = tmp_path / "gpu"
    package.mkdir()
    modules = {
        "raises": "def run(context):\n    context.put(before=1)\n    raise ValueError('mine')\n",
        "ends": "import os\ndef run(context):\n    context.put(before=2)\n    os._exit(3)\n",
        "hangs": "import time\ndef run(context):\n    context.put(before=3)\n    time.sleep(15)\n",
        "works": "def run(context):\n    context.put(seen=sorted(context.earlier))\n",
    }
    for name, text in modules.items():
        (package / f"{name}.py").write_text(text)
    # The children are run by the same script, and so find the same modules.
    script = tmp_path / "check.py"
    stages = {name: gpu_check.Stage(name, 11, 11) for name in modules}
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(gpu_check.ROOT / "bench")!r})
        import gpu, gpu_check
        gpu.__path__.append({str(package)!r})
        gpu_check.STEPS = {{n: gpu_check.Stage(n, 11, 11) for n in {list(stages)!r}}}
        gpu_check.__file__ = __file__
        gpu_check._LEAST = 0.0
        sys.exit(gpu_check.main())
        """)
    )
    return script


def test_a_step_that_fails_does_not_stop_the_others(steps: Path, tmp_path: Path) -> None:
    """In processes of their own, as on a GPU."""
    output = tmp_path / "results"
    command = [sys.executable, str(steps), "--dry-run", "--output", str(output)]
    command += ["--only", "raises,ends,works"]
    done = execute(command, 100)
    assert done.code == 1, done.output
    assert [path.name for path in output.iterdir()] == ["results.json"]
    found = read(output)["steps"]
    assert found["raises"]["status"] == "failed"
    assert "ValueError: mine" in found["raises"]["error"]
    assert found["raises"]["results"] == {"before": 1}
    assert found["ends"]["status"] == "crashed"
    assert "status 3" in found["ends"]["error"]
    assert found["ends"]["results"] == {"before": 2}
    assert found["works"]["status"] == "ok"
    assert found["works"]["results"] == {"seen": ["ends", "raises"]}


def test_a_step_that_hangs_is_stopped(steps: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    command = [sys.executable, str(steps), "--dry-run", "--output", str(output)]
    done = execute([*command, "--only", "hangs", "--seconds", "3"], 60)
    assert done.code == 1, done.output
    found = read(output)["steps"]["hangs"]
    assert found["status"] == "timed out"
    assert found["results"] == {"before": 3}
    assert found["seconds"] < 30


def test_rows_of_a_step_outlive_the_whole_run(steps: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    command = [sys.executable, str(steps), "--dry-run", "--output", str(output), "--only", "hangs"]
    part, end = output / "hangs.part.json", time.monotonic() + 60
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while not part.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads(part.read_text()) == {"before": 3}


def test_results_of_several_runs_are_joined(dry: dict[str, Any], tmp_path: Path) -> None:
    """A step of a full run is kept where a later one is quick or has failed."""
    steps = dry["steps"]
    first = {**dry, "steps": {name: steps[name] for name in ("environment", "gram")}}
    gram = {**steps["gram"], "results": {}}
    second = {**dry, "steps": {"eigen": steps["eigen"], "gram": {**gram, "quick": True}}}
    third = {**dry, "steps": {"gram": {**gram, "status": "timed out"}}}
    paths = [tmp_path / f"{index}.json" for index in range(3)]
    for path, document in zip(paths, (first, second, third), strict=True):
        path.write_text(json.dumps(document))
    output = tmp_path / "joined"
    gpu_check.main(["--merge", *map(str, paths), "--output", str(output)])
    found = read(output)
    assert set(found["steps"]) == {"environment", "gram", "eigen"}
    assert found["steps"]["gram"] == steps["gram"]
    paths[1].write_text(json.dumps({**second, "csrc": "another"}))
    with pytest.raises(SystemExit, match="csrc"):
        gpu_check.main(["--merge", *map(str, paths), "--output", str(output)])


def test_eigen_table_with_an_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """The direct calls, on memory of the CPU."""
    from gpu import direct, eigen, sylvester

    module, _ = fake_cuda.install(monkeypatch)
    monkeypatch.setattr(extension, "reason", lambda: "")
    a = direct.covariances(3, 5, "cpu")
    call = direct.Direct("xsyev_batched", a)
    call()
    assert call.failed() == 0
    torch.testing.assert_close(call.values, torch.linalg.eigvalsh(a))
    monkeypatch.setattr(eigen, "_leading", lambda *_: {})  # has tests of its own
    context = Context(dry=True)
    eigen.run(context)
    rows = context.results["table"]
    assert {row["chosen"] for row in rows} == {"xsyevd", "xsyev_batched"}
    assert all(row["best"] in direct.ROUTINES for row in rows)
    assert "failures" not in context.results
    assert {name for name, *_ in module.calls} == set(direct.ROUTINES)
    sylvester.run(context)
    assert "failures" not in context.results
    assert context.results["equations"][0]["eigenvalue_part"] > 0


def test_the_build_that_is_installed() -> None:
    found = building.installed()
    assert found["reason"] == extension.reason()
