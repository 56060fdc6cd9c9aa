from __future__ import annotations

from pathlib import Path

from gpu import testing


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


def test_counts_of_a_file_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "test_stopped.py"
    path.write_text(
        "import os, pytest, signal\n"
        "@pytest.mark.parametrize('name', ['a b', 'c::d'])\n"
        "def test_good(name):\n    pass\n"
        "def test_bad():\n    raise ValueError('no')\n"
        "def test_stopped():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = testing.test_file(path, lambda: 60, {})
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 1, 0)
    assert found["failures"][0]["test"] == "test_bad"
    assert not found["ended"]


def test_what_counts_as_passed() -> None:
    good = {"ended": True, "passed": 3, "failed": 0, "skipped": 1}
    assert testing.all_passed([good])
    for change in ({"ended": False}, {"passed": 0}, {"failed": 1}):
        assert not testing.all_passed([good, {**good, **change}])
    assert not testing.all_passed([])
