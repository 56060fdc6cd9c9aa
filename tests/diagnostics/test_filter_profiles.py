"""Correlation of filters by distance, and its picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sylvinit.diagnostics import draw_filter_profiles, filter_profiles
from sylvinit.errors import ModelError, OptionError, OptionTypeError


def network(kernel: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(c, 8, kernel, padding=kernel // 2) for c in (3, 8, 8)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize("kernel", [2, 3])
def test_profiles_against_numpy(kernel: int) -> None:
    model = network(kernel)
    profiles = filter_profiles(model, kernel)
    assert list(profiles) == ["0", "1", "2"]
    place = [(i, j) for i in range(kernel) for j in range(kernel)]
    for name, profile in profiles.items():
        filters = model.get_submodule(name).weight.detach().double().flatten(0, 1).flatten(1)
        corr = np.corrcoef(filters.numpy(), rowvar=False)
        values: dict[float, list[float]] = {}
        for a, p in enumerate(place):
            for b in range(a):
                values.setdefault(round(np.hypot(*np.subtract(p, place[b])), 12), []).append(
                    corr[a, b]
                )
        distances = sorted(values)
        np.testing.assert_allclose(profile.distance, distances, atol=1e-12)
        np.testing.assert_allclose(
            profile.correlation, [np.mean(values[d]) for d in distances], atol=1e-12
        )
        assert profile.pairs.tolist() == [len(values[d]) for d in distances]
        assert profile.standard_error is not None
        assert bool((profile.standard_error > 0).all())


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = filter_profiles(network())
    draw_filter_profiles(one, tmp_path / "one.png")
    draw_filter_profiles({"a": one, "b": filter_profiles(network())}, tmp_path / "two.svg")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "two.svg").read_text()
    assert "<svg" in text


def test_picture_of_many_distances(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_filter_profiles(filter_profiles(network(7), 7), tmp_path / "seven.png")
    assert (tmp_path / "seven.png").stat().st_size > 10_000


@pytest.mark.parametrize("profiles", [{}, [], {"a": 1}, {"a": {}}, None])
def test_what_is_no_profile(profiles: object, tmp_path: Path) -> None:
    with pytest.raises(OptionTypeError, match="profiles must be"):
        draw_filter_profiles(profiles, tmp_path / "no.png")  # type: ignore[arg-type]


def test_panels_of_different_kernels(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    three, five = filter_profiles(network()), filter_profiles(network(5), 5)
    draw_filter_profiles({"3": three, "5": five}, tmp_path / "two.svg")
    text = (tmp_path / "two.svg").read_text()
    # A legend for each: the farthest taps are 2 sqrt(2) and 4 sqrt(2) apart.
    assert "2.83" in text
    assert "5.66" in text
    with pytest.raises(OptionError, match="kernels of different sizes"):
        draw_filter_profiles({"0": three["0"], "1": five["1"]}, tmp_path / "mixed.png")
    with pytest.raises(OptionError, match="path: expected a suffix of"):
        draw_filter_profiles(three, tmp_path / "x.foo")


def test_no_filters() -> None:
    with pytest.raises(ModelError, match="no spatial filters of 5 x 5"):
        filter_profiles(network(), 5)
