"""What a release consists of agrees with itself: versions, metadata, citation."""

from __future__ import annotations

import re
from email.parser import Parser
from pathlib import Path

import pytest
from build_helpers import ROOT, run_setup

import sylvinit

SOURCE, DOCS = "https://example.org/sylvinit", "https://example.org/docs?page=1"


def metadata(tmp_path: Path, **environment: str) -> tuple[int, list[str], str]:
    """Exit status, links of the metadata, messages."""
    arguments = ("egg_info", f"--egg-base={tmp_path}")
    code, _, err = run_setup(*arguments, SYLVINIT_CUDA="0", **environment)
    (file,) = [*tmp_path.glob("*.egg-info/PKG-INFO")] or [None]
    found = Parser().parsestr(file.read_text("utf-8")) if file else {}
    return code, (found.get_all("Project-URL") or []) if file else [], err


def test_every_place_has_the_same_version() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    changed = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert cited is not None
    assert changed is not None
    assert cited[1] == changed[1] == sylvinit.__version__


def test_links_come_from_who_builds(tmp_path: Path) -> None:
    code, links, err = metadata(tmp_path, SYLVINIT_URLS=f"Source={SOURCE} Documentation={DOCS}")
    assert code == 0, err
    assert links == [f"Source, {SOURCE}", f"Documentation, {DOCS}"]


def test_no_links_by_default(tmp_path: Path) -> None:
    code, links, err = metadata(tmp_path, SYLVINIT_URLS="")
    assert code == 0, err
    assert links == []


@pytest.mark.parametrize("wrong", ["https://example.org", "Source=ftp://example.org", "=https://a.b"])
def test_links_of_another_form_are_refused(tmp_path: Path, wrong: str) -> None:
    code, _, err = metadata(tmp_path, SYLVINIT_URLS=wrong)
    assert code == 1
    assert f"SYLVINIT_URLS: expected entries NAME=https://..., separated by spaces, got {wrong!r}" in err
