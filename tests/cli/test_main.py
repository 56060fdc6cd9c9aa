from __future__ import annotations

import runpy
import sys

import pytest
import torch

import sylvinit
from sylvinit import backends, cli


def test_info_names_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"sylvinit {sylvinit.__version__}" in out
    assert torch.__version__.split("+")[0] in out
    for row in backends.table():
        assert row.name in out
        assert row.reason in out


def test_version_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sylvinit", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("sylvinit", run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sylvinit {sylvinit.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["init", "--model", "a:b"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: sylvinit" in capsys.readouterr().err
