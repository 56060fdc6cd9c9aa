"""The results as a page: a summary of each library, what is wrong with which model, every model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Row = dict[str, Any]

_TRIED = ("initialized", "refused", "failed", "too slow", "died")
_LARGE = 1_000.0
_SHOWN = 4  # reasons in short


def table(rows: list[Row], models: int | None = None) -> str:
    """Markdown, with the versions and machines that the rows name.

    Args:
        rows: results.
        models: how many there are, those without a result included.
    """
    rows = sorted(rows, key=lambda row: row["name"])
    parts = [_TITLE, _in_short(rows, models), _METHOD, _summary(rows), _environments(rows)]
    return "\n\n".join([*parts, _problems(rows), _left(rows), _all(rows)]) + "\n"


_TITLE = "# The zoo of models"

_METHOD = """## How it was measured

`python bench/zoo.py run` builds networks of three libraries with random weights, gives
`initialize_` (`preset="best"`) twelve smooth random images or token ids with labels of four
classes, each network in a process of its own on one thread, and stores what came out. `python
bench/zoo.py table` writes this page from it. timm: the smallest model of every family (a file of
timm's and the letters that names begin with) up to 30 million parameters. transformers: every class
for images, sequences and causal language, shrunk by the names of its configuration's fields.
torchvision: classifiers, segmentation models, and detectors through `forward_fn=`.

*Tried* leaves out what the library itself does not build or run here with these inputs. *Head*: the
last layer is found and a linear map; it is *solved*, and then *right* is how often it has the
twelve labels right again. A multiple is `initialize_`'s time over that of one forward pass of the
twelve samples. Other work ran on the same machine, so that seconds are no more than a hint.

What a layer is: [layers and codes](layers.md). What labels make of a head: [labels of every
kind](targets.md)."""


def _in_short(rows: list[Row], models: int | None) -> str:
    """Models, heads, the largest weight, and what is left alone."""
    tried, done = _of(rows, *_TRIED), _of(rows, "initialized")
    largest = max(done, key=lambda row: row["largest"])
    counts = sum((Counter(row["counts"]) for row in done), Counter[str]())
    of_all = f" of {max(models, len(rows))}" if models else ""
    rest = f", and {models - len(rows)} have not been run" if models and models > len(rows) else ""
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in done:
        if not _has_solved_head(row):
            reasons[kind_of_reason(_head(row))].append(_head(row))
    unsolved = sum(map(len, reasons.values()))
    return "\n".join(
        [
            f"- **{len(tried)}{of_all} networks were tried**, of timm, transformers, torchvision; "
            f"{len(rows) - len(tried)} could not be built or run by their library here, or are too "
            f"large{rest}.",
            f"- **{len(done)} were initialized**, {len(_of(rows, 'refused', 'failed'))} refused, "
            f"{len(_of(rows, 'too slow', 'died'))} ran out of time or memory.",
            f"- **{len(done) - unsolved} heads were solved**, {unsolved} were not"
            + "".join(f"; {len(texts)}: {texts[0]}" for texts in reasons.values())
            + ".",
            f"- The largest weight anywhere is {largest['largest']:,.0f} ({largest['name']}); the "
            f"median of the networks' largest is {median(row['largest'] for row in done):.1f}.",
            f"- {counts['solved']:,} layers were solved and {counts['calibrated']:,} "
            f"normalizations calibrated. Left alone were {counts['skipped']:,} modules:",
            *(
                f"    - {x.types.total():,}: {x.reason} ({_frequent(x.types, 4)})"
                for x in _left_alone(done)[:_SHOWN]
            ),
        ]
    )


def _has_solved_head(row: Row) -> bool:
    return row.get("head_status") == "solved"


def _head(row: Row) -> str:
    """Why a head is not solved."""
    if row.get("head") is not None:
        return row["head_code"]
    said = (text for text in row["warnings"] if "the head" in text or "classifier" in text)
    return next(said, "no layer is the head").rpartition(" is not solved: ")[2]


def _of(rows: list[Row], *statuses: str) -> list[Row]:
    return [row for row in rows if row["status"] in statuses]


def _group(row: Row) -> str:
    """The library, and what its models are for where it says so."""
    parts = row["name"].split("/")
    return " ".join(parts[:-1])


def _markdown(titles: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    titles = list(titles)
    cells = [titles, ["---"] * len(titles), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in cells)


def _summary(rows: list[Row]) -> str:
    titles = (
        "models|tried|initialized|refused or failed|too slow or died|heads found|solved|right"
        "|a weight above 100|above 1,000|largest|seconds, median|multiple, median and worst"
    )
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_group(row)].append(row)
    groups["**all**"] = rows
    lines = []
    for name, group in groups.items():
        done = _of(group, "initialized")
        heads = [row for row in done if row.get("head")]
        solved = [row for row in heads if _has_solved_head(row)]
        right = [row["accuracy"] for row in solved if "accuracy" in row]
        largest = [row["largest"] for row in done]
        multiples = list(map(_multiple, done))
        lines.append(
            (
                name,
                len(_of(group, *_TRIED)),
                len(done),
                len(_of(group, "refused", "failed")),
                len(_of(group, "too slow", "died")),
                len(heads),
                len(solved),
                f"{sum(right) / len(right):.0%}" if right else "-",
                sum(size > 100 for size in largest),
                sum(size > _LARGE for size in largest),
                f"{max(largest):,.0f}" if largest else "-",
                f"{median(row['seconds'] for row in done):.1f}" if done else "-",
                f"{median(multiples):.0f}, {max(multiples):.0f}" if done else "-",
            )
        )
    return _markdown(titles.split("|"), lines)


def _multiple(row: Row) -> float:
    return row["seconds"] / row["forward_seconds"]


def _environments(rows: list[Row]) -> str:
    keys = ("sylvinit", "torch", "timm", "torchvision", "transformers", "python", "cpu")
    commits: dict[str, set[str]] = defaultdict(set)
    for environment in (row["environment"] for row in rows if "environment" in row):
        text = ", ".join(f"{key} {environment.get(key)}" for key in keys)
        commits[text].add(environment["commit"])
    return "\n".join(
        f"Environment: {text}; commits of sylvinit, which the results name: {len(found)}."
        for text, found in sorted(commits.items())
    )


def _problems(rows: list[Row]) -> str:
    sections = [
        _listed("Refused or failed", _of(rows, "refused", "failed"), lambda row: row["error"]),
        _listed("Too slow or ended by the system", _of(rows, "too slow", "died"), _error),
        _listed(
            "Heads not solved",
            [row for row in _of(rows, "initialized") if not _has_solved_head(row)],
            _head,
        ),
        _listed(
            "Weights above 1,000",
            [row for row in _of(rows, "initialized") if row["largest"] > _LARGE],
            lambda row: f"{row['largest']:,.0f} in `{row['largest_in']}`",
        ),
        _listed(
            "Labels that are not right, outputs that are not finite, forwards that fail afterwards",
            [row for row in _of(rows, "initialized") if _is_suspect(row)],
            _after,
        ),
        _listed(
            "Not built or not run by the library", _of(rows, "not built", "forward fails"), _error
        ),
    ]
    return "\n\n".join(section for section in sections if section)


def _is_suspect(row: Row) -> bool:
    if "after" in row or not row["finite"]:
        return True
    return row.get("head_status") == "solved" and row.get("accuracy", 1.0) < 1.0


def _after(row: Row) -> str:
    return row.get("after") or f"accuracy {row.get('accuracy')}, finite {row['finite']}"


def _error(row: Row) -> str:
    return row["error"]


def _listed(title: str, rows: list[Row], text: Callable[[Row], str]) -> str:
    """Models with one reason in one line."""
    if not rows:
        return ""
    reasons: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        full = " ".join(text(row).split())[:300].replace("|", "/")
        reasons[kind_of_reason(full)].append((row["name"], full))
    lines = [
        (len(found), ", ".join(name for name, _ in found), found[0][1])
        for found in sorted(reasons.values(), key=len, reverse=True)
    ]
    return f"## {title}\n\n" + _markdown(("models", "which", "for example"), lines)


@dataclass
class _Left:
    """What was left alone for one reason."""

    reason: str  # as it was said first
    types: Counter[str] = field(default_factory=Counter)
    models: set[str] = field(default_factory=set)


def _left_alone(rows: list[Row]) -> list[_Left]:
    """Reasons without names and numbers, those of most modules first."""
    found: dict[str, _Left] = {}
    for row in _of(rows, "initialized"):
        for text in row["skipped"].values():
            kind, reason = text.split(": ", 1)
            reason = reason.replace(kind, "the type")
            left = found.setdefault(kind_of_reason(reason), _Left(reason))
            left.types[kind] += 1
            left.models.add(row["name"])
    return sorted(found.values(), key=lambda left: -left.types.total())


def _left(rows: list[Row]) -> str:
    lines = [
        (x.types.total(), len(x.models), x.reason, _frequent(x.types, 10))
        for x in _left_alone(rows)
    ]
    titles = ("modules", "models", "reason, for example", "types")
    return "## Layers left alone\n\n" + _markdown(titles, lines)


def _frequent(types: Counter[str], most: int) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in types.most_common(most))


def _all(rows: list[Row]) -> str:
    def line(row: Row) -> tuple[object, ...]:
        counts = row["counts"]
        return (
            row["name"],
            f"{row['parameters']:,}",
            f"{counts.get('solved', 0)}, {counts.get('calibrated', 0)}, {counts.get('skipped', 0)}",
            row.get("head_status") or "none",
            f"{row['largest']:.3g} ({row['largest_before']:.2g})",
            f"{row['seconds']:.2f}",
            f"{_multiple(row):.0f}",
        )

    titles = (
        "model|parameters|solved, calibrated, left|head|largest weight (before)|seconds|multiple"
    )
    lines = map(line, _of(rows, "initialized"))
    return "## Every model that was initialized\n\n" + _markdown(titles.split("|"), lines)


def kind_of_reason(text: str) -> str:
    """A reason without names and numbers, so that equal ones can be counted."""
    text = re.sub(r"`[^`]*`|'[^']*'|\b\w+(?:\.\w+)+\b|\([^)]*\)|\[[^\]]*\]", "…", text)
    return re.sub(r"\d[\d,.]*", "N", text)
