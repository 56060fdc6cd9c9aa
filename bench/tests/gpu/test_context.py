from __future__ import annotations

from gpu.context import Context


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
