"""The table of starts of a small transformer, from records that are made up."""

from __future__ import annotations

from transformer_starts import Trained, table


def test_differences_are_paired_by_seed() -> None:
    vit = Trained.of()
    after = {"own": [20.0, 30.0, 25.0], "mimetic": [24.0, 36.0], "first": [20.0, 30.0, 25.0]}
    records = {
        run.key: {"before": 10.0, "after": value}
        for arm, values in after.items()
        for run, value in zip(vit.runs("validation", (arm,)), values, strict=False)
    }
    lines = table(vit, "validation", records).splitlines()[2:]
    assert [line.split(" (")[0] for line in lines] == ["| own", "| mimetic", "| first"]
    # 4 and 6: t(0.975, 1) s / sqrt(2) = 12.706, and t = 5 with one degree of freedom: p = 0.126.
    assert lines[1] == "| mimetic (2) | 10.0 | 30.0 ± 76.2 | +5.0 ± 12.7 | 0.13 |"
    assert lines[2].endswith("| +0.0 ± 0.0 | 1 |")
    assert table(vit, "test", records).count("\n") == 1


def test_longer_trainings_are_of_their_own() -> None:
    vit, longer = Trained.of(), Trained.of("convnext", 900, 1e-3)
    assert vit.pair.slug == "vit_cifar_10_240_updates"
    assert longer.pair.slug == "timm_convnext_atto_cifar_10_900_updates"
    assert longer.runs("test", seeds=[0])[0].recipe.updates == 900
    records = {run.key: {"before": 10.0, "after": 20.0} for run in vit.runs("test", ("own",))}
    assert table(longer, "test", records).count("\n") == 1
