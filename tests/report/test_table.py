from __future__ import annotations

import pytest
import torch
from torch import nn

import sylvinit
from sylvinit.report import Candidate, LayerReport, Report
from sylvinit.report.table import WIDTH

LONG = "backbone.body.stages.3.blocks.11.attention.query_key_value.projection"


def solved(name: str, **fields: object) -> LayerReport:
    values = {"code": "discriminant-pairs", "d_in": 4608, "d_out": 2048, "groups": 128} | fields
    values |= {"rows": 50_176_000, "rank": 4608, "residual": 3.2e-16, "seconds": 123.4}
    values |= {"std_before": 1.234e-5, "std_after": 0.9876}
    return LayerReport(name, "NonDynamicallyQuantizableLinear", "solved", **values)  # type: ignore[arg-type]


def skipped(name: str, reason: str = "frozen") -> LayerReport:
    return LayerReport(name, "Embedding", "skipped", reason)


@pytest.mark.parametrize("everything", [False, True])
def test_no_line_is_longer_than_the_terminal(everything: bool) -> None:
    report = Report(
        [solved(LONG), solved("fc"), skipped(LONG, "a reason of many words, " * 9)],
        warnings=["features constant in these data " * 10],
    )
    report.layers[0].notes.append("a note of many words " * 10)
    lines = report.table(all=everything).splitlines()
    assert max(map(len, lines)) <= WIDTH == 100
    header, rule, first, second = lines[:4]
    # The columns stand, and the end of the name is there rather than its beginning.
    assert first.startswith("...")
    assert LONG.endswith(first.split()[0][3:])
    assert second.split()[0] == "fc"
    assert second.index("3e-16") + len("3e-16") == header.index("residual") + len("residual")
    assert len(rule) == len(header)


def test_names_that_fit_are_whole() -> None:
    layer = LayerReport("layer4.1.conv2", "Conv2d", "solved", code="pca", d_in=27, d_out=16)
    assert str(Report([layer])).splitlines()[2].split() == [
        "layer4.1.conv2",
        "Conv2d",
        "pca",
        "27",
        "->",
        "16",
    ]


def test_skipped_layers_are_counted_by_reason() -> None:
    names = [f"embedding.{index}" for index in range(5)]
    plain = LayerReport("fc", "Linear", "solved", code="pca", d_in=64, d_out=10)
    report = Report([plain, *map(skipped, names), skipped("lonely", "its own reason")])
    text = str(report)
    assert "5 left alone: frozen\n" in text
    assert "1 left alone: its own reason (lonely)" in text
    assert names[4] not in text
    whole = report.table(all=True)
    rows = {line.split()[0]: line for line in whole.splitlines()}
    assert all("skipped: frozen" in rows[name] for name in names)
    assert "left alone: frozen" not in whole


def test_notes_that_differ_in_numbers_are_one() -> None:
    report = Report([solved(str(index)) for index in range(6)])
    for index, layer in enumerate(report.layers):
        layer.notes = [f"{index + 2} outputs filled"]
    text = str(report)
    assert "0, 1, 2 and 3 more: 2 outputs filled" in text
    assert "7 outputs" not in text
    assert "5: 7 outputs filled" in report.table(all=True)


@pytest.mark.parametrize(
    ("rows", "text"), [(99_999, "99999"), (100_000, "100k"), (50_176_000, "50.18M")]
)
def test_large_counts_are_short(rows: int, text: str) -> None:
    line = str(Report([LayerReport("fc", "Linear", "solved", rows=rows)])).splitlines()[2]
    assert line.split() == ["fc", "Linear", text]


def test_a_report_without_layers_is_its_summary() -> None:
    assert str(Report()).startswith("0 layers solved")


def test_a_report_of_skipped_layers_alone() -> None:
    report = Report([skipped("a"), skipped("b")])
    assert str(report).splitlines()[0].startswith("0 layers solved")
    assert "skipped: frozen" in report.table(all=True)


def test_the_table_of_a_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    model[0].weight.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 1, 6, 6, generator=generator)
    report = sylvinit.initialize_(model, (x, torch.arange(40) % 3), preset="best")
    rows = {line.split()[0]: line.split() for line in str(report).splitlines()[:4]}
    assert rows["1"][:3] == ["1", "BatchNorm2d", "statistics"]
    assert rows["4"][2:6] == ["onehot", "64", "->", "3"]
    assert "0" not in rows
    whole = report.table(all=True)
    rows = {line.split()[0]: line for line in whole.splitlines()[2:5]}
    assert all(layer.kind in rows[layer.name] for layer in report.layers)
    assert "skipped: frozen" in rows["0"]
    assert "1 layers solved, 1 normalizations calibrated, 1 left alone; 40 samples" in whole


def test_what_was_chosen_is_said() -> None:
    candidates = [Candidate("own", 0.75, chosen=True), Candidate("best", reason="it failed")]
    report = Report([skipped("a")], candidates=candidates)
    expected = "start: own, by the held-out error of a head (own 0.750; best, it failed)"
    assert str(report).splitlines()[1] == expected
    assert expected in report._repr_html_()
    candidates[0].chosen = False
    assert "the start would be chosen of: own; best" in str(report)
