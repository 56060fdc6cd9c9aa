"""The first pages say what the stored results say, and not more than they have room for."""

from __future__ import annotations

import re

import front_page
import pytest

PAGE = front_page.README.read_text("utf-8")


def test_figures_are_those_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert front_page.main(["--check"]) == 0, capsys.readouterr().out
    pages = "".join(path.read_text("utf-8") for path in front_page.PAGES)
    assert {*re.findall(r"<!-- figure: (\w+) -->", pages)} == {*front_page.FIGURES}


def test_a_figure_by_hand() -> None:
    # The means of the table in docs/evidence.md, of the same ten seeds: 48.7 beside 40.1 (Xavier
    # normal) and 43.3 (LSUV).
    assert front_page.few_images() == "+5.3 to +8.6"


def test_other_figures_are_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(front_page.FIGURES, "memory", lambda: "2.00x")
    assert front_page.main(["--check"]) == 1
    assert "memory: README.md has" in capsys.readouterr().out


def test_it_is_short() -> None:
    text = re.sub(r"<!--.*?-->", "", PAGE, flags=re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(re.findall(r"[\w'.+-]*\w", prose)) <= 1300
    assert text.count("%") <= 25
