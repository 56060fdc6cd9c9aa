"""Which runs are done, with which codes, and on how many images they are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from config import ConfigError, Run, parse
from meaning import arguments_from
from store import Results
from work import Settings, check_all, planned, work

from sylvinit.codes import Discriminant, SignPairs


def runs(**changes: Any) -> list[Run]:
    """Two arms on digits, before training, one seed."""
    content = {
        "title": "Digits",
        "paper": "none",
        "runner": "before",
        "dataset": "digits",
        "network": "digits_net",
        "cells": [{"shots": 2}],
        "arms": {
            "He": {"initialiser": "he-normal"},
            "sylvinit": {"initialiser": "sylvinit", "settings": {"preset": "frozen"}},
        },
        "seeds": [0],
    }
    return planned([parse("tiny", content | changes)])


def test_pairs_are_made_of_a_code_with_its_fields() -> None:
    settings = {"code": {"conv1": "pca", "*": {"pairs_of": {"code": "discriminant", "prior": 5.0}}}}
    found = arguments_from(settings)["code"]
    assert found == {"conv1": "pca", "*": SignPairs(Discriminant(prior=5.0))}


@pytest.mark.parametrize(
    "changes",
    [
        {"measured": 0},
        {"measured": True},
        {"measured": 5, "runner": "head", "checkpoint": "none.pt", "network": "resnet20"},
        {"arms": {"a": {"initialiser": "sylvinit", "settings": {"code": {"pairs_of": "x"}}}}},
        {"arms": {"a": {"initialiser": "sylvinit", "settings": {"code": {"pairs_of": "onehot"}}}}},
    ],
)
def test_wrong_configurations_are_refused(changes: dict[str, Any]) -> None:
    if changes.get("runner") == "head":  # and nothing else is wrong
        changes = {"arms": {"a": {"initialiser": "sylvinit-head"}}} | changes
    with pytest.raises(ConfigError, match="tiny"):
        runs(**changes)


def test_fewer_images_are_another_result() -> None:
    assert runs(measured=5)[0].key != runs()[0].key


def test_fewer_images_of_each_class_may_be_measured(tmp_path: Path) -> None:
    threads = torch.get_num_threads()  # which work sets for its process
    try:
        assert work(runs(measured=1), Settings(tmp_path)) == 0
    finally:
        torch.set_num_threads(threads)
    values = [line["accuracy_before"] for line in Results("tiny", tmp_path).records().values()]
    assert len(values) == 2
    assert all(value % 10 == 0 for value in values)  # of ten images, one of each class


def test_cells_that_ask_for_more_images_than_there_are_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = check_all(runs(cells=[{"shots": 1000}, {"shots": 2}]))
    assert [run.cell["shots"] for run in left] == [2, 2]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "tiny, 1000 shots: left out" in said[0]
