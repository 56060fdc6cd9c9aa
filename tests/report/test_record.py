from __future__ import annotations

import pytest

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
