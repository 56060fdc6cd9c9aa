"""bench/gpu_check.py without a GPU: its flow, its records, and when it calls sources verified."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import fake_cuda
import gpu_check
import pytest
import torch
from gpu import building, evidence, machine, sanitizing, testing
from gpu.context import Context
from gpu.floor import floor_seconds, gram_work
from gpu.processes import Done, execute
from gpu.timing import Clock, Timing

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


def test_a_case_that_fails_does_not_stop_its_step() -> None:
    context = Context(dry=True)
    with context.attempt("first"):
        raise MemoryError("too large")
    context.row("table", "n", n=2)
    assert context.results["failures"] == [{"case": "first", "error": "MemoryError: too large"}]
    assert context.results["table"] == [{"n": 2}]


def test_cases_that_no_time_is_left_for() -> None:
    context = Context(dry=True, deadline=0.0)
    assert list(context.cases([1, 2])) == []
    assert context.results["out of time"] == ["1", "2"]


def test_rows_of_a_step_outlive_the_whole_run(steps: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    command = [sys.executable, str(steps), "--dry-run", "--output", str(output), "--only", "hangs"]
    execute(command, 8)  # stops all of it
    assert json.loads((output / "hangs.part.json").read_text()) == {"before": 3}


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


# ---------------------------------------------------------------------------------------- evidence


def full(**changes: Any) -> dict[str, Any]:
    """A document of a run that passed, with changes to the results of its steps."""
    results: dict[str, dict[str, Any]] = {
        "environment": {"gpu": "NVIDIA H100", "csrc": "0123", "date": "2027-01-02T03:04:05+00:00"},
        "build": {"csrc": "0123"},
        "tests": {"passed": True},
        "sanitizer": {"passed": True},
    }
    for name, change in changes.items():
        results[name].update(change)
    steps = {
        name: {"status": "ok", "quick": False, "results": value} for name, value in results.items()
    }
    return {"dry_run": False, "steps": steps}


def quick(name: str) -> dict[str, Any]:
    document = full()
    document["steps"][name]["quick"] = True
    return document


def test_the_line_of_a_run_that_passed(tmp_path: Path) -> None:
    line, reason = evidence.verdict(full())
    assert line == {"csrc": "0123", "device": "NVIDIA H100", "date": "2027-01-02"}
    assert reason == ""
    evidence.record(line, tmp_path)
    before = json.loads(evidence.VERIFIED.read_text())
    assert json.loads((tmp_path / "verified.json").read_text()) == [*before, line]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({**full(), "dry_run": True}, "dry run"),
        (quick("tests"), "quick"),
        (quick("sanitizer"), "quick"),
        (full(tests={"passed": False}), "tests has not passed"),
        (full(sanitizer={"passed": False}), "sanitizer has not passed"),
        (full(sanitizer={"passed": None}), "sanitizer has not passed"),
        (full(build={"csrc": "4567"}), "not built from"),
        (full(build={"csrc": None}), "not built from"),
        (full(environment={"gpu": None}), "no GPU"),
        ({**full(), "steps": {}}, "environment is missing"),
    ],
)
def test_runs_that_show_nothing(document: dict[str, Any], reason: str) -> None:
    line, found = evidence.verdict(document)
    assert line is None
    assert reason in found


# ---------------------------------------------------------------------------------------- the floor


def test_work_by_hand() -> None:
    """n = 10 patches of d = 2, D = 3: six sums of ten products, 20 numbers of 4 bytes, 6 float64
    sums read and written."""
    work = gram_work(10, 2, 10**6, 4)
    assert work.multiply_adds == 60
    assert work.bytes == 80 + 2 * 6 * 8
    # All of a small activation, of two bytes a number, is read once.
    assert gram_work(10, 2, 12, 2).bytes == 24 + 96


def test_floor_by_hand() -> None:
    ceilings = {"copy_bytes_per_s": 1e3, "float32_flops": 120.0, "tf32_flops": 3600.0}
    work = gram_work(10, 2, 10**6, 4)  # 120 flops, 176 bytes
    slow = floor_seconds(work, "ffma", ceilings)
    assert slow["arithmetic_s"] == pytest.approx(1.0)
    assert slow["bytes_s"] == pytest.approx(0.176)
    assert slow["floor_s"] == pytest.approx(1.0)
    assert slow["floor_is"] == "arithmetic"
    assert floor_seconds(work, "3xtf32", ceilings)["arithmetic_s"] == pytest.approx(0.1)
    assert floor_seconds(work, "tf32", ceilings)["arithmetic_s"] == pytest.approx(1 / 30)
    assert floor_seconds(work, "3xtf32", ceilings)["floor_is"] == "bytes"
    assert floor_seconds(work, "3xtf32", {})["floor_s"] is None


def test_summary_of_samples() -> None:
    timing = Timing.of([3.0, 1.0, 2.0, 10.0, 2.0], "host")
    assert (timing.median, timing.least, timing.samples) == (2.0, 1.0, 5)
    assert timing.spread == pytest.approx((10 - 1) / 2)


def test_calls_take_turns() -> None:
    seen: list[int] = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]
    timing = Clock(True).time(calls, seconds=1.0, most=5)
    assert timing.samples == 5
    assert seen == [*(0, 1, 2), 0, *(0, 1, 2, 0, 1)]  # warm-up, a first sample, the samples


# -------------------------------------------------------------- what other programs have to say


def test_counts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "test_three.py"
    path.write_text(
        "import pytest\n"
        "def test_good(record_property):\n    record_property('error', 0.5)\n"
        "def test_bad():\n    raise ValueError('no')\n"
        "def test_left_out():\n    pytest.skip('no GPU')\n"
    )
    found = testing.test_file(path, lambda: 60, {})
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["ended"]
    assert found["skips"] == {"no GPU": 1}
    assert found["figures"] == [{"test": "test_good", "figure": "error", "value": "0.5"}]
    assert "ValueError: no" in found["failures"][0]["message"]
    assert not testing.all_passed([found])


def test_counts_of_a_file_that_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "test_long.py"
    path.write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('name', ['a b', 'c::d'])\n"
        "def test_good(name):\n    pass\n"
        "def test_bad():\n    raise ValueError('no')\n"
        "def test_long():\n    time.sleep(60)\n"
    )
    found = testing.test_file(path, lambda: 20, {})
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 1, 0)
    assert found["failures"][0]["test"] == "test_bad"
    assert not found["ended"]


def test_what_counts_as_passed() -> None:
    good = {"ended": True, "passed": 3, "failed": 0, "skipped": 1}
    assert testing.all_passed([good])
    for change in ({"ended": False}, {"passed": 0}, {"failed": 1}):
        assert not testing.all_passed([good, {**good, **change}])
    assert not testing.all_passed([])


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
