from __future__ import annotations

from html.parser import HTMLParser

from sylvinit.report import LayerReport, Report


class Outline(HTMLParser):
    """Open elements, to see that each is closed, and the text of cells and summaries."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1], []).append(data)


def test_html_is_well_formed_and_escaped() -> None:
    layer = LayerReport("<b>&", "Linear", "solved", code="pca", d_in=3, d_out=2, rows=9)
    layer.notes.append("a < b")
    left = LayerReport("embedding", "Embedding", "skipped", "frozen <by> you")
    outline = Outline()
    outline.feed(Report([layer, left], warnings=["x > y"])._repr_html_())
    assert outline.open == []
    assert outline.texts["th"] == ["layer", "kind", "code", "size", "rows"]
    assert outline.texts["td"] == ["<b>&", "Linear", "pca", "3 -> 2", "9"]
    assert outline.texts["summary"] == ["1 left alone", "1 notes", "1 warnings"]
    assert outline.texts["li"] == ["frozen <by> you: embedding", "<b>&: a < b", "x > y"]


def test_html_without_remarks_has_nothing_folded() -> None:
    assert "<details>" not in Report([LayerReport("fc", "Linear", "solved")])._repr_html_()
