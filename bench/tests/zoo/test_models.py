"""Some of bench/zoo's models: initialized, and their samples' labels right again."""

from __future__ import annotations

import pytest
from zoo_models.measure import measure


@pytest.mark.parametrize(
    "name",
    [
        "timm/mobilevit_xxs",
        "timm/nf_regnet_b0",
        "torchvision/classification/shufflenet_v2_x0_5",
        "transformers/image/beit",
        "transformers/text/mt5",
        "transformers/text/bert",
    ],
)
def test_a_classifier_has_its_labels_right_again(name: str) -> None:
    pytest.importorskip(name.split("/")[0])
    row = measure(name, 30_000_000)
    assert row["status"] == "initialized", row
    assert row["head_status"] == "solved"
    # Twelve samples lie apart in as many features and more.
    assert row["accuracy"] >= 0.75
    assert row["finite"]
    assert row["largest"] < 1_000


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/detection/ssdlite320_mobilenet_v3_large",
        "torchvision/segmentation/lraspp_mobilenet_v3_large",
        "transformers/causal/cohere",
    ],
)
def test_a_model_without_labels_of_samples(name: str) -> None:
    pytest.importorskip(name.split("/")[0])
    row = measure(name, 30_000_000)
    assert row["status"] == "initialized", row
    assert row["finite"]
    assert row["largest"] < 1_000
