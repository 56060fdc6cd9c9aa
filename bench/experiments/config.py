"""Configurations of experiments, and the runs that they stand for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meaning import OF_HEADS, meaning, wrong_with

FOLDER = Path(__file__).resolve().parent / "configs"
RUNNERS = ("train", "before", "head", "finetune", "tsne")
TRAINED = ("train", "finetune")
PRETRAINED = ("head", "finetune")
# What a cell says about how it is shown or watched, and not about its result.
_PRESENTATION = ("label", "curve", "seeds", "same_images")
_IN_CELLS = {"shots", "training", "network", "network_settings", *_PRESENTATION}


class ConfigError(Exception):
    """A configuration that cannot be run as it is written."""


@dataclass(frozen=True)
class Arm:
    """One of the initialisations that are compared.

    Attributes:
        name: as the tables call it.
        initialiser: what :mod:`arms` knows it by.
        settings: of the initialiser.
        x: its place on the x axis of a figure.
        training: what it changes of the recipe: a "rate" of its own. (With anything else arms would
            not see the same images in the same order.)
    """

    name: str
    initialiser: str
    settings: dict[str, Any] = field(default_factory=dict)
    x: float | None = None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """One table or figure: every arm in every cell with every seed.

    Attributes:
        name: of the file, without its suffix.
        title: of the section in the report.
        paper: which table or figure of which paper.
        deviations: how this differs from the paper, sentences.
        runner: "train", "before" (measured before any training), "head" (a new head on features
            of a pretrained network), "finetune" (the same, and then all of it trained) or "tsne"
            ("before" with a map of the features).
        dataset: a key of ``data.NEEDS``.
        split: "test" or "validation", see :func:`data.draw`.
        measured: images of each class of the split that runs on networks of their own are measured
            on, a fixed choice; None for all.
        network: a key of ``architectures.NETWORKS``.
        network_settings: arguments of that network.
        cells: what differs between the columns: "shots" (None: all images) and, where they differ,
            parts of "training" and of "network_settings", and "network". "label", "seeds",
            "curve" and "same_images" change no result; the last says that there are no more images
            than all seeds have, so that no interval over seeds says anything of other images.
        arms: the rows.
        seeds: of the choice of images, of the initial weights and of the order of training.
        training: fields of ``training.Recipe``.
        curve: whether accuracy is measured during training.
        directions: whether it is measured how far training turns the filters. It changes no result:
            runs that were done without it count as done.
        checkpoint: file of a pretrained network, for "head" and "finetune".
        compare_with: name of the arm that others are compared with.
        compared: names of those others, empty for all.
        reference: published numbers: "source", and "values" by arm and cell label.
        plot: for a figure of accuracy over ``Arm.x``: "x" (its label) and "log".
    """

    name: str
    title: str
    paper: str
    runner: str
    dataset: str
    network: str
    cells: tuple[dict[str, Any], ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    deviations: tuple[str, ...] = ()
    split: str = "test"
    measured: int | None = None
    network_settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    curve: bool = False
    directions: bool = False
    checkpoint: str | None = None
    compare_with: str | None = None
    compared: tuple[str, ...] = ()
    reference: dict[str, Any] = field(default_factory=dict)
    plot: dict[str, Any] = field(default_factory=dict)

    def runs(self, seed: int) -> Iterator[Run]:
        """The runs of one seed, cell by cell."""
        for cell in self.cells:
            if seed in self.cell_seeds(cell):
                for arm in self.arms:
                    yield Run(self, cell, arm, seed)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks of all cells, each once."""
        return tuple(dict.fromkeys(cell.get("network", self.network) for cell in self.cells))

    def cell_seeds(self, cell: dict[str, Any]) -> tuple[int, ...]:
        """The seeds planned for a cell, fewer where it is expensive."""
        return tuple(cell.get("seeds", self.seeds))


@dataclass(frozen=True)
class Run:
    """One network, initialised by one arm and measured."""

    config: Config
    cell: dict[str, Any]
    arm: Arm
    seed: int

    @property
    def training(self) -> dict[str, Any]:
        """The recipe of the configuration with what the cell changes, and then the arm."""
        return self.config.training | self.cell.get("training", {}) | self.arm.training

    @property
    def network(self) -> str:
        """The network of the configuration or of the cell."""
        return self.cell.get("network", self.config.network)

    @property
    def network_settings(self) -> dict[str, Any]:
        """Those of the configuration with what the cell changes."""
        return self.config.network_settings | self.cell.get("network_settings", {})

    @property
    def digest(self) -> str:
        """A hash of everything beside cell and seed that decides on the result.

        Constants of presets, codes and initialisers are in it, code and data are not: the commit
        is stored with the results, and data sets are taken to be the official ones.
        """
        config = self.config
        content: dict[str, Any] = {
            "runner": config.runner,
            "dataset": config.dataset,
            "split": config.split,
            "network": self.network,
            "network_settings": self.network_settings,
            "training": self.training if config.runner in TRAINED else None,
            "checkpoint": config.checkpoint,
            "initialiser": self.arm.initialiser,
            "settings": self.arm.settings,
        }
        stands_for = meaning(self.arm.initialiser, self.arm.settings, self.network)
        if stands_for:
            content["meaning"] = stands_for
        if config.measured is not None:
            content["measured"] = config.measured
        return hashlib.sha256(_canonical(content).encode()).hexdigest()[:10]

    @property
    def fields(self) -> dict[str, Any]:
        """What identifies the run in the file of results."""
        return {
            "config": self.config.name,
            "cell": cell_identity(self.cell),
            "arm": self.arm.name,
            "seed": self.seed,
            "hash": self.digest,
        }

    @property
    def key(self) -> str:
        """``fields`` as one string."""
        return key_of(self.fields)

    def __str__(self) -> str:
        return f"{self.config.name}, {cell_label(self.cell)}, {self.arm.name}, seed {self.seed}"


def key_of(record: dict[str, Any]) -> str:
    """The key of a run, from its fields or from its stored record."""
    names = ("config", "cell", "arm", "seed", "hash")
    return _canonical({name: record.get(name) for name in names})


def cell_identity(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell without what changes no result."""
    return {name: value for name, value in cell.items() if name not in _PRESENTATION}


def cell_label(cell: dict[str, Any]) -> str:
    """How tables and messages call a cell."""
    if "label" in cell:
        return str(cell["label"])
    shots = cell.get("shots")
    parts = [str(cell["network"])] if "network" in cell else []
    parts.append("all images" if shots is None else f"{shots} shots")
    parts += [f"{name} {value}" for name, value in sorted(cell.get("training", {}).items())]
    return ", ".join(parts)


def load_config(name: str | Path) -> Config:
    """Read a configuration by name, or by the path of its file.

    Raises:
        ConfigError: there is none, or it is not as :class:`Config` expects it.
    """
    path = Path(name) if Path(name).suffix == ".json" else FOLDER / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name}: no such configuration; there are {names()}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse(path.stem, content)


def names() -> list[str]:
    """Names of all configurations, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def parse(name: str, content: Any) -> Config:
    """A configuration from the content of its file."""
    known = {item.name: item for item in dataclasses.fields(Config)}
    if not isinstance(content, dict) or "name" in content:
        raise ConfigError(f"{name}: expected an object; its name is that of the file")
    unknown = content.keys() - known.keys()
    if unknown:
        raise ConfigError(f"{name}: unknown fields {sorted(unknown)}")
    _check_types(name, content)
    required = {
        key
        for key, item in known.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    missing = required - content.keys() - {"name"}
    if missing:
        raise ConfigError(f"{name}: fields missing: {sorted(missing)}")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
    }
    values["arms"] = tuple(_arm(name, *item) for item in content["arms"].items())
    config = Config(name=name, **values)
    _check(config)
    return config


def _check_types(name: str, content: dict[str, Any]) -> None:
    """Raise ConfigError where a field has another type than the code takes for granted."""

    def expect(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{name}: {message}")

    arms, cells, seeds = content.get("arms", {}), content.get("cells", []), content.get("seeds", [])
    expect(isinstance(arms, dict), "arms: expected an object of arms by name")
    expect(all(isinstance(arm, dict) for arm in arms.values()), "arms: expected objects")
    expect(isinstance(cells, list), "cells: expected a list")
    expect(all(isinstance(cell, dict) for cell in cells), "cells: expected objects")
    for cell in cells:
        unknown = sorted(cell.keys() - _IN_CELLS)
        expect(
            not unknown, f"cells: unknown fields {unknown}, expected some of {sorted(_IN_CELLS)}"
        )
    for part in (content, *cells, *arms.values()):
        for key in ("training", "network_settings", "settings"):
            expect(isinstance(part.get(key, {}), dict), f"{key}: expected an object")
    expect(isinstance(content.get("directions", False), bool), "directions: expected true or false")
    for numbers in (seeds, *(cell["seeds"] for cell in cells if "seeds" in cell)):
        whole = isinstance(numbers, list) and all(type(seed) is int for seed in numbers)
        expect(whole and len(set(numbers)) == len(numbers), "seeds: expected different integers")


def _arm(config: str, name: str, content: dict[str, Any]) -> Arm:
    known = {item.name for item in dataclasses.fields(Arm)} - {"name"}
    if content.keys() - known or "initialiser" not in content:
        raise ConfigError(f"{config}, arm {name!r}: expected initialiser, some of {sorted(known)}")
    return Arm(name, **content)


def _check(config: Config) -> None:
    def expect(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{config.name}: {message}")

    expect(config.runner in RUNNERS, f"runner: expected one of {RUNNERS}")
    expect(config.split in ("test", "validation"), "split: expected test or validation")
    expect(config.runner not in TRAINED or bool(config.training), "training: missing")
    expect(config.runner == "train" or not config.directions, "directions: for runner train alone")
    pretrained = config.runner in PRETRAINED
    expect(not pretrained or config.checkpoint is not None, "checkpoint: missing")
    few = config.measured
    expect(few is None or (type(few) is int and few > 0), "measured: expected a positive integer")
    expect(few is None or not pretrained, f"measured: not for runners {PRETRAINED}")
    arms = {arm.name for arm in config.arms}
    expect(config.compare_with is None or config.compare_with in arms, "compare_with: no such arm")
    expect(arms >= set(config.compared), f"compared: expected some of {sorted(arms)}")
    for arm in config.arms:
        wrong = wrong_with(arm.initialiser, arm.settings, of_head=pretrained)
        expect(wrong is None, f"arm {arm.name!r}: {wrong}")
        heads = config.runner == "head" or not arm.settings.keys() & {*OF_HEADS}
        expect(heads, f"arm {arm.name!r}: {OF_HEADS} are for runner head alone")
        trained = config.runner in TRAINED or not arm.training
        expect(trained, f"arm {arm.name!r}: training is for runners {TRAINED} alone")
        rate = arm.training.get("rate", 1.0)
        positive = type(rate) in (int, float) and math.isfinite(rate) and rate > 0
        own = arm.training.keys() <= {"rate"} and positive
        expect(own, f"arm {arm.name!r}: expected training with a rate alone, got {arm.training}")
    if pretrained:
        _check_pretrained(config, expect)
    labels = [cell_label(cell) for cell in config.cells]
    expect(len(set(labels)) == len(labels), "cells: two have the same label")
    for arm, values in config.reference.get("values", {}).items():
        expect(arm in arms, f"reference: no arm {arm!r}")
        expect(values.keys() <= set(labels), f"reference, {arm}: expected cells of {labels}")


def _check_pretrained(config: Config, expect: Callable[[bool, str], None]) -> None:
    """Their network is that of the checkpoint: there is only what a head may see to be set."""
    networks = set(config.networks)
    expect(networks == {"resnet20"}, f"network: expected resnet20, got {sorted(networks)}")
    for cell in config.cells:
        settings = config.network_settings | cell.get("network_settings", {})
        known = {"grid"} if config.runner == "head" else set[str]()
        expect(settings.keys() <= known, f"network_settings: expected {sorted(known)} alone")
        grid = settings.get("grid", 1)
        expect(
            type(grid) is int and grid >= 1, f"grid: expected an integer from 1 on, got {grid!r}"
        )


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
