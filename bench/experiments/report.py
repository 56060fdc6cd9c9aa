"""Tables and figures in Markdown, from the stored results alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis import Comparison, compare, estimate, holm
from config import Arm, Config, cell_label
from contents import by_paper, contents
from data import NEEDS
from figures import draw_curves, draw_maps, draw_over_x
from measures import Measured, measured

_HEADER = """# Results

Written by `python bench/experiments report` from
[bench/results/experiments](../bench/results/experiments): do not edit. How to repeat any of it
is in [bench/experiments](../bench/experiments/__main__.py), and each section is one file of
[configurations](../bench/experiments/configs).

Mean ± half the width of the 95 % interval over seeds (Student's t), accuracies in per cent. All
arms of a seed have the same images in the same order. Comparisons are paired t tests over the
seeds, and their p values are adjusted by Holm's method for all comparisons that a table is to have
in the end. At 500 shots of CIFAR-10 all seeds have the same images: of new heads, on which little
else depends, there are means alone; where networks are trained, the intervals are over the weights
and the order and say nothing of other images. "-" is a cell whose seeds are not all there yet. Arms
of sylvinit that name no preset have "paper", whose rows are not scaled.

Regression on tables and segmentation are on [a page of their own](results_targets.md).
"""
_PARTIAL = """
This report shows unfinished cells, too: {3 of 5 seeds} stands beside them. They have no p values.
"""


def write_report(configs: Sequence[Config], folder: Path, out: Path, partial: bool = False) -> None:
    """Write the report, and its figures beside it.

    Args:
        configs: one section each, in the order of the papers, and in this one within a paper.
        folder: of the results.
        out: the Markdown file.
        partial: whether cells with some of their seeds are shown, too.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    results = by_paper([measured(config, folder) for config in configs])
    header = _HEADER + (_PARTIAL if partial else "")
    sections = [header, contents(results), *(_section(item, out, partial) for item in results)]
    out.write_text("\n".join(sections), encoding="utf-8")


def _section(results: Measured, out: Path, partial: bool) -> str:
    config = results.config
    lines = [f"## {config.title}", "", _origin(config), ""]
    lines += [f"- {text}" for text in config.deviations]
    lines += [""] if config.deviations else []
    if not results.environments:
        needs = [NEEDS.get(config.dataset, config.dataset)]
        if config.checkpoint:
            needs.append(f"{config.checkpoint} in the folder that SYLVINIT_CHECKPOINTS names")
        command = f"python bench/experiments run {config.name}"
        return "\n".join([*lines, f"**Not run yet.** `{command}` needs {' and '.join(needs)}.", ""])
    lines += [_accuracies(results, partial), _comparisons(results, partial)]
    lines += [_directions(results, partial)] if config.directions else []
    lines += [_seconds(results, partial), *_figures(results, out)]
    lines += _environments(results.environments)
    return "\n".join([*lines, ""])


def _origin(config: Config) -> str:
    training = ", ".join(f"{key} {_plain(value)}" for key, value in config.training.items())
    measured_on = "the test set" if config.split == "test" else "training images left over"
    if config.measured is not None:
        measured_on = f"{config.measured} images a class of {measured_on}"
    place = f"{', '.join(config.networks)} on {config.dataset}, measured on {measured_on}"
    counts = sorted({len(config.cell_seeds(cell)) for cell in config.cells})
    seeds = "one seed" if counts == [1] else f"{' or '.join(map(str, counts))} seeds"
    parts = [f"`{config.name}`: {config.paper}.", f"{place}, {seeds}."]
    if training:
        parts.append(f"Training: {training}.")
    own = [f'"{arm.name}" at {arm.training["rate"]}' for arm in config.arms if arm.training]
    if own:
        parts.append(f"With rates of their own: {', '.join(own)}.")
    return " ".join(parts)


def _accuracies(results: Measured, partial: bool) -> str:
    config = results.config
    published = config.reference.get("values", {})

    def cell(place: int, arm: Arm) -> str:
        text = f"{_estimate(results, place, arm, results.final, 1)}"
        if results.final == "accuracy_after":
            before = list(results.values(place, arm, "accuracy_before").values())
            text += f" ({sum(before) / len(before):.1f})"
        return text

    def full(place: int, arm: Arm) -> str:
        text = _or_dash(results, place, arm, partial, cell)
        number = published.get(arm.name, {}).get(cell_label(config.cells[place]))
        return text if number is None else f"{text} [{_published(number)}]"

    when = "after training (before it)" if results.final == "accuracy_after" else "before training"
    caption = f"Accuracy {when}, %"
    if published:
        caption += f"; in brackets the published numbers ({config.reference['source']})"
    return _table(results, caption, full)


def _comparisons(results: Measured, partial: bool) -> str:
    config = results.config
    first = next((arm for arm in config.arms if arm.name == config.compare_with), None)
    if first is None:
        return ""
    places = [place for place, cell in enumerate(config.cells) if not cell.get("same_images")]
    names = config.compared or tuple(arm.name for arm in config.arms)
    arms = [arm for arm in config.arms if arm is not first and arm.name in names]
    pairs = [(place, arm.name) for place in places for arm in arms]
    found: dict[tuple[int, str], Comparison] = {}
    p_values = dict.fromkeys(pairs, math.nan)
    for place in places:
        for arm in arms:
            result = compare(
                results.values(place, first, results.final),
                results.values(place, arm, results.final),
            )
            whole = results.finished(place, arm) and results.finished(place, first)
            if result is not None and whole:
                p_values[place, arm.name] = result.p
            if result is not None and (whole or partial):
                found[place, arm.name] = result
    if not found:
        return ""
    adjusted = dict(zip(pairs, holm(list(p_values.values()), len(pairs)), strict=True))

    def cell(place: int, arm: Arm) -> str:
        if (place, arm.name) not in found:
            return "-" if (place, arm.name) in p_values else ""
        gap, p = found[place, arm.name].gap, adjusted[place, arm.name]
        text = f"{gap.mean:+.1f} ± {_number(gap.half, 1)}"
        if math.isnan(p):
            planned = len(config.cell_seeds(config.cells[place]))
            return f"{text} {{{gap.count} of {planned} seeds}}"
        return f"{text}, p {_p(p)}"

    caption = f"{first.name} minus other arms, in points, with p values adjusted for {len(pairs)}"
    return _table(results, f"{caption} comparisons", cell, arms, places)


def _directions(results: Measured, partial: bool) -> str:
    config = results.config

    def cell(place: int, arm: Arm) -> str:
        found = len(results.values(place, arm, "cosine"))
        if not found:
            return "-"
        planned = len(config.cell_seeds(config.cells[place]))
        some = f" (in {found} of {planned} runs)" if found < planned else ""
        return f"{_estimate(results, place, arm, 'cosine', 2)}{some}"

    return _table(
        results,
        "Mean cosine of the angle between a filter before and after training",
        lambda place, arm: _or_dash(results, place, arm, partial, cell),
    )


def _seconds(results: Measured, partial: bool) -> str:
    if not any(
        results.values(place, arm, "init_seconds")
        for place in range(len(results.config.cells))
        for arm in results.config.arms
    ):
        return "Times were not stored: the machine had other work.\n"

    def cell(place: int, arm: Arm) -> str:
        values = list(results.values(place, arm, "init_seconds").values())
        if not values:
            return "-"
        planned = len(results.config.cell_seeds(results.config.cells[place]))
        some = f" ({len(values)} of {planned} runs timed)" if len(values) < planned else ""
        return f"{sum(values) / len(values):.2g}{some}"

    return _table(
        results,
        "Seconds of initialisation, mean",
        lambda place, arm: _or_dash(results, place, arm, partial, cell),
    )


def _figures(results: Measured, out: Path) -> list[str]:
    lines: list[str] = []
    for suffix, draw in (("", draw_over_x), ("_curves", draw_curves), ("_tsne", draw_maps)):
        if draw is draw_over_x and not results.config.plot:
            continue
        path = out.with_name(f"{out.stem}_{results.config.name}{suffix}.png")
        if draw(results, path):
            lines += [f"![{results.config.title}]({path.name})", ""]
    return lines


def _table(
    results: Measured,
    caption: str,
    cell: Callable[[int, Arm], str],
    arms: Sequence[Arm] | None = None,
    places: Sequence[int] | None = None,
) -> str:
    """A row for each arm and a column for each cell, for all of them by default."""
    config = results.config
    places = range(len(config.cells)) if places is None else places
    labels = [cell_label(config.cells[place]) for place in places]
    lines = [f"{caption}:", "", f"| | {' | '.join(labels)} |"]
    lines.append("|---" * (len(labels) + 1) + "|")
    for arm in config.arms if arms is None else arms:
        texts = [cell(place, arm) for place in places]
        lines.append(f"| {arm.name} | {' | '.join(texts)} |")
    return "\n".join([*lines, ""])


def _or_dash(
    results: Measured, place: int, arm: Arm, partial: bool, cell: Callable[[int, Arm], str]
) -> str:
    """The cell if its seeds are all there, else how many are."""
    count = len(results.records[place, arm.name])
    planned = len(results.config.cell_seeds(results.config.cells[place]))
    if count == planned:
        return cell(place, arm)
    if partial and count:
        return f"{cell(place, arm)} {{{count} of {planned} seeds}}"
    return f"- ({count} of {planned} seeds)"


def _estimate(results: Measured, place: int, arm: Arm, name: str, digits: int) -> str:
    found = estimate(list(results.values(place, arm, name).values()))
    if results.config.cells[place].get("same_images"):
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ± {_number(found.half, digits)}"


def _number(value: float, digits: int) -> str:
    return "?" if math.isnan(value) else f"{value:.{digits}f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "?"
    return "< 0.001" if value < 0.001 else f"= {value:.2g}" if value < 0.1 else f"= {value:.2f}"


def _published(value: Any) -> str:
    if isinstance(value, list):
        after, before = value
        return f"{after:g} ({before:g})"
    return f"{value:g}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _environments(items: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each machine, with the commits of the code that ran there."""
    commits: dict[str, list[str]] = {}
    for item in items:
        device = item["gpu"] or f"{item['cpu']}, {item['threads']} thread(s) a run"
        line = (
            f"Environment: sylvinit {item['sylvinit']} (csrc {item['csrc']}), torch "
            f"{item['torch']}, Python {item['python']}, {device}"
        )
        known = commits.setdefault(line, [])
        if item.get("commit") and item["commit"] not in known:
            known.append(item["commit"])
    return [
        f"{line}{', commit ' + ', '.join(known) if known else ''}."
        for line, known in commits.items()
    ]
