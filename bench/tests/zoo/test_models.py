"""Some of bench/zoo's models: initialized, and their samples' labels right again."""

from __future__ import annotations

import pytest
from zoo_models.measure import measure


@pytest.mark.parametrize(
    "name",
    [
        "timm/repghostnet_050",
        "timm/vit_tiny_r_s16_p8_224",
        "torchvision/classification/mobilenet_v3_small",
        "transformers/image/levit",
        "transformers/text/bert",
        "transformers/text/llama",
    ],
)
def test_a_classifier_has_its_labels_right_again(name: str) -> None:
    pytest.importorskip(name.split("/")[0])
    row = measure(name, 30_000_000)
    assert row["status"] == "initialized", row
    assert row["head_status"] == "solved"
    # Twelve samples lie apart in as many features and more. (llama: 10 of 12.)
    assert row["accuracy"] >= 0.75
    assert row["finite"]
    assert row["largest"] < 1_000


@pytest.mark.parametrize(
    "name",
    ["torchvision/detection/ssdlite320_mobilenet_v3_large", "transformers/causal/llama"],
)
def test_a_model_without_labels_of_samples(name: str) -> None:
    pytest.importorskip(name.split("/")[0])
    row = measure(name, 30_000_000)
    assert row["status"] == "initialized", row
    assert row["finite"]
    assert row["largest"] < 1_000
