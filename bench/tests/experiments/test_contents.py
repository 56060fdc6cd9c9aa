"""The list of sections of the report, and links between the pages of the documentation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from config import load_config
from contents import anchor, by_paper, contents
from measures import measured

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def without_code(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```|^<!-- python$.*?^-->", "", text, flags=re.M | re.S)


@pytest.mark.parametrize(
    ("title", "expected"),
    {
        "Few-shot training on CIFAR-10, VGG-8": "few-shot-training-on-cifar-10-vgg-8",
        "Which preset? Chosen on 5,000 images": "which-preset-chosen-on-5000-images",
        "scikit-learn's digits": "scikit-learns-digits",
        "The weight λ": "the-weight-λ",
    }.items(),
)
def test_anchors_by_hand(title: str, expected: str) -> None:
    assert anchor(title) == expected


def test_sections_are_in_the_order_of_the_papers(tmp_path: Path) -> None:
    names = ("digits", "correlated_l2_small", "codes_cifar10")
    text = contents(by_paper([measured(load_config(name), tmp_path) for name in names]))
    rows = [row for row in text.splitlines() if row.startswith("| [")]
    assert [row.split("|")[2].strip() for row in rows] == [
        "paper 1, figure 3 (a)",
        "after paper 2, table 2",
        "of neither paper",
    ]
    assert all(re.search(r"\| 0 of \d+ \|$", row) for row in rows)


def test_titles_that_are_the_same_are_refused(tmp_path: Path) -> None:
    first = load_config("digits")
    second = dataclasses.replace(first, name="other")
    with pytest.raises(ValueError, match="different titles"):
        contents([measured(first, tmp_path), measured(second, tmp_path)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files of the repository and to headings in its pages."""
    text = without_code(page)
    labelled = dict(re.findall(r"^\[([^\]]+)\]: (\S+)", text, re.MULTILINE))
    assert set(re.findall(r"\]\[([^\]]+)\]", text)) <= labelled.keys()
    targets = [*re.findall(r"\]\(([^)\s]+)\)", text), *labelled.values()]
    local = [target for target in targets if "://" not in target]
    for target in local:
        name, _, place = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if place:
            headings = re.findall(r"^#+ (.+)$", without_code(path), re.MULTILINE)
            assert place in {anchor(heading.replace("`", "")) for heading in headings}, target
