"""Bad arguments, data and models: a typed error or a stated warning, and nothing is changed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from driver_helpers import CLASSES, bits, images, small_net, unchanged
from torch import nn
from torch._subclasses import FakeTensorMode

import sylvinit
from sylvinit.errors import (
    BackendError,
    DataError,
    LabelError,
    ModelError,
    NonFiniteError,
    OptionError,
    OptionTypeError,
    RowLayoutError,
    SolverError,
    SylvinitError,
)

X, Y = images(30)

# ------------------------------------------------------------------------------------ bad arguments

NAN = torch.full_like(X, math.nan)
INF = X.clone()
INF[17, 1, 2, 3] = math.inf

BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"code": "pcaa"}, OptionError, r"code must be one of .*'pca'.*got 'pcaa'"),
    ({"code": 3}, OptionTypeError, "code must be a name"),
    ({"code": {"conv1": "nope"}}, OptionError, "code must be one of"),
    ({"code": {"convx*": "ica"}}, OptionError, r"code: the pattern 'convx\*' matches no layer"),
    ({"code": {3: "ica"}}, OptionTypeError, "code: patterns must be strings"),
    ({"head_code": "nope"}, OptionError, "code must be one of"),
    ({"lam": 0.0}, OptionError, "lam must be finite and positive, got 0"),
    ({"lam": -1}, OptionError, "lam must be finite and positive"),
    ({"lam": math.nan}, OptionError, "lam must be finite and positive, got nan"),
    ({"lam": math.inf}, OptionError, "lam must be finite and positive"),
    ({"lam": "much"}, OptionTypeError, "lam must be a number, got 'much'"),
    ({"lam": {"conv1": -2.0}}, OptionError, "lam must be finite and positive"),
    ({"lam": {"nothing": 2.0}}, OptionError, "lam: the pattern 'nothing' matches no layer"),
    ({"patches": 0}, OptionError, "patches must be at least 1 or 'all', got 0"),
    ({"patches": -3}, OptionError, "patches must be at least 1"),
    ({"patches": True}, OptionTypeError, "patches must be a positive integer or 'all'"),
    ({"microbatch": "8"}, OptionTypeError, "microbatch must be a positive integer or None"),
    ({"max_samples": True}, OptionTypeError, "max_samples must be a positive integer or None"),
    ({"seed": "0"}, OptionTypeError, "seed must be an integer"),
    ({"seed": True}, OptionTypeError, "seed must be an integer"),
    ({"calibrate_norm": "no"}, OptionTypeError, "calibrate_norm must be True or False"),
    ({"dry_run": 1}, OptionTypeError, "dry_run must be True or False"),
    ({"progress": "bar"}, OptionTypeError, "progress must be True or False"),
    ({"lam": "10"}, OptionTypeError, "lam must be a number, got '10'"),
    ({"lam": True}, OptionTypeError, "lam must be a number, got True"),
    ({"lam": {"fc": "10"}}, OptionTypeError, "lam must be a number, got '10'"),
    ({"patches": 2.5}, OptionTypeError, "patches must be a positive integer or 'all'"),
    ({"patches": "some"}, OptionTypeError, "patches must be a positive integer or 'all'"),
    ({"include": "layer9.*"}, OptionError, r"include: the pattern 'layer9\.\*' matches no layer"),
    ({"include": ["conv*", "relu1"]}, OptionError, "include: the pattern 'relu1' matches no layer"),
    ({"exclude": "nope"}, OptionError, "exclude: the pattern 'nope' matches no layer.*'block"),
    ({"include": "onv"}, OptionError, r"'onv' matches no layer.*; '\*onv\*' matches every name"),
    ({"include": 3}, OptionTypeError, "include must be a pattern or a list"),
    ({"exclude": [3]}, OptionTypeError, "exclude: patterns must be strings"),
    ({"microbatch": 0}, OptionError, "microbatch must be at least 1"),
    ({"max_samples": 0}, OptionError, "max_samples must be at least 1"),
    ({"storage": "disk"}, OptionError, "storage must be one of"),
    ({"siblings": "all"}, OptionError, "siblings must be one of"),
    ({"rescale": "lsuv"}, OptionError, "rescale must be one of"),
    ({"rescale": np.zeros(2)}, OptionError, "rescale must be one of"),
    ({"seed": 0.5}, OptionTypeError, "seed must be an integer"),
    ({"seed": 2**64}, OptionError, "seed must fit into 64 bits"),
    ({"backend": "tpu"}, OptionError, r"backend must be one of \['auto', "),
    ({"forward_fn": 3}, OptionTypeError, "forward_fn must be callable"),
    ({"row_to_sample": 3}, OptionTypeError, "row_to_sample must be callable"),
    ({"head": 3}, OptionTypeError, "head must be a module name"),
    ({"head": "nothing"}, ModelError, "head='nothing' names no module; the layers are conv1, "),
    ({"head": "relu1"}, ModelError, "head='relu1' is not a layer that ran"),
    ({"lam": 1.7e308}, SolverError, "relative residual"),
]


def _id(value: Any) -> str | None:
    if not isinstance(value, dict):
        return ""
    return "-".join(f"{key}={str(item)[:20]}" for key, item in value.items())


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=_id)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = small_net()
    with unchanged(model), pytest.raises(error, match=message):
        sylvinit.initialize_(model, (X, Y), **{"preset": "best", **options})


BAD_DATA: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    ("no batches", [], {}, DataError, "data is empty"),
    ("no samples", X[:0], {}, DataError, "data is empty"),
    ("empty pair", (X[:0], Y[:0]), {}, DataError, "data is empty"),
    ("empty batches", [(X[:0], Y[:0])] * 3, {}, DataError, "data is empty"),
    ("a string", "images", {}, OptionTypeError, "data must be .* got str"),
    ("a number", 3, {}, OptionTypeError, "data must be .* got int"),
    ("a module", nn.ReLU(), {}, OptionTypeError, "data must be .* got ReLU"),
    ("no tensors", [("a", "b")], {}, DataError, "holds no tensor"),
    ("four members", [(X, X, X, Y)], {}, DataError, "batch has 4 members"),
    ("meta data", X.to("meta"), {}, DataError, "data holds meta tensors"),
    ("NaN", (NAN, Y), {}, DataError, "data holds NaN or Inf"),
    ("Inf", (INF, Y), {}, DataError, "first in sample 17"),
    ("late NaN", [(X,), (NAN,)], {}, DataError, r"first in sample 30"),
    ("one-hot, no labels", X, {"head_code": "onehot"}, LabelError, "'onehot' .* needs labels"),
    ("lda, no labels", X, {"code": "lda"}, LabelError, "'lda' of layer conv1 needs labels"),
    ("lda by name", X, {"code": {"conv2": "lda"}}, LabelError, "of layer conv2 needs labels"),
    ("too few labels", (X, Y[:-1]), {}, LabelError, "30 samples and labels of shape .29,."),
    ("too many labels", [(X, Y), (X[:5], Y)], {}, LabelError, "batch at sample 30 has 5 samples"),
    ("labels by name", {"input": X, "labels": Y[:7]}, {}, LabelError, "30 samples"),
    ("one label", (X, torch.tensor(1)), {}, LabelError, "one entry per sample"),
    ("labels of words", (X, ["cat"] * 30), {}, LabelError, "labels must be integers"),
    ("two batches as a pair", ((X, Y), (X, Y)), {}, LabelError, "labels must be integers"),
    ("float labels", (X, Y + 0.5), {}, LabelError, r"targets are \(30,\), .* 4 outputs"),
    (
        "one-hot labels",
        (X, torch.eye(30).long()),
        {},
        LabelError,
        r"\(several at once as floats\)",
    ),
    ("negative labels", (X, Y - 1), {}, LabelError, "labels must not be negative, got -1"),
    (
        "large labels",
        (X, Y + 1),
        {"head_code": "onehot"},
        LabelError,
        "labels go up to 4, but",
    ),
    ("hashes", (X, Y + 10**12), {"code": "lda"}, LabelError, "labels go up to 10+3, more than"),
    ("a list for a tuple", [X, Y], {}, DataError, r"two tensors of equal length.*are a tuple"),
    ("the same with targets", [X, X.flatten(1)], {}, DataError, r"\(30, 108\).*are a tuple"),
    ("an autoencoder's", [X, X], {}, DataError, r"two batches .*\[\(first,\), \(second,\)\]"),
    ("arrays", [X.numpy(), Y.numpy()], {}, DataError, r"labels are a tuple \(inputs, labels\)"),
    ("some labels in a list", [X, Y[:20]], {}, DataError, r"1 axes \(torch.int64\).*as a tuple"),
    ("some labels", [(X, Y), X], {}, LabelError, "some batches have labels and some have none"),
]


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [case[1:] for case in BAD_DATA],
    ids=[case[0] for case in BAD_DATA],
)
def test_bad_data(data: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = small_net()
    with unchanged(model), pytest.raises(error, match=message):
        sylvinit.initialize_(model, data, **{"preset": "best", **options})


HEAD_CASES: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (X, {}, LabelError, "'onehot' of layer fc needs labels"),
    ((X, Y + 1), {}, LabelError, "labels go up to 4, but layer fc has only 4 outputs"),
    ((X, Y), {"lam": 0}, OptionError, "lam must be finite and positive"),
    ((X, Y), {"head": "conv3"}, ModelError, "head='conv3' names no module"),
    ((NAN, Y), {}, DataError, "data holds NaN or Inf"),
]


@pytest.mark.parametrize(("data", "options", "error", "message"), HEAD_CASES)
def test_the_same_for_the_head_alone(
    data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = small_net()
    with unchanged(model), pytest.raises(error, match=message):
        sylvinit.initialize_head_(model, data, **options)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (OptionError, ValueError),
        (OptionTypeError, TypeError),
        (DataError, ValueError),
        (LabelError, ValueError),
        (ModelError, ValueError),
        (RowLayoutError, ValueError),
        (NonFiniteError, FloatingPointError),
        (SolverError, RuntimeError),
        (BackendError, RuntimeError),
    ],
)
def test_errors_are_also_the_builtin(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, SylvinitError)
    assert issubclass(error, builtin)


# --------------------------------------------------------------------------------------- bad models


def test_not_a_model() -> None:
    with pytest.raises(OptionTypeError, match=r"model must be a torch\.nn\.Module, got function"):
        sylvinit.initialize_(lambda x: x, X, preset="best")  # type: ignore[arg-type]


def test_meta_device() -> None:
    model = small_net()
    model.fc = nn.Linear(16, CLASSES, device="meta")
    with unchanged(model), pytest.raises(ModelError, match=r"meta device .*to_empty"):
        sylvinit.initialize_(model, (X, Y), preset="best")


def test_mixed_devices() -> None:
    model = nn.Linear(3, 2)
    with FakeTensorMode():  # stands for a second device on machines with one
        model.register_buffer("elsewhere", torch.empty(3, device="cuda:0"))
    weight = bits(model.weight)
    with pytest.raises(ModelError, match=r"several devices \(cpu, cuda:0\)"):
        sylvinit.initialize_(model, torch.randn(5, 3), preset="best")
    assert bits(model.weight) == weight


@pytest.mark.parametrize(
    ("model", "message"),
    [(nn.ReLU(), "no parameters"), (nn.LayerNorm(6), "reached no layer that can be solved")],
    ids=["no parameters", "no layers"],
)
def test_nothing_to_solve(model: nn.Module, message: str) -> None:
    with unchanged(model), pytest.raises(ModelError, match=message):
        sylvinit.initialize_(model, X, preset="best")


def test_fewer_classes_than_outputs_is_a_warning() -> None:
    model = small_net()
    with pytest.warns(sylvinit.SylvinitWarning, match="fewer classes .* 3 of 4; .* fc are zero"):
        report = sylvinit.initialize_(model, (X, Y % 3), preset="best")
    assert any("fewer classes" in text for text in report.warnings)
    assert torch.equal(model.fc.weight[3], torch.zeros(16))
    assert model.fc.weight[:3].abs().amin(dim=1).max() > 0


@pytest.mark.filterwarnings("ignore:labels were given:sylvinit.SylvinitWarning")
def test_more_classes_than_outputs_is_a_warning_with_the_automatic_code() -> None:
    model = small_net()
    with pytest.warns(sylvinit.SylvinitWarning, match="fc .*'pca' and without labels: 5 cl"):
        report = sylvinit.initialize_(model, (X, Y + 1), preset="best")
    assert report["fc"].code == "pca"


@pytest.mark.filterwarnings("error::sylvinit.SylvinitWarning")
def test_a_warning_turned_into_an_error_writes_nothing() -> None:
    model = small_net()
    with unchanged(model), pytest.raises(sylvinit.SylvinitWarning, match="fewer classes"):
        sylvinit.initialize_(model, (X, Y % 3), preset="best")
