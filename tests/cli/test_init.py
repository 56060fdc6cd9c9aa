from __future__ import annotations

import json
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import nn

import sylvinit
from sylvinit import cli
from sylvinit.io.datasets import load_digits


def init(*arguments: str, model: str = "net", data: str = "digits.npz") -> int:
    return cli.main(
        [
            *("init", "--model", f"factories:{model}", "--data", data),
            *("--out", "weights.safetensors", *arguments),
        ]
    )


def factory(name: str) -> nn.Module:
    return runpy.run_path("factories.py")[name]()


def test_init_writes_weights_that_load(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init("--report", "report.json", "--seed", "3") == 0
    out, err = capsys.readouterr()
    assert "layers solved" in out
    assert "factories:net: 2,242 parameters\n" in out
    assert "digits.npz: 200 samples of 1 x 8 x 8 (float32), 10 classes\n" in out
    assert "warning: fewer rows than features" in out
    assert "weights: weights.safetensors" in out
    assert err == ""  # warnings are said once, no bar where there is no terminal
    model = factory("net")
    load_model(model, "weights.safetensors")
    inputs, labels = load_digits().test
    with torch.no_grad():
        correct = model.eval()(inputs).argmax(1) == labels
    assert correct.float().mean() > 0.5  # chance is 0.1
    report = json.loads((workshop / "report.json").read_text())
    assert {layer["name"] for layer in report["layers"]} >= {"0", "1", "4"}
    assert sorted(path.name for path in workshop.glob("*.s*")) == ["weights.safetensors"]
    assert not list(workshop.glob(".w*"))


def test_init_is_the_function(workshop: Path) -> None:
    options = ["--code", "*0=ica", "--code", "4=onehot", "--lam", "3", "--patches", "all"]
    assert init(*options, "--head-code", "onehot", "--microbatch", "64", "--seed", "1") == 0
    torch.manual_seed(0)
    model = factory("net")
    with np.load("digits.npz") as data:
        samples = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    with pytest.warns(sylvinit.SylvinitWarning, match="fewer rows than features|dead inputs"):
        sylvinit.initialize_(
            model,
            samples,
            code={"*0": "ica", "4": "onehot"},
            lam=3.0,
            patches="all",
            head_code="onehot",
            microbatch=64,
            seed=1,
        )
    written = load_file("weights.safetensors")
    torch.testing.assert_close(written["0.weight"], model.state_dict()["0.weight"])
    torch.testing.assert_close(written["4.weight"], model.state_dict()["4.weight"])


def test_init_with_a_preset(workshop: Path) -> None:
    assert init("--preset", "best", "--patches", "5") == 0
    torch.manual_seed(0)
    model = factory("net")
    with np.load("digits.npz") as data, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
        sylvinit.initialize_(model, samples, preset="best", patches=5)
    written = load_file("weights.safetensors")
    for name in ("0.weight", "4.weight"):
        torch.testing.assert_close(written[name], model.state_dict()[name])


@pytest.mark.parametrize(("given", "meant"), [("depth", "depth"), ("none", "none"), ("0.5", 0.5)])
def test_init_with_a_branch_gain(workshop: Path, given: str, meant: object) -> None:
    assert init("--branch-gain", given, "--report", "report.json") == 0
    report = json.loads((workshop / "report.json").read_text())
    assert report["settings"]["branch_gain"] == meant


@pytest.mark.parametrize("model", ["double", "built"])
def test_init_takes_models_in_any_form(workshop: Path, model: str) -> None:
    assert init(model=model) == 0
    dtype = torch.float64 if model == "double" else torch.float32
    assert load_file("weights.safetensors")["0.weight"].dtype == dtype


def test_init_writes_tied_weights_once(workshop: Path) -> None:
    assert init(model="tied", data="unlabeled.npy") == 0
    model = factory("tied")
    load_model(model, "weights.safetensors")
    written = load_file("weights.safetensors")
    assert len({"1.weight", "3.weight"} & written.keys()) == 1
    torch.testing.assert_close(model.get_parameter("1.weight"), model.get_parameter("3.weight"))


LABELS = {
    "numbers": ("regression", "targets"),
    "numbers in float64": ("regression", "targets"),
    "yes and no": ("regression", "targets"),
    "label maps": ("dense", "onehot"),
    "label maps in uint8": ("dense", "onehot"),
    "maps of numbers": ("dense", "targets"),
}


def labels_of_kind(kind: str, x: np.ndarray) -> np.ndarray:
    """For images (n, 1, 8, 8)."""
    numbers = np.stack((300 * x.mean(axis=(1, 2, 3)), x[:, 0, 3, 3]), axis=1)
    numbers[5, 0] = np.nan
    maps = (x[:, 0] > 0.3).astype(np.int64) + (x[:, 0] > 0.7)
    maps[:, 0] = 255
    return {
        "numbers": numbers.astype(np.float32),
        "numbers in float64": numbers.astype(np.float64),
        "yes and no": numbers > np.nanmean(numbers, axis=0),
        "label maps": maps,
        "label maps in uint8": maps.astype(np.uint8),
        "maps of numbers": np.repeat(x, 3, axis=1).astype(np.float32),
    }[kind]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kind", LABELS)
def test_init_reads_labels_of_every_kind(workshop: Path, kind: str, suffix: str) -> None:
    from safetensors.numpy import save_file

    with np.load("digits.npz") as data:
        x = data["x"]
    labels = labels_of_kind(kind, x)
    file = f"labeled{suffix}"
    if suffix == ".npz":
        np.savez(file, x=x, y=labels)
    else:
        save_file({"inputs": x, "labels": labels}, file)
    name, code = LABELS[kind]
    assert init("--ignore-index", "255", "--report", "report.json", model=name, data=file) == 0
    report = json.loads((workshop / "report.json").read_text())
    assert report["layers"][-1]["code"] == code
    torch.manual_seed(0)
    model = factory(name)
    sylvinit.initialize_(
        model, (torch.from_numpy(x), torch.from_numpy(labels)), preset="best", ignore_index=255
    )
    written = load_file("weights.safetensors")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(written[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_head_only_keeps_the_loaded_weights(workshop: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = factory("net").state_dict()
    (torch.save if suffix == ".pt" else save_file)(state, f"before{suffix}")
    assert init("--weights", f"before{suffix}", "--head-only") == 0
    written = load_file("weights.safetensors")
    torch.testing.assert_close(written["0.weight"], state["0.weight"], rtol=0, atol=0)
    assert not torch.allclose(written["4.weight"], state["4.weight"])


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ([], {"model": "missing"}, "has no 'missing'"),
        ([], {"model": "not_a_model"}, "return a torch.nn.Module, got int"),
        ([], {"data": "nothing.npz"}, "nothing.npz: no such file"),
        ([], {"data": "."}, "neither data_batch_"),
        (["--code", "unknown"], {}, "unknown"),
        (["--code", "pca", "--code", "0=lda"], {}, "PATTERN=VALUE each time"),
        (["--lam", "many"], {}, "--lam: expected a number, got 'many'"),
        (["--lam", "0=-1"], {}, "lam"),
        (["--patches", "some"], {}, "--patches: expected a number, got 'some'"),
        (["--head-only", "--code", "lda"], {}, "--code: not with --head-only"),
        (["--branch-gain", "half"], {}, "--branch-gain: expected a number, got 'half'"),
        (["--head-only", "--branch-gain", "1"], {}, "--branch-gain: not with --head-only"),
        (["--report", "report.txt"], {}, "expected a file ending in .json"),
        (["--report", "no/where.json"], {}, "there is no folder no"),
        (["--weights", "none.pt"], {}, "there is no file none.pt"),
        (["--weights", "digits.npz"], {}, "does not hold the weights of this model"),
        (["--device", "nowhere"], {}, "cannot move the model to 'nowhere'"),
    ],
)
def test_init_reports_errors_in_one_line(
    workshop: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    changes: dict[str, str],
    message: str,
) -> None:
    assert init(*arguments, **changes) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sylvinit: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert "solved" not in captured.out
    assert not (workshop / "weights.safetensors").exists()


@pytest.mark.parametrize("spec", ["factories", "nowhere.at_all:net", ":net"])
def test_model_must_name_a_factory(
    workshop: Path, capsys: pytest.CaptureFixture[str], spec: str
) -> None:
    arguments = ["init", "--model", spec, "--data", "digits.npz", "--out", "w.safetensors"]
    assert cli.main(arguments) == 2
    assert "sylvinit: error: model:" in capsys.readouterr().err


def test_errors_of_the_users_own_code_keep_their_traceback(workshop: Path) -> None:
    with pytest.raises(KeyError, match="in the user's code"):
        init(model="broken")
    (workshop / "imports.py").write_text("import not_installed_anywhere")
    arguments = ["init", "--model", "imports:net", "--data", "digits.npz"]
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        cli.main([*arguments, "--out", "w.safetensors"])


def test_verbose_shows_where_an_error_comes_from(workshop: Path) -> None:
    with pytest.raises(sylvinit.SylvinitError):
        init("--verbose", "--code", "unknown")


def test_interruption_is_reported_as_shells_do(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sylvinit, "initialize_", interrupt)
    assert init() == 130
    assert capsys.readouterr().err == "sylvinit: interrupted\n"
    assert not (workshop / "weights.safetensors").exists()


def test_init_under_torchrun(workshop: Path) -> None:
    """Two processes, each with half of the rows, write the weights of one."""
    common = ["init", "--model", "factories:double", "--data", "digits.npz", "--preset", "best"]
    torch.manual_seed(0)
    assert cli.main([*common, "--out", "one.safetensors"]) == 0
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*run, "-m", "sylvinit", *common, "--out", "two.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("weights: two.safetensors") == 1
    assert "200 samples" in done.stdout
    one, two = load_file("one.safetensors"), load_file("two.safetensors")
    assert one.keys() == two.keys()
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, rtol=1e-6, atol=1e-9)
