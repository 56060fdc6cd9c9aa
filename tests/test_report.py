from __future__ import annotations

import pytest

from sylvinit.report import LayerReport, Report


def test_rows_have_one_name_and_an_older_alias() -> None:
    layer = LayerReport("conv", "Conv2d", "solved", d_in=27, d_out=16, rows=1234)
    assert layer.patches == 1234
    assert layer.to_dict()["rows"] == layer.to_dict()["patches"] == 1234
    header, _, row = str(Report([layer])).splitlines()[:3]
    assert row[header.index("rows") :].startswith("1234")
    with pytest.raises(AttributeError):
        layer.patches = 1  # type: ignore[misc]
