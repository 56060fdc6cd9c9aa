"""A panel of one tiny pair: what a run stores, what is missing, and in which order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.store import Results
from panel import arms, work
from panel.cli import main
from panel.pairs import PAIRS, TEST_SEEDS, Pair, Run
from panel.plan import choice_runs, chosen_rate, planned, protocol_rate, read
from panel.work import execute, lacking

COMMAND = Path(__file__).resolve().parents[3] / "bench" / "panel"


def test_a_run_is_repeatable_and_complete(pair: Pair) -> None:
    run = Run(pair.cells[0], arms.BEST, 0, 0.03, "test")
    first, second = execute(run), execute(run)
    assert {**first, **run.fields} == first
    assert (first["before"], first["after"]) == (second["before"], second["after"])
    assert first["samples"] == 15
    assert first["init_seconds"] > 0 < first["train_seconds"]
    json.dumps(first)


def test_arms_start_from_the_same_network_and_samples(pair: Pair) -> None:
    seen: dict[str, list[torch.Tensor]] = {}

    def spy(name: str) -> arms.Arm:
        def apply(model: torch.nn.Module, samples: Any, seed: int) -> None:
            values = [parameter.detach().clone() for parameter in model.parameters()]
            seen[name] = [*values, samples.inputs, samples.labels]

        return apply

    with pytest.MonkeyPatch.context() as patch:
        for name in (arms.OWN, arms.BEST):
            patch.setitem(arms.ARMS, name, spy(name))
            execute(Run(pair.cells[0], name, 3, 0.03, "test"))
        first = seen.pop(arms.OWN)
        execute(Run(pair.cells[0], arms.BEST, 4, 0.03, "test"))
        assert not torch.equal(seen[arms.BEST][0], first[0])  # of another seed
        execute(Run(pair.cells[0], arms.BEST, 3, 0.03, "test"))
    assert all(torch.equal(x, y) for x, y in zip(first, seen[arms.BEST], strict=True))


def test_order_and_resuming(pair: Pair, made_up: Callable[..., Any]) -> None:
    cells = pair.cells
    names = [arms.OWN, arms.BEST]
    plan = list(planned(cells, names, TEST_SEEDS, {}))
    # Nothing but choices is known in the beginning, first those of the own start.
    known = [run for run in plan if run is not None]
    assert [run.arm for run in known] == [arms.OWN] * 6 + [arms.BEST] * 6
    assert {run.split for run in known} == {"validation"}

    records: dict[str, Any] = {}
    for cell in cells:
        low, middle, _ = cell.rates
        for name, rate in ((arms.OWN, low), (arms.BEST, middle)):
            records |= made_up(cell, name, {x: float(x == rate) for x in cell.rates}, {})
    plan = list(planned(cells, names, TEST_SEEDS, records))
    tests = [run for run in plan if run is not None and run.split == "test"]
    assert None not in plan
    # The user's recipe comes before the choices of "best", and all cells before the next seed.
    assert plan[6:26] == tests[:20]
    assert [run.seed for run in tests[:20]] == sorted(run.seed for run in tests[:20])
    assert [run.arm for run in plan[26:32] if run] == [arms.BEST] * 6
    assert tests[20:] == plan[32:]
    # The own start's runs serve both protocols, those of "best" are at two rates.
    assert len({run.key for run in tests}) == len(tests) == 2 * 5 * 3


def test_equal_rates_are_run_once(pair: Pair, made_up: Callable[..., Any]) -> None:
    records: dict[str, Any] = {}
    for cell in pair.cells:
        for name in (arms.OWN, arms.BEST):
            records |= made_up(cell, name, dict.fromkeys(cell.rates, 1.0), {})
    plan = planned(pair.cells, [arms.OWN, arms.BEST], TEST_SEEDS, records)
    tests = [run.key for run in plan if run is not None and run.split == "test"]
    assert len(set(tests)) == 2 * 5 * 2


def test_rates_are_chosen_on_validation_samples(pair: Pair, made_up: Callable[..., Any]) -> None:
    cell = pair.cells[0]
    low, middle, high = cell.rates
    records = made_up(cell, arms.OWN, {low: 1.0, middle: 3.0, high: 2.0}, {high: [9.0] * 5})
    assert chosen_rate(cell, arms.OWN, records) == middle
    assert protocol_rate(cell, arms.BEST, "user", records) == middle
    assert protocol_rate(cell, arms.BEST, "each", records) is None
    del records[choice_runs(cell, arms.OWN)[0].key]
    assert chosen_rate(cell, arms.OWN, records) is None


def test_runs_with_the_same_start_are_done_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = (Run(pair.cells[0], name, 0, 0.03, "test") for name in (arms.OWN, arms.BEST))
    first = execute(own)
    best = execute(other)
    monkeypatch.setitem(arms.ARMS, arms.BEST, arms.ARMS[arms.OWN])
    # Of another seed, split or rate, or with other weights: nothing to take the measures from.
    apart = [{**first, **change} for change in ({"seed": 1}, {"hash": "x"}, {"start": "x"})]
    apart.append({**first, "cell": {**first["cell"], "rate": 0.1}})
    twin = {**first, "before": 1.0, "after": 2.0}
    lines = [best, *apart, twin]
    found = execute(other, {str(place): line for place, line in enumerate(lines)})
    assert (found["before"], found["after"], found["same_as"]) == (1.0, 2.0, arms.OWN)
    found = execute(other, {str(place): line for place, line in enumerate(lines[:-1])})
    assert "same_as" not in found
    assert (found["before"], found["after"]) == (first["before"], first["after"])
    assert first["start"] != best["start"]


def do(pairs: list[Pair], names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """``work`` in this process: spawned ones do not know a test's pair."""

    class Pool:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: Any) -> None: ...
        def submit(self, function: Callable[..., str], *arguments: Any) -> Any:
            from concurrent.futures import Future

            future: Future[str] = Future()
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(work, "ProcessPoolExecutor", Pool)
    cells = [cell for pair in pairs for cell in pair.cells]
    return work.work(
        lambda records: planned(cells, names, (0, 1), records),
        lambda: read(pairs, folder),
        folder,
        2,
        None,
    )


def test_only_missing_runs_are_done(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def counted(run: Run, records: Any) -> dict[str, Any]:
        done.append(run.key)
        return execute(run, records)

    monkeypatch.setattr(work, "execute", counted)
    assert do([pair], [arms.OWN, arms.BEST], tmp_path, monkeypatch) == 0
    results = Results(pair.slug, tmp_path)
    assert sorted(results.records()) == sorted(done)
    assert len(done) == len(set(done))
    plan = list(planned(pair.cells, [arms.OWN, arms.BEST], (0, 1), results.records()))
    assert {run.key for run in plan if run is not None} == set(done)
    # A line that is taken out is done again, with the same numbers, and nothing else is.
    lines = results.path.read_text().splitlines()
    results.path.write_text("\n".join([*lines[:-3], *lines[-2:]]) + "\n")
    done.clear()
    assert do([pair], [arms.OWN, arms.BEST], tmp_path, monkeypatch) == 0
    assert len(done) == 1
    lost, new = json.loads(lines[-3]), results.records()[done[0]]
    assert (new["before"], new["after"]) == (lost["before"], lost["after"])


def test_a_run_that_fails_costs_no_other(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(model: torch.nn.Module, samples: Any, seed: int) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setitem(arms.ARMS, arms.BEST, fails)
    failures = do([pair], [arms.OWN, arms.BEST], tmp_path, monkeypatch)
    # Seeds 0 and 1 with both optimizers, and three choices for each.
    assert failures == 2 * (2 + 3)
    assert "no luck" in capsys.readouterr().err
    assert {line["arm"] for line in Results(pair.slug, tmp_path).records().values()} == {arms.OWN}


def test_pairs_that_lack_something_are_left_out() -> None:
    assert "no_such_package" in str(
        lacking(Pair("x", "mlp", "digits", {1: 1}, 1, packages=("no_such_package",)))
    )


def test_sets_need_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYLVINIT_DATA", raising=False)
    for name in ("energy", "camvid", "cifar10"):
        assert "SYLVINIT_DATA" in str(lacking(Pair("x", "mlp", name, {1: 1}, 1)))


def test_files_and_titles_are_distinct() -> None:
    assert len({pair.slug for pair in PAIRS}) == len(PAIRS) >= 10
    assert all(len(pair.rates[name]) == 3 for pair in PAIRS for name in pair.rates)


def test_the_command_tells_what_is_done(tmp_path: Path) -> None:
    command = [sys.executable, str(COMMAND), "status", "--results", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "digits_net / digits: 0 runs done" in found.stdout


def test_pairs_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--pairs", "nothing like it"]) == 2
    assert "ResNet-20 / CIFAR-10" in capsys.readouterr().err
