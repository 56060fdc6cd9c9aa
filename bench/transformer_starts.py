"""Which start helps a small transformer? The panel's ViT at 240 updates, AdamW at its own rate.

    SYLVINIT_DATA=DIR python bench/transformer_starts.py run [--split test] [--minutes 10]
    python bench/transformer_starts.py run --pair convnext --updates 900 --rate 1e-3 --arms own best
    python bench/transformer_starts.py table

DIR contains cifar-10-batches-py; `pip install timm` brings the network. Starts are the panel's
arms. They are compared on samples that are neither trained on nor tested on, with seeds 100 to 102;
test samples with seeds 0 to 4 are for those that win there. Every finished run is stored at once,
and only missing runs are done. Longer trainings and other networks of the panel are asked for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.analysis import compare, estimate
from panel.arms import AUTO, BEST, OWN
from panel.pairs import PAIRS, Cell, Pair, Run
from panel.plan import Records, read
from panel.work import work

FOLDER = Path(__file__).resolve().parent / "results" / "transformer_starts"
ARMS = (OWN, "own+head", "mimetic", BEST, AUTO, "mimetic+best", "best-norms", "first")
SEEDS = {"validation": (100, 101, 102), "test": (0, 1, 2, 3, 4)}
RATE = 3e-4
UPDATES = 240


@dataclass(frozen=True)
class Trained:
    """A pair of the panel at 50 images a class, trained with AdamW."""

    pair: Pair
    rate: float = RATE

    @classmethod
    def of(
        cls, word: str = "ViT / CIFAR-10", updates: int = UPDATES, rate: float = RATE
    ) -> Trained:
        """The first pair with this word in its title."""
        pair = next(pair for pair in PAIRS if word.lower() in pair.title.lower())
        title = f"{pair.title}, {updates} updates"
        return cls(replace(pair, title=title, updates={50: updates}), rate)

    def runs(
        self, split: str, arms: Sequence[str] = ARMS, seeds: Sequence[int] | None = None
    ) -> list[Run]:
        """Those of a split, all arms of a seed before the next seed; ``seeds``: only these."""
        cell = Cell(self.pair, 50, "AdamW")
        return [
            Run(cell, arm, seed, self.rate, split) for seed in seeds or SEEDS[split] for arm in arms
        ]


def table(trained: Trained, split: str, records: Records) -> str:
    """Accuracy before and after training, and paired differences to the own start."""

    def values(arm: str, field: str) -> dict[int, float]:
        mine = [run for run in trained.runs(split, (arm,)) if run.key in records]
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
    parser.add_argument("--pair", default="ViT / CIFAR-10", help="a part of a title of the panel")
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    arguments = parser.parse_args()
    trained = Trained.of(arguments.pair, arguments.updates, arguments.rate)
    failed = 0
    if arguments.command == "run":
        todo = trained.runs(arguments.split, arguments.arms, arguments.seeds)
        deadline = None if arguments.minutes is None else time.time() + 60 * arguments.minutes
        failed = work(
            lambda _: todo,
            lambda: read([trained.pair], FOLDER),
            FOLDER,
            arguments.workers,
            deadline,
        )
    print(table(trained, arguments.split, read([trained.pair], FOLDER)))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
