"""The stored records of one configuration, by arm and cell, as report and figures need them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import TRAINED, Arm, Config, Run
from store import Results


@dataclass(frozen=True)
class Measured:
    """The results of one configuration.

    Attributes:
        config: the configuration.
        records: of every planned run that was done, by cell (its place in the configuration), arm
            and seed.
        environments: the distinct ones that these records come from.
    """

    config: Config
    records: dict[tuple[int, str], dict[int, dict[str, Any]]]
    environments: list[dict[str, Any]]

    @property
    def final(self) -> str:
        """The field that arms are compared by."""
        return "accuracy_after" if self.config.runner in TRAINED else "accuracy_before"

    def values(self, cell: int, arm: Arm, name: str) -> dict[int, float]:
        """A field of the records of a cell and an arm, by seed, where it was measured."""
        records = self.records[cell, arm.name].items()
        return {seed: record[name] for seed, record in records if record.get(name) is not None}

    def finished(self, cell: int, arm: Arm) -> bool:
        """Whether all planned seeds are there."""
        planned = self.config.cell_seeds(self.config.cells[cell])
        return len(self.records[cell, arm.name]) == len(planned)


def measured(config: Config, folder: Path) -> Measured:
    """Read what there is of a configuration."""
    results = Results(config.name, folder)
    stored, environments = results.records(), results.environments()
    records: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    used: set[str] = set()
    for place, cell in enumerate(config.cells):
        for arm in config.arms:
            found = records.setdefault((place, arm.name), {})
            for seed in config.cell_seeds(cell):
                record = stored.get(Run(config, cell, arm, seed).key)
                if record is not None:
                    found[seed] = record
                    used.add(record["environment"])
    return Measured(config, records, [environments[key] for key in sorted(used)])
