"""Built-in correlation matrices, and files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from correlation_problems import random_correlation
from torch import nn

from sylvinit import filter_correlation, priors
from sylvinit.correlated import FilterCorrelation, check_correlation, correlation_by_distance
from sylvinit.errors import CorrelationError, DataError, OptionError, OptionTypeError

ROUNDING = 5e-6 + 1e-12  # five decimals
NAMES = priors.available()


def test_there_are_some() -> None:
    assert "resnet10-cifar10" in NAMES
    assert sorted(NAMES) == NAMES
    assert priors.available() is not priors.available()


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_matrix_is_one(name: str) -> None:
    corr = priors.load(name)
    assert type(corr) is FilterCorrelation
    assert corr.kernel_size == (3, 3)
    assert torch.equal(check_correlation(corr, 9), corr)
    assert float(torch.linalg.eigvalsh(corr)[0]) > 0
    assert corr.filters > corr.units > 100
    assert len(corr.source) > 40
    assert len(corr.layers) > 3
    # Not far below those of as many independent normal filters.
    least = (1 - corr.numpy() ** 2) / np.sqrt(corr.filters)
    off = ~np.eye(9, dtype=bool)
    assert (corr.standard_error.numpy()[off] > 0.5 * least[off]).all()
    assert not corr.standard_error.diagonal().any()
    assert float(corr.standard_error.max()) < 0.1
    profile = correlation_by_distance(corr)
    assert profile.standard_error is not None
    assert bool((profile.standard_error > 0).all())
    assert profile.correlation[0] == profile.correlation.max()  # neighbors


def test_the_mean_of_resnet_10() -> None:
    """0.23 here; the paper has 0.26 for its own."""
    corr = priors.load("resnet10-cifar10").numpy()
    assert (corr.sum() - 9) / 72 == pytest.approx(0.23, abs=5e-3)


def test_a_loaded_matrix_is_the_callers() -> None:
    first = priors.load("resnet10-cifar10")
    first.fill_(0)
    assert float(priors.load("resnet10-cifar10")[0, 0]) == 1


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("conv", "kernel"),
    [
        (nn.Conv1d(3, 8, 4), (4,)),
        (nn.Conv2d(3, 8, 3), 3),
        (nn.Conv2d(3, 8, (1, 5)), (1, 5)),
        (nn.Conv3d(3, 8, 2), (2, 2, 2)),
        (nn.Conv2d(3, 8, 1), 1),
        (nn.Conv2d(20, 1, 3), 3),  # one unit: no standard errors
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_round_trip(conv: nn.Module, kernel: Any, as_text: bool, tmp_path: Path) -> None:
    corr = filter_correlation(nn.ModuleDict({"a": conv}), kernel)
    path = tmp_path / "corr.txt"
    given = str(path) if as_text else path
    assert priors.save(corr, given, source="  two\n lines: and  # signs ") is None
    found = priors.load(given)
    np.testing.assert_allclose(found.numpy(), corr.numpy(), rtol=0, atol=ROUNDING)
    assert (found.kernel_size, found.filters, found.units, found.layers) == (
        corr.kernel_size,
        corr.filters,
        corr.units,
        corr.layers,
    )
    assert found.source == "two lines: and # signs"
    for mine, theirs in (
        (found.standard_error, corr.standard_error),
        (found.distance_error, corr.distance_error),
    ):
        if theirs.numel() == 0:
            assert mine is None
        else:
            np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=ROUNDING)
    priors.save(found, given)  # over an existing one, with the source that it says
    again = priors.load(given)
    assert torch.equal(again, found)
    assert again.source == found.source


@pytest.mark.parametrize("convert", [lambda r: r, torch.from_numpy, lambda r: r.tolist()])
def test_plain_matrices(convert: Any, tmp_path: Path) -> None:
    expected = random_correlation(9, rank=4)  # singular
    priors.save(convert(expected), tmp_path / "plain.txt")
    found = priors.load(tmp_path / "plain.txt")
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=ROUNDING)
    assert (found.kernel_size, found.filters, found.units) == ((3, 3), 0, 0)
    assert (found.layers, found.source) == ((), "")
    assert found.standard_error is found.distance_error is None


def test_a_file_is_plain_text(tmp_path: Path) -> None:
    priors.save(FilterCorrelation.of(torch.eye(2).double(), (2,), filters=7), tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text("utf-8") == (
        "# kernel: 2\n# filters: 7\n# units: 0\n# layers: \n# source: \n# [correlation]\n"
        "1.00000 0.00000\n0.00000 1.00000\n"
    )


# --------------------------------------------------------------------------------------- bad input

GOOD = (
    "# kernel: 2 x 2\n# filters: 5\n[correlation]"
    "\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
    "# [standard error]\n0 1 1 1\n1 0 1 1\n1 1 0 1\n1 1 1 0\n"
    "# [standard error by distance]\n1 1\n"
).replace("\n[", "\n# [")


def test_the_file_that_the_damaged_ones_are_made_of(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(GOOD)
    assert torch.equal(priors.load(tmp_path / "good.txt"), torch.eye(4).double())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (GOOD, ""),
        (GOOD, "a letter\n"),
        (GOOD, "\x00\x01"),
        ("# kernel: 2 x 2\n", ""),
        ("2 x 2", "3 x 3"),
        ("2 x 2", "2 by 2"),
        ("2 x 2", "0 x 2"),
        ("# filters: 5", "# filters: many"),
        ("# [correlation]\n", ""),
        ("# [correlation]", "# [covariance]"),
        ("1 0 0 0\n0 1 0 0\n", "1 0 0 0\n"),
        ("1 0 0 0", "1 0 0"),
        ("1 0 0 0", "1 0 0 0 0"),
        ("1 0 0 0", "1 0.5 0 0"),
        ("1 0 0 0", "2 0 0 0"),
        ("1 0 0 0", "nan 0 0 0"),
        ("1 0 0 0", "1 0 0 zero"),
        ("1 1 1 0\n", ""),
        ("1 1 1 0\n", "1 1 1\n"),
        ("by distance]\n1 1\n", "by distance]\n1\n"),
        ("by distance]\n1 1\n", "by distance]\n"),
    ],
)
def test_damaged_files(old: str, new: str, tmp_path: Path) -> None:
    assert old in GOOD
    path = tmp_path / "damaged.txt"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(DataError, match=r"damaged\.txt is no file of a correlation matrix"):
        priors.load(path)


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    """Either all that was read is whole, or there is an error."""
    whole = priors.load("resnet10-cifar10")
    priors.save(whole, tmp_path / "whole.txt")
    text = (tmp_path / "whole.txt").read_text()
    read = 0
    for end in range(0, len(text), 17):
        (tmp_path / "cut.txt").write_text(text[:end])
        try:
            found = priors.load(tmp_path / "cut.txt")
        except DataError:
            continue
        read += 1
        np.testing.assert_allclose(found.numpy(), whole.numpy(), rtol=0, atol=1e-4)
        assert found.standard_error is None or found.standard_error.shape == (9, 9)
        assert found.distance_error is None or found.distance_error.shape == (5,)
    assert 0 < read < 20


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "resnet11-cifar10",
            OptionError,
            r"expected one of \[.*'resnet10-cifar10'.*ending in \.txt",
        ),
        ("", OptionError, "expected one of"),
        (None, OptionError, "got 'None'"),
        ("matrix.npy", OptionError, r"ending in \.txt, got 'matrix\.npy'"),
        ("no/such/file.txt", DataError, r"cannot read no/such/file\.txt"),
        (Path("missing.txt"), DataError, r"cannot read missing\.txt"),
    ],
)
def test_what_is_not_there(name: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        priors.load(name)


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "folder.txt").mkdir()
    for name in ("binary.txt", "folder.txt"):
        with pytest.raises(DataError, match="cannot read"):
            priors.load(tmp_path / name)


@pytest.mark.parametrize(
    ("corr", "path", "error", "message"),
    [
        (np.eye(9), "matrix.npy", OptionError, r"file ending in \.txt, got .*matrix\.npy"),
        (np.eye(9), "no/such/folder.txt", OptionError, "path: cannot write"),
        (np.eye(9), "taken.txt", OptionError, "path: cannot write"),
        (2 * np.eye(9), "a.txt", CorrelationError, "ones on the diagonal"),
        (
            np.eye(8),
            "a.txt",
            CorrelationError,
            r"8 taps .* FilterCorrelation\.of\(matrix, \(8,\)\)",
        ),
        ("resnet10-cifar10", "a.txt", OptionTypeError, "corr must be a matrix"),
    ],
)
def test_what_cannot_be_saved(
    corr: Any, path: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "taken.txt").mkdir()
    with pytest.raises(error, match=message):
        priors.save(corr, tmp_path / path)
    assert [item.name for item in tmp_path.iterdir()] == ["taken.txt"]
