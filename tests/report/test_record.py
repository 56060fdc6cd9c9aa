from __future__ import annotations

import json
from typing import Any

import pytest
from driver_helpers import images, small_net

import sylvinit
from sylvinit.report import LayerReport, Report


def test_a_report_by_itself_is_one_line() -> None:
    report = Report([LayerReport("conv", "Conv2d", "solved")], samples=7)
    assert (
        repr(report)
        == "<Report: 1 layers solved, 0 normalizations calibrated, 0 left alone; 7 samples, 0.00 s>"
    )


def test_rows_have_one_name_and_an_older_alias() -> None:
    layer = LayerReport("conv", "Conv2d", "solved", d_in=27, d_out=16, rows=1234)
    assert layer.patches == 1234
    assert layer.to_dict()["rows"] == layer.to_dict()["patches"] == 1234
    header, _, row = str(Report([layer])).splitlines()[:3]
    assert row[header.index("rows") :].split()[0] == "1234"
    with pytest.raises(AttributeError):
        layer.patches = 1  # type: ignore[misc]


def test_the_report_in_json() -> None:
    def no_constants(text: str) -> Any:
        raise AssertionError(f"{text} is not JSON")

    report = sylvinit.initialize_(small_net(), images(30), preset="best", seed=3, lam=2.0)
    values = json.loads(report.to_json(), parse_constant=no_constants)
    assert values == report.to_dict()
    assert values["samples"] == 30
    assert values["settings"]["seed"] == 3
    layers = {layer["name"]: layer for layer in values["layers"]}
    assert layers["conv2"]["status"] == "solved"
    assert layers["conv2"]["groups"] == 2
    assert (layers["conv2"]["d_in"], layers["conv2"]["d_out"]) == (36, 4)
    assert layers["conv2"]["residual"] < 1e-12
    assert layers["frozen"]["residual"] is None
    assert values["seconds"] > 0
    with pytest.raises(KeyError):
        report["nothing"]
