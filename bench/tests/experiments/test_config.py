"""Every configuration that is stored: it is read, and its networks can be built."""

from __future__ import annotations

import functools
from typing import Any

import architectures
import pytest
import torch
from architectures import make_network
from config import PRETRAINED, TRAINED, Config, cell_label, load_config, names, parse
from meaning import meaning
from networks import NETWORKS
from torch import nn
from training import Recipe

import sylvinit

CLASSES = {"cifar10": 10, "cifar100": 100, "mnist5k": 10, "digits": 10}
SHAPES = {"cifar10": (3, 32), "cifar100": (3, 32), "mnist5k": (1, 28), "digits": (1, 8)}


@functools.lru_cache
def scores_shape(
    network: str, settings: tuple[tuple[str, Any], ...], classes: int, channels: int, side: int
) -> tuple[int, ...]:
    """Of the scores of two images. Many configurations have the same network."""
    with torch.device("meta"):  # without memory, and without time
        model = make_network(network, dict(settings), classes, channels)
        return model(torch.empty(2, channels, side, side)).shape


@pytest.mark.parametrize("name", names())
def test_networks_and_recipes_of_a_configuration(name: str) -> None:
    config = load_config(name)
    classes = CLASSES[config.dataset]
    for run in config.runs(0):
        if run.arm is not config.arms[0]:
            continue
        if run.config.runner in TRAINED:
            assert Recipe.of(run.training).epochs > 0
        if run.config.runner in PRETRAINED:
            assert run.network == "resnet20"
        settings = tuple(run.network_settings.items())
        shape = scores_shape(run.network, settings, classes, *SHAPES[config.dataset])
        assert shape == (2, classes)


@pytest.mark.parametrize("network", sorted(architectures.NETWORKS))
def test_networks_with_residual_branches_are_known_by_their_names(network: str) -> None:
    """Results of presets depend on the gain of branches in these networks alone."""
    settings = {} if network in ("resnet20", "digits_net") else {"width": 0.125}
    channels, side = (1, 8) if network == "digits_net" else (3, 32)
    model = make_network(network, settings, 10, channels)
    report = sylvinit.initialize_(
        model, torch.rand(4, channels, side, side), preset="best", dry_run=True, branch_gain="depth"
    )
    found = any("ends a residual branch" in str(layer.notes) for layer in report.layers)
    assert found == network.startswith("resnet")
    kept = meaning("sylvinit", {"preset": "frozen", "branch_gain": "none"}, network)
    assert (meaning("sylvinit", {"preset": "frozen"}, network) != kept) == found


def test_published_numbers_are_per_cent() -> None:
    for name in names():
        for values in load_config(name).reference.get("values", {}).values():
            numbers = [
                n for item in values.values() for n in (item if type(item) is list else [item])
            ]
            # Chance is 1 %, and a share would be at most 1.
            assert all(0.9 < number < 100 for number in numbers), name
            if name.startswith("correlated"):
                assert min(numbers) > 50


@pytest.mark.parametrize(
    ("name", "depth"),
    {"vgg8": 8, "vgg16": 16, "vgg19": 19, "resnet10": 10, "resnet18": 18, "resnet34": 34}.items(),
)
def test_networks_have_the_depth_of_their_name(name: str, depth: int) -> None:
    with torch.device("meta"):
        model, wide = NETWORKS[name](), NETWORKS[name](width=1.5)
    layers = [
        place
        for place, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in place
    ]
    # VGGs for larger images have two linear layers more; the paper's VGG-8 counts its only one.
    assert len(layers) == (depth - 2 if name in ("vgg16", "vgg19") else depth)
    first, thrice = next(model.parameters()), next(wide.parameters())
    assert (len(first), len(thrice)) == (32, 96)


def test_the_names_of_weights_are_those_of_stored_networks() -> None:
    with torch.device("meta"):
        resnet, vgg = NETWORKS["resnet10"]().state_dict(), NETWORKS["vgg8"]().state_dict()
    assert {"conv1.weight", "bn1.weight", "blocks.0.conv2.weight", "fc.bias"} <= resnet.keys()
    assert {"blocks.1.shortcut.0.weight", "blocks.3.shortcut.1.running_var"} <= resnet.keys()
    assert "blocks.0.shortcut.0.weight" not in resnet
    convolutions = [name for name, value in vgg.items() if value.ndim == 4]
    assert convolutions == [f"{place}.weight" for place in (0, 4, 8, 11, 15, 18, 22)]


def two_networks(**changes: Any) -> Config:
    return parse(
        "tiny",
        {
            "title": "Two networks",
            "paper": "none",
            "runner": "before",
            "dataset": "cifar10",
            "network": "vgg8",
            "network_settings": {"width": 0.5},
            "cells": [
                {"shots": 2},
                {"shots": 2, "network": "resnet10", "network_settings": {"width": 0.25}},
            ],
            "arms": {"He": {"initialiser": "he-normal"}},
            "seeds": [0],
        }
        | changes,
    )


def test_a_cell_can_have_a_network_of_its_own() -> None:
    config = two_networks()
    first, second = config.runs(0)
    assert (first.network, first.network_settings) == ("vgg8", {"width": 0.5})
    assert (second.network, second.network_settings) == ("resnet10", {"width": 0.25})
    assert config.networks == ("vgg8", "resnet10")
    assert [cell_label(cell) for cell in config.cells] == ["2 shots", "resnet10, 2 shots"]
    assert len({run.key for run in config.runs(0)}) == 2
    other = two_networks(network_settings={"width": 1.5})
    assert next(other.runs(0)).key != first.key
