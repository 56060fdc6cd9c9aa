"""Configurations, stored results, and the command from its runs to its report."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import main
from config import Config, ConfigError, cell_label, load_config, names, parse
from data import load
from directions import cosine, filters
from store import Results
from work import Settings, Shard, grouped, missing, planned, work

from sylvinit import options
from sylvinit.codes import Discriminant, registry

COMMAND = Path(__file__).resolve().parents[3] / "bench" / "experiments"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Workers set the number of threads of their process, which here is that of the tests."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def content(**changes: Any) -> dict[str, Any]:
    return {
        "title": "Digits",
        "paper": "none",
        "runner": "train",
        "dataset": "digits",
        "network": "digits_net",
        "cells": [{"shots": 2}, {"shots": 3, "curve": True}],
        "arms": {
            "He": {"initialiser": "he-normal"},
            "sylvinit": {"initialiser": "sylvinit", "settings": {"augmented": True}},
        },
        "seeds": [0, 1],
        "training": {"epochs": 1, "rate": 0.05, "batch": 16},
        "split": "validation",
        "compare_with": "sylvinit",
        "reference": {"source": "nobody", "values": {"He": {"2 shots": [12.5, 9]}}},
    } | changes


def config(**changes: Any) -> Config:
    return parse("tiny", content(**changes))


def test_the_stored_configurations_are_valid() -> None:
    for name in names():
        loaded = load_config(name)
        keys = [run.key for run in planned([loaded])]
        assert len(set(keys)) == len(keys) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"runner": "walk"},
        {"runner": "before", "directions": True},
        {"colour": "red"},
        {"compare_with": "nobody"},
        {"cells": [{"shots": 2}, {"shots": 2}]},
        {"reference": {"values": {"He": {"9 shots": 1}}}},
        {"training": {}},
        {"arms": {"He": {}}},
        {"arms": [1]},
        {"arms": {"He": 1}},
        {"arms": {"He": {"initialiser": "unheard-of"}}},
        {"arms": {"He": {"initialiser": "he-normal+tail"}}},
        {"arms": {"He": {"initialiser": "he-normal", "settings": {"lam": 1}}}},
        {"arms": {"He": {"initialiser": "sklearn-logistic"}}},
        {"arms": {"He": {"initialiser": "sylvinit", "settings": {"views": "rows"}}}},
        {"arms": {"He": {"initialiser": "he-normal", "settings": {"branch_gain": "x"}}}},
        {
            "arms": {"He": {"initialiser": "he-normal", "settings": {"branch_gain": 0.0}}},
            "runner": "head",
            "checkpoint": "none.pt",
        },
        {"arms": {"He": {"initialiser": "he-normal", "training": 5}}},
        {"arms": {"He": {"initialiser": "he-normal", "training": {"rat": 5}}}},
        {"arms": {"He": {"initialiser": "he-normal", "training": {"batch": 5}}}},
        {"arms": {"He": {"initialiser": "he-normal", "training": {"rate": "high"}}}},
        {"arms": {"He": {"initialiser": "he-normal", "training": {"rate": float("nan")}}}},
        {"arms": {"He": {"initialiser": "he-normal", "settings": {"branch_gain": True}}}},
        {"arms": {"He": {"initialiser": "he-normal", "settings": [1]}}},
        {"arms": {"He": {"initialiser": "he-normal", "settings": {"head_scale": "small"}}}},
        {"arms": {"He": {"initialiser": "he-normal", "settings": {"head_scale": True}}}},
        {
            "arms": {
                "He": {
                    "initialiser": "he-normal",
                    "settings": {
                        "norms_of": {"initialiser": "lsuv", "settings": {"head_scale": 0}}
                    },
                }
            }
        },
        {"arms": {"He": {"initialiser": "he-normal", "settings": {"damping": 0.1}}}},
        {"arms": {"best": {"initialiser": "sylvinit", "settings": {"damping": -0.1}}}},
        {"arms": {"best": {"initialiser": "sylvinit", "settings": {"damping": True}}}},
        {"directions": "yes"},
        {"network_settings": [1]},
        {
            "arms": {"He": {"initialiser": "sklearn-logistic"}},
            "network": "vgg8",
            "runner": "head",
            "checkpoint": "none.pt",
        },
        {"arms": {"He": {"initialiser": "he-normal", "settings": {"norms_of": "best"}}}},
        {"arms": {"He": {"initialiser": "he-normal", "settings": {"norms_of": {"settings": {}}}}}},
        {
            "arms": {
                "He": {"initialiser": "he-normal", "settings": {"norms_of": {"initialiser": 3}}}
            }
        },
        {
            "arms": {"cv": {"initialiser": "sklearn-logistic", "settings": {"C": "often"}}},
            "runner": "head",
            "checkpoint": "none.pt",
        },
        {
            "arms": {
                "He": {"initialiser": "lsuv", "settings": {"norms_of": {"initialiser": "nobody"}}}
            }
        },
        {"arms": {"He": {"initialiser": "he-normal", "training": {"rate": 1}}}, "runner": "before"},
        {
            "arms": {"He": {"initialiser": "sklearn-logistic"}},
            "cells": [{"shots": 2, "network_settings": {"gird": 2}}],
            "runner": "head",
            "checkpoint": "none.pt",
        },
        {
            "arms": {"He": {"initialiser": "sklearn-logistic"}},
            "network_settings": {"grid": 0},
            "runner": "head",
            "checkpoint": "none.pt",
        },
        {
            "arms": {"He": {"initialiser": "sylvinit-head"}},
            "network_settings": {"grid": 2},
            "runner": "finetune",
            "checkpoint": "none.pt",
        },
        {"arms": {"He": {"initialiser": "sylvinit", "settings": {"prset": "best"}}}},
        {"arms": {"He": {"initialiser": "sylvinit", "settings": {"preset": "worst"}}}},
        {"arms": {"He": {"initialiser": "sylvinit", "settings": {"code": "rot13"}}}},
        {"arms": {"He": {"initialiser": "he-normal+head", "settings": {"head": {"lamda": 1}}}}},
        {"cells": [{"shot": 2}]},
        {"cells": {"shots": 2}},
        {"cells": [5]},
        {"seeds": "x"},
        {"seeds": [0, 0]},
        {"compared": ["nobody"]},
    ],
)
def test_wrong_configurations_are_refused(changes: dict[str, Any]) -> None:
    if "arms" in changes:  # and nothing else is wrong
        changes = {"compare_with": None, "reference": {}} | changes
    with pytest.raises(ConfigError, match="tiny"):
        config(**changes)


def test_the_hash_covers_what_decides_on_a_result() -> None:
    first = planned([config()])[0]
    for changes in (
        {"split": "test"},
        {"network_settings": {"num": 1}},
        {"training": {"epochs": 2, "rate": 0.05, "batch": 16}},
        {"arms": {"He": {"initialiser": "he-uniform"}}, "compare_with": None},
        {"dataset": "mnist5k", "network": "resnet20"},
    ):
        assert planned([config(**changes)])[0].key != first.key
    for changes in ({"title": "other"}, {"seeds": [0]}, {"curve": True}, {"deviations": ["a"]}):
        assert planned([config(**changes)])[0].key == first.key


def test_the_hash_covers_constants_behind_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> list[str]:
        arms = {
            "sylvinit": {"initialiser": "sylvinit", "settings": {"preset": "frozen"}},
            "code": {"initialiser": "sylvinit", "settings": {"code": {"*": "discriminant"}}},
            "given": {
                "initialiser": "sylvinit",
                "settings": {"code": {"code": "discriminant", "prior": 5.0}},
            },
            "He": {"initialiser": "he-normal"},
        }
        changes = {"arms": arms, "cells": [{"shots": 2}], "reference": {}, "seeds": [0]}
        return [run.key for run in planned([config(**changes)])]

    @dataclasses.dataclass(frozen=True)
    class Other(Discriminant):
        prior: float = 200.0

    before = keys()
    monkeypatch.setattr(options, "Discriminant", Other)
    monkeypatch.setitem(registry._CODES, "discriminant", Other)
    after = keys()
    assert [new != old for old, new in zip(before, after, strict=True)] == [True, True, True, False]


def test_untimed_runs_store_no_second(tmp_path: Path) -> None:
    runs = planned([config(cells=[{"shots": 3, "curve": True}], reference={})], seeds=[0])
    assert work(runs, Settings(tmp_path, timed=False)) == 0
    for record in Results("tiny", tmp_path).records().values():
        assert record["init_seconds"] is record["train_seconds"] is None
        assert [point[1] for point in record["curve"]] == [None, None]
        assert record["accuracy_after"] > 0


def test_seeds_are_completed_evenly_and_shards_share_the_work() -> None:
    runs = planned([config(), parse("other", content())])
    assert [run.seed for run in runs] == [0] * 8 + [1] * 8
    assert [run.config.name for run in runs[:8]] == ["tiny"] * 4 + ["other"] * 4
    shards = [planned([config()], shard=Shard(index, 3)) for index in (1, 2, 3)]
    assert sorted(run.key for shard in shards for run in shard) == sorted(
        run.key for run in planned([config()])
    )
    # Arms are compared with one another: a seed's are on one machine.
    assert [len(shard) for shard in shards] == [4, 2, 2]
    assert all(len({run.arm.name for run in shard}) == 2 for shard in shards)
    few = config(cells=[{"shots": 2}, {"shots": 3, "seeds": [1]}])
    assert [cell_label(run.cell) for run in planned([few], seeds=[0])] == ["2 shots"] * 2


def test_stacks_hold_one_cell() -> None:
    groups = grouped(planned([config()]), 3)
    assert sorted(map(len, groups)) == [1, 1, 3, 3]
    assert all(len({cell_label(run.cell) for run in group}) == 1 for group in groups)


def test_an_arm_may_have_a_rate_of_its_own() -> None:
    """The same result as that of a cell with this rate, and in no stack with another."""
    slow = {"training": {"rate": 0.01}}
    own = config(arms=content()["arms"] | {"He": {"initialiser": "he-normal"} | slow})
    assert [run.training["rate"] for run in own.runs(0)] == [0.01, 0.05, 0.01, 0.05]
    cells = config(cells=[{"shots": 2, "label": "2"} | slow], reference={})
    plain = config()
    by_arm, by_cell, before = (next(item.runs(0)) for item in (own, cells, plain))
    assert by_arm.digest == by_cell.digest != before.digest
    groups = grouped(planned([own], seeds=[0]), 4)
    assert sorted(map(len, groups)) == [1, 1, 1, 1]


@pytest.mark.parametrize("stack", [1, 3])
def test_an_arm_is_trained_at_its_rate(stack: int, tmp_path: Path) -> None:
    he = {"initialiser": "he-normal"}
    arms = {"plain": he, "slow": he | {"training": {"rate": 1e-6}}, "third": he}
    recipe = {"epochs": 2, "rate": 1.0, "batch": 16}
    changes: dict[str, Any] = {"compare_with": None, "reference": {}, "directions": True}
    changes["training"] = recipe
    runs = planned([config(arms=arms, cells=[{"shots": 3}], **changes)], seeds=[0])
    assert work(runs, Settings(tmp_path, stack=stack)) == 0
    found = {item["arm"]: item["cosine"] for item in Results("tiny", tmp_path).records().values()}
    # A step of 1e-6 turns a filter by less than six digits show; at 1.0 it was 0.795.
    assert found["slow"] == pytest.approx(1, abs=2e-6)
    assert found["plain"] < 0.95
    # The same arm twice; the networks of a stack may be rounded in different orders.
    assert found["third"] == pytest.approx(found["plain"], abs=1e-3)


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    results = Results("tiny", tmp_path)
    runs = planned([config(seeds=list(range(10)))])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda run: results.append([run.fields | {"accuracy_before": 1 / 3}]), runs))
    assert results.records().keys() == {run.key for run in runs}
    assert len(results.environments()) == 1
    assert {item["accuracy_before"] for item in results.records().values()} == {0.333333}


def test_a_truncated_line_is_ignored_and_replaced(tmp_path: Path) -> None:
    results = Results("tiny", tmp_path)
    runs = planned([config()])
    results.append([run.fields for run in runs[:2]])
    whole = results.path.read_bytes()
    results.path.write_bytes(whole[:-10])
    assert missing(runs, tmp_path) == runs[1:]
    results.append([runs[1].fields])
    assert results.path.read_bytes() == whole


def test_a_failing_run_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A weight for a layer that the network does not have is found only once it is there.
    no = {"initialiser": "sylvinit", "settings": {"code": {"unheard-of": "pca"}}}
    arms = {"no": no, "He": {"initialiser": "he-normal"}}
    wrong = config(arms=arms, cells=[{"shots": 2}], compare_with=None, reference={})
    runs = planned([wrong], seeds=[0])
    assert work(runs, Settings(tmp_path, stack=2)) == 1
    assert [run.arm.name for run in missing(runs, tmp_path)] == ["no"]
    assert "unheard-of" in capsys.readouterr().err


def test_the_command_with_two_workers(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(content(cells=[{"shots": 2}], reference={})))
    arguments = [sys.executable, COMMAND, "run", path, "--results", tmp_path, "--workers", "2"]
    done = subprocess.run(
        list(map(str, [*arguments, "--seeds", "0"])), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(Results("tiny", tmp_path).records()) == 2


def test_from_run_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(content()))
    out = tmp_path / "docs" / "results.md"

    def command(*arguments: object) -> str:
        assert main([*map(str, arguments), "--results", str(tmp_path)]) == 0
        return capsys.readouterr().out

    assert "0 of 8 runs" in command("status", path)
    assert "8 of 8 runs to do" in command("run", path, "--minutes", 0)
    assert "8 of 8 runs to do" in command(
        "run", path, "--seeds", 0, 1, "--shard", "1/1", "--minutes", 0
    )
    assert "4 of 4 runs to do" in command("run", path, "--seeds", 0)
    command("report", path, "--out", out)
    assert "- (1 of 2 seeds) [12.5 (9)]" in out.read_text()
    second = command("run", path)
    assert "4 of 8 runs to do" in second
    assert "0 runs remain, 0 failed" in second
    assert "tiny: 8 of 8 runs" in command("status", path)
    command("report", path, "--out", out)
    text, picture = out.read_text(), (out.parent / "results_tiny_curves.png").read_bytes()
    assert "| He | " in text
    assert "seeds)" not in text
    assert "p = " in text or "p < " in text
    command("report", path, "--out", out)
    assert out.read_text() == text
    assert (out.parent / "results_tiny_curves.png").read_bytes() == picture


def test_how_far_filters_turn_is_stored_and_reported(tmp_path: Path) -> None:
    path, out = tmp_path / "tiny.json", tmp_path / "results.md"
    cells = [{"shots": 3, "training": {"rate": rate}} for rate in (1e-4, 0.1)]
    path.write_text(json.dumps(content(cells=cells, reference={}, directions=True)))
    for command in (["run", "--stack", "2"], ["report", "--out", str(out)]):
        assert main([*command, str(path), "--results", str(tmp_path)]) == 0
    found = Results("tiny", tmp_path).records().values()
    slow, fast = (
        [item["cosine"] for item in found if item["cell"]["training"]["rate"] == rate]
        for rate in (1e-4, 0.1)
    )
    assert len(slow) == len(fast) == 4
    assert 0.99 < min(slow) <= max(slow) <= 1
    assert 0 < max(fast) < min(slow)
    assert "Mean cosine" in out.read_text()


def test_cosine_of_filters() -> None:
    first, second = torch.eye(3).double(), torch.tensor([[3.0, 4.0]]).double()
    assert cosine([first, second], [2 * first, -second]) == pytest.approx(0.0)
    assert cosine([first], [first.roll(1, 0)]) == 0
    assert cosine([second], [torch.tensor([[1.0, 0.0]]).double()]) == pytest.approx(0.6)
    before = filters(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.Linear(3, 4)))
    assert [item.shape for item in before] == [(3, 8)]
    with pytest.raises(ValueError, match="convolutions"):
        cosine([], [])


def test_reports_that_would_surprise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "absent")
    for command in (["status"], ["report", "--out", str(tmp_path / "a.md")]):
        assert main([*command, "--results", absent]) == 2
        assert "absent is no folder" in capsys.readouterr().err
    # docs/results.md is of all configurations and of the stored results.
    for command in (["report", "digits"], ["report", "--results", str(tmp_path)]):
        assert main(command) == 2
        assert "--out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_data_are_code_2_and_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYLVINIT_DATA", str(tmp_path))
    load.cache_clear()
    assert main(["run", "few_shot_cifar100", "--results", str(tmp_path)]) == 2
    assert "cifar-100-python" in capsys.readouterr().err
    out = tmp_path / "results.md"
    arguments = ["few_shot_cifar100", "--results", str(tmp_path), "--out", str(out)]
    assert main(["report", *arguments]) == 0
    assert "needs cifar-100-python" in out.read_text()
