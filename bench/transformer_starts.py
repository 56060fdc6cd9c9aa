"""Which start helps a small transformer? The panel's ViT at 240 updates, AdamW at its own rate.

    SYLVINIT_DATA=DIR python bench/transformer_starts.py run [--split test] [--minutes 10]
    python bench/transformer_starts.py table

DIR contains cifar-10-batches-py; `pip install timm` brings the network. Starts are the panel's
arms. They are compared on samples that are neither trained on nor tested on, with seeds 100 to 102;
test samples with seeds 0 to 4 are for those that win there. Every finished run is stored at once,
and only missing runs are done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.analysis import compare, estimate
from panel.arms import BEST, OWN
from panel.pairs import PAIRS, Cell, Run
from panel.plan import Records, read
from panel.work import work

FOLDER = Path(__file__).resolve().parent / "results" / "transformer_starts"
ARMS = (OWN, "own+head", "mimetic", BEST, "mimetic+best", "best-norms", "first")
SEEDS = {"validation": (100, 101, 102), "test": (0, 1, 2, 3, 4)}
RATE = 3e-4
_PANEL = next(pair for pair in PAIRS if pair.title == "ViT / CIFAR-10")
PAIR = replace(_PANEL, title=f"{_PANEL.title}, 240 updates", updates={50: 240})


def runs(split: str, arms: Sequence[str] = ARMS, seeds: Sequence[int] | None = None) -> list[Run]:
    """Those of a split, all arms of a seed before the next seed; ``seeds``: only these."""
    cell = Cell(PAIR, 50, "AdamW")
    return [Run(cell, arm, seed, RATE, split) for seed in seeds or SEEDS[split] for arm in arms]


def table(split: str, records: Records) -> str:
    """Accuracy before and after training, and paired differences to the own start."""

    def values(arm: str, field: str) -> dict[int, float]:
        mine = [run for run in runs(split, (arm,)) if run.key in records]
        return {run.seed: records[run.key][field] for run in mine}

    lines = ["| start (seeds) | before | after | after - own | p |", "|---|---|---|---|---|"]
    own = values(OWN, "after")
    for arm in ARMS:
        found = values(arm, "after")
        if not found:
            continue
        before = estimate(list(values(arm, "before").values()))
        after = estimate(list(found.values()))
        cells = [f"{arm} ({after.count})", f"{before.mean:.1f}"]
        cells += [f"{after.mean:.1f} ± {after.half:.1f}"]
        gap = None if arm == OWN else compare(found, own)
        text = "" if gap is None else f"{gap.gap.mean:+.1f} ± {gap.gap.half:.1f}"
        cells += ["-", "-"] if gap is None else [text, f"{gap.p:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--split", choices=tuple(SEEDS), default="validation")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    arguments = parser.parse_args()
    failed = 0
    if arguments.command == "run":
        todo = runs(arguments.split, arguments.arms, arguments.seeds)
        deadline = None if arguments.minutes is None else time.time() + 60 * arguments.minutes
        failed = work(
            lambda _: todo, lambda: read([PAIR], FOLDER), FOLDER, arguments.workers, deadline
        )
    print(table(arguments.split, read([PAIR], FOLDER)))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
