"""The benchmark of segmentation: its measures, its pixels, and that runs are not repeated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import targets_segmentation as bench
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor

from sylvinit.moments.row_labels import LabelKind, fit_positions


def images(count: int) -> tuple[Tensor, Tensor]:
    """Images whose color is the class of the pixel, in quarters, and some void."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 4, (count, 2, 2), generator=generator)
    masks = coarse.repeat_interleave(12, dim=1).repeat_interleave(16, dim=2)
    colors = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))  # the same for any count
    return colors[masks].permute(0, 3, 1, 2).contiguous(), masks.masked_fill(masks == 3, 11)


def test_measures_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 5, (300,), generator=generator)
    found = torch.where(torch.rand(300, generator=generator) < 0.6, masks, (masks + 1) % 7)
    masks[:40] = bench.VOID
    measured = bench.measures(bench.confusion(found, masks))
    seen, guess = masks[40:].numpy(), found[40:].numpy()
    iou = jaccard_score(seen, guess, labels=np.unique(seen), average="macro")
    assert measured["accuracy"] == pytest.approx(100 * accuracy_score(seen, guess))
    assert measured["iou"] == pytest.approx(100 * iou)


def test_scikit_learn_gets_the_pixels_of_the_head() -> None:
    model, (x, _) = bench.network(0), images(2)
    masks = torch.randint(0, 12, (2, 24, 32), generator=torch.Generator().manual_seed(1))
    rows, y = bench.head_pixels(model, (x, masks))
    kind = LabelKind(classes=11, of_rows=True)
    taken, _ = fit_positions(masks, kind, "", 12 * 16, (12, 16), resample=True)
    assert torch.equal(y, taken[taken != bench.VOID])
    maps = model[:-2](x)
    sample, place = (taken != bench.VOID).nonzero()[17].tolist()
    assert torch.equal(rows[17], maps[sample, :, place // 16, place % 16])


def test_heads_tell_colors() -> None:
    train, test = images(30), images(12)
    found = bench.features(bench.own_start(0, train[0]), train, test, seed=0)
    # Of three classes, one in three by chance.
    assert all(measured["accuracy"] > 70 for measured in found.values()), found
    assert abs(found["logistic"]["accuracy"] - found["LogisticRegression"]["accuracy"]) < 5


def test_runs_are_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(12)
    x = ((x - x.min()) / (x.max() - x.min()) * 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    parts = {"train_images": x[:8], "val_images": x[8:]}
    masks = {"train_masks": y[:8].numpy(), "val_masks": y[8:].numpy()}
    np.savez(tmp_path / "camvid_96x72.npz", **parts, **masks)
    monkeypatch.setenv("SYLVINIT_DATA", str(tmp_path))
    for name, value in (("IMAGES", 6), ("TEST", 4), ("VALIDATION", 2), ("RATES", (1e-3,))):
        monkeypatch.setattr(bench, name, value)
    out = tmp_path / "out.json"
    arguments = ["", "--out", str(out), "--epochs", "1", "--counts", "--seeds"]
    monkeypatch.setattr("sys.argv", [*arguments, "1"])
    bench.main()
    first = json.loads(out.read_text())
    monkeypatch.setattr("sys.argv", [*arguments, "2"])
    bench.main()
    second = json.loads(out.read_text())
    assert second["runs"][:1] == first["runs"]
    assert [run["seed"] for run in second["runs"]] == [0, 1]
