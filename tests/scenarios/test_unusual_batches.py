"""Unusual labels, forms of data and rows, and what the report says of them."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import pytest
import torch
from driver_helpers import CLASSES, assert_identical, images, initialized, mlp, unchanged
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sylvinit
from sylvinit.errors import (
    DataError,
    LabelError,
    NonFiniteError,
    OptionError,
    OptionTypeError,
)

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]

# ---------------------------------------------------------------------- labels and data


def test_classes_are_counted_by_the_labels_that_are_there() -> None:
    model = nn.Linear(12, 10)
    with pytest.warns(sylvinit.SylvinitWarning, match="fewer classes .* 2 of 10"):
        sylvinit.initialize_(model, (ROWS, Y % 2 * 9), preset="best")


class Points(NamedTuple):
    left: Tensor
    right: Tensor


class Sides(nn.Module):
    """Takes a named tuple, which it asks for its fields, and a list."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.head = nn.Linear(12, CLASSES)

    def forward(self, points: Points, rest: list[Tensor]) -> Tensor:
        assert type(points) is Points
        assert type(rest) is list
        return self.head(points.left + points.right + rest[0])


def test_named_tuples_and_lists_stay_what_they_are() -> None:
    sylvinit.initialize_(Sides(), [((Points(ROWS, ROWS), [ROWS]), Y)], preset="best", microbatch=10)


def test_a_named_tuple_without_labels_is_inputs_only() -> None:
    class Sum(nn.Sequential):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return super().forward(left + right)

    report = sylvinit.initialize_(Sum(nn.Linear(12, CLASSES)), Points(ROWS, ROWS), preset="best")
    assert report.layers[0].code == "pca"


@pytest.mark.parametrize("labels", [Y[:, None].repeat(1, 3), Y + 0.5], ids=["tokens", "floats"])
def test_targets_of_another_kind_found_by_name(labels: Tensor) -> None:
    model = mlp()
    with pytest.warns(sylvinit.SylvinitWarning, match="without labels: (labels of|targets are)"):
        report = sylvinit.initialize_(model, {"input": ROWS, "labels": labels}, preset="best")
    assert report["4"].code == "pca"
    for options in ({"head_code": "onehot"}, {"code": "lda"}):
        with pytest.raises(LabelError, match=r"not integers|one (label|entry) for every"):
            sylvinit.initialize_(
                model, {"input": ROWS, "labels": labels}, **{"preset": "best", **options}
            )
    with pytest.raises(LabelError, match=r"one label for every row|targets are"):
        sylvinit.initialize_(model, (ROWS, labels), preset="best")


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        return self.head(x * attn_mask.exp())


def test_infinite_masks() -> None:
    mask = torch.zeros_like(ROWS)
    mask[:, 3] = -math.inf
    sylvinit.initialize_(Masked(), {"x": ROWS, "attn_mask": mask, "labels": Y}, preset="best")
    for bad in ({"x": mask, "attn_mask": mask}, {"x": ROWS, "attn_mask": mask * 0}):
        with pytest.raises(DataError, match="data holds NaN or Inf"):
            sylvinit.initialize_(Masked(), bad | {"labels": Y}, preset="best")


@pytest.mark.parametrize("norm", [False, True])
def test_inf_where_no_patch_is_drawn(norm: bool) -> None:
    class Spoil(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            if len(x) > 2:
                x[7, 1, 2, 3] = math.inf
            return x

    last = nn.BatchNorm2d(4) if norm else nn.Identity()
    model = nn.Sequential(Spoil(), nn.Conv2d(3, 4, 3), last, nn.Flatten(), nn.Linear(64, CLASSES))
    name = "2 .BatchNorm2d" if norm else "1 .Conv2d"
    with unchanged(model), pytest.raises(NonFiniteError, match=f"in the input of {name}"):
        sylvinit.initialize_(model, (X, Y), preset="best", patches=1)


@pytest.mark.parametrize("patches", ["all", 1])
def test_row_to_sample_drops_rows(patches: Any) -> None:
    x = ROWS.reshape(30, 3, 4)
    spoilt = torch.where(torch.arange(3)[:, None] == 1, 7.0, x)

    class Pooled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).amax(dim=1)

    def without_the_second(name: str, x: Tensor, samples: int) -> Tensor:
        row = torch.arange(3 * samples)
        dropped = (row % 3 == 1) | (samples == 5)  # no row of the last microbatch is left
        return torch.where(dropped, -1, row // 3)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = Pooled(nn.Linear(4, CLASSES))
    options: dict[str, Any] = {"patches": patches, "row_to_sample": without_the_second}
    options["microbatch"] = 25
    first = initialized(model, (x, Y), **options)
    assert_identical(first, initialized(model, (spoilt, Y), **options))


# ---------------------------------------------------------------------- reports


def test_a_module_that_is_called_more_often_later_on() -> None:
    class Loop(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(1 if len(x) == 2 else 3):
                x = self[0](x)
            return self[1](x)

    report = sylvinit.initialize_(
        Loop(nn.Linear(12, 12), nn.Linear(12, CLASSES)), (ROWS, Y), preset="best"
    )
    assert any("up to 3 times" in note for note in report["0"].notes)
    assert report["1"].notes == []


def test_normalizations_that_depend_on_the_microbatch() -> None:
    batch = nn.BatchNorm2d(3, track_running_stats=False)
    instance = nn.InstanceNorm2d(3, track_running_stats=True)
    model = nn.Sequential(instance, batch, nn.Flatten(), nn.Linear(108, CLASSES))
    with pytest.warns(sylvinit.SylvinitWarning, match="depend on microbatch=: 1"):
        report = sylvinit.initialize_(model, (X, Y), preset="best")
    assert "instance normalization" in report["0"].reason
    assert report["1"].reason == "keeps no running statistics"


def test_a_parametrized_layer_is_reported_once() -> None:
    model = parametrizations.weight_norm(nn.Linear(12, CLASSES))
    assert [
        layer.name for layer in sylvinit.initialize_(model, (ROWS, Y), preset="best").layers
    ] == [""]


def test_normalizations_beside_the_head() -> None:
    model = nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, CLASSES))
    assert sylvinit.initialize_head_(model, (ROWS, Y))["0"].reason == "not the head"
    report = sylvinit.initialize_(model, (ROWS, Y), preset="best", calibrate_norm=False)
    assert "calibrate_norm" in report["0"].reason


def test_dead_inputs_make_one_warning() -> None:
    with pytest.warns(sylvinit.SylvinitWarning) as caught:
        report = sylvinit.initialize_(
            mlp(), (torch.ones(60, 12), torch.arange(60) % CLASSES), preset="best"
        )
    assert report["0"].status == "skipped"
    assert [str(item.message).split(":")[0] for item in caught] == ["dead inputs"]


def test_the_report_tells_all_arguments() -> None:
    def call(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)

    code = {"0": "ica", "*": sylvinit.codes.PCA()}
    report = sylvinit.initialize_(
        mlp(), (ROWS, Y), code=code, lam={"2": 3}, head_code="onehot", forward_fn=call
    )
    settings = json.loads(report.to_json())["settings"]
    assert settings["code"] == {"0": "ica", "*": "pca"}
    assert settings["lam"] == {"2": 3.0}
    assert settings["head_code"] == "onehot"
    assert settings["forward_fn"].endswith("call")
    arguments = sylvinit.initialize_.__kwdefaults__
    assert settings.keys() == arguments.keys()


def test_bad_arguments_are_found_before_the_data_are_read() -> None:
    def unread() -> Any:
        raise AssertionError("the data were read")
        yield

    with pytest.raises(OptionError, match=r"backend must be one of .*got 'gpu'"):
        sylvinit.initialize_(mlp(), unread(), preset="best", backend="gpu")
    with pytest.raises(OptionTypeError, match="head_code must be 'auto' or a code"):
        sylvinit.initialize_(mlp(), unread(), preset="best", head_code=None)  # type: ignore[arg-type]
