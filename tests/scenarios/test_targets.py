"""Networks whose labels are numbers, several labels, label maps and tokens, from end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from driver_helpers import Snapshot
from torch import Tensor, nn
from torch.nn import functional

import sylvinit
from sylvinit.errors import LabelError, OptionError, SylvinitWarning


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int = 200, d: int = 12) -> Tensor:
    return torch.randn(n, d, generator=generator())


def dense(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, outputs))


def dense_prediction(outputs: int, stride: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=stride, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 1)
    )


def shapes(n: int = 24, size: int = 12) -> tuple[Tensor, Tensor]:
    """Images and a class for every pixel: 0, 1 where channel 0 is large, 2 where channel 1 is."""
    x = torch.randn(n, 2, size, size, generator=generator(1))
    return x, (x[:, 0] > 0.8).long() + 2 * ((x[:, 1] > 0.5) & (x[:, 0] <= 0.8)).long()


def solution(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ------------------------------------------------------------------------------ losses they train


@pytest.mark.parametrize("head_code", ["auto", "ridge"])
def test_regression_starts_below_a_zero_head(head_code: str) -> None:
    x = rows()
    y = torch.stack((x[:, 0] + x[:, 1], 1e4 * x[:, 2] - 5e5, 1e-4 * x[:, 3].abs()), dim=1)
    model = dense(3)
    sylvinit.initialize_(model, (x, y), preset="best", head_code=head_code)
    error = (model(x) - y).detach().square().mean(dim=0)
    assert bool((error < 0.9 * y.var(dim=0)).all())  # of the column's mean alone: 1


def test_multi_label_starts_below_a_zero_head() -> None:
    x = rows()
    y = (x[:, :5] > torch.tensor([0.0, 0.5, 1.0, 1.5, 5.0])).float()
    model = dense(5)
    with pytest.warns(SylvinitWarning, match="1 of 5 targets never vary"):
        sylvinit.initialize_(model, (x, y), preset="best")
    loss = functional.binary_cross_entropy_with_logits(model(x), y)
    assert loss.item() < 0.5 < float(np.log(2))


@pytest.mark.parametrize("head_code", ["auto", "onehot", "logistic"])
def test_one_output_for_two_classes(head_code: str) -> None:
    x = rows()
    y = (x[:, 0] > 0.7).long()
    model = nn.Linear(12, 1)
    sylvinit.initialize_head_(model, (x, y), head_code=head_code)
    score = model(x)[:, 0].detach()
    assert float(functional.binary_cross_entropy_with_logits(score, y.float())) < 0.5
    assert float(((score > 0) == (y > 0)).float().mean()) > 0.85


@pytest.mark.parametrize("head_code", ["auto", "logistic"])
def test_label_maps_start_below_a_zero_head(head_code: str) -> None:
    x, y = shapes()
    y[:, :2] = -100
    model = dense_prediction(3)
    report = sylvinit.initialize_(model, (x, y), preset="best", head_code=head_code)
    loss = functional.cross_entropy(model(x), y)
    assert loss.item() < float(np.log(3))
    assert report.layers[-1].rows == int((y >= 0).sum())


def test_soft_labels() -> None:
    x = rows()
    y = torch.softmax(3 * x[:, :3], dim=1)
    model = dense(3)
    sylvinit.initialize_(model, (x, y), preset="best")
    zero = functional.cross_entropy(torch.zeros(len(x), 3), y)
    assert float(functional.cross_entropy(model(x), y)) < float(zero)


# ------------------------------------------------------------- against the equation of their rows


def explicit(x: np.ndarray, s: np.ndarray, w: np.ndarray, lam: float) -> np.ndarray:
    """W of A W + W B = Q for rows (n, d), codes (n, k) and weights (n,), by Kronecker products."""
    w = w / w.sum()
    x = np.concatenate((x, np.ones((len(x), 1))), axis=1)
    a, b, q = (s * w[:, None]).T @ s, lam * (x * w[:, None]).T @ x, (1 + lam) * (s.T * w) @ x
    k, d = len(a), len(b)
    system = np.kron(a, np.eye(d)) + np.kron(np.eye(k), b.T)
    return np.linalg.solve(system, q.ravel()).reshape(k, d)


def assert_head(head: nn.Module, expected: np.ndarray) -> None:
    found = torch.cat((head.weight.flatten(1), head.bias[:, None]), dim=1).detach().numpy()
    # Solved in float64 both times; the systems' condition is below 1e4.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_the_head_of_targets_solves_the_equation_of_standardized_ones() -> None:
    x = rows(60).double()
    y = torch.stack((x[:, 0] * 30 + 4, x[:, 1] ** 2), dim=1)
    head = nn.Linear(12, 2).double()
    sylvinit.initialize_head_(head, (x, y), lam=3.0)
    mean, std = y.mean(dim=0), y.std(dim=0, unbiased=False)
    expected = explicit(x.numpy(), ((y - mean) / std).numpy(), np.ones(60), 3.0)
    expected *= std.numpy()[:, None]
    expected[:, -1] += mean.numpy()
    assert_head(head, expected)


@pytest.mark.parametrize("balance", [False, True])
def test_the_head_of_maps_solves_the_equation_of_all_labeled_pixels(balance: bool) -> None:
    x, y = shapes()
    x, head = x.double(), nn.Conv2d(2, 3, 1).double()
    y[0, :3] = -100
    sylvinit.initialize_head_(head, (x, y), balance=balance, microbatch=7)
    pixels, labels = x.movedim(1, -1).reshape(-1, 2).numpy(), y.flatten().numpy()
    pixels, labels = pixels[labels >= 0], labels[labels >= 0]
    counts = np.bincount(labels)
    weights = (len(labels) / (3 * counts))[labels] if balance else np.ones(len(labels))
    assert_head(head, explicit(pixels, np.eye(3)[labels], weights, 10.0))


def test_maps_at_another_resolution() -> None:
    x, y = shapes()
    model = dense_prediction(3, stride=2)
    report = sylvinit.initialize_(model, (x, y), preset="best")
    other = dense_prediction(3, stride=2)
    sylvinit.initialize_(other, (x, y[:, 1::2, 1::2]), preset="best")
    assert torch.equal(solution(model), solution(other))
    assert any("nearest neighbors" in note for note in report.layers[-1].notes)


@pytest.mark.parametrize("first", ["batch", "time"])
def test_token_labels_without_padding(first: str) -> None:
    """Padding is dropped by the mask, and the tokens' labels with it."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3).double()

        def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            return self.head(tokens.transpose(0, 1) if first == "time" else tokens)

    tokens = torch.randn(10, 6, 4, generator=generator(), dtype=torch.float64)
    labels = tokens[..., :3].argmax(dim=-1)
    mask = torch.arange(6) < torch.randint(2, 7, (10, 1), generator=generator())
    data = {"tokens": tokens, "attention_mask": mask.long(), "labels": labels}
    model = Tagger()
    report = sylvinit.initialize_head_(model, data)
    assert report.layers[-1].rows == int(mask.sum())
    x, s = tokens[mask].numpy(), np.eye(3)[labels[mask].numpy()]
    assert_head(model.head, explicit(x, s, np.ones(len(x)), 10.0))


def test_heads_that_hold_one_microbatch_are_the_same() -> None:
    x, y = shapes()
    found = []
    for storage in ("memory", "recompute"):
        model = dense_prediction(3)
        sylvinit.initialize_head_(model, (x, y), storage=storage, microbatch=5)
        found.append(solution(model))
    assert torch.equal(*found)


def test_ragged_maps() -> None:
    batches = [shapes(6, size) for size in (8, 12)]
    model = dense_prediction(3)
    report = sylvinit.initialize_(model, batches, preset="best")
    assert report.layers[-1].rows == 6 * (64 + 144)


@pytest.mark.parametrize("kind", ["numbers", "maps", "balanced maps"])
def test_microbatches_do_not_matter(kind: str) -> None:
    x, y = shapes()
    labels: Any = y if "maps" in kind else x[:, :1] * 3 + 1
    found = []
    for microbatch in (24, 5):
        model = dense_prediction(3 if "maps" in kind else 1).double()
        data = (x.double(), labels.double() if kind == "numbers" else labels)
        sylvinit.initialize_(
            model, data, preset="best", microbatch=microbatch, balance=kind.startswith("bal")
        )
        found.append(solution(model))
    # Moments are sums in float64 in another order; two layers, about a factor of 3 each.
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-9 * float(found[0].abs().max()))


def test_rows_of_unknown_targets_are_left_out() -> None:
    x = rows(50).double()
    y = x[:, :2] * 2 + 1
    y[3] = torch.nan
    kept = torch.arange(50) != 3
    some, rest = nn.Linear(12, 2).double(), nn.Linear(12, 2).double()
    sylvinit.initialize_head_(some, (x, y))
    sylvinit.initialize_head_(rest, (x[kept], y[kept]))
    torch.testing.assert_close(solution(some), solution(rest), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("head_code", ["targets", "ridge"])
def test_a_target_that_is_unknown_for_half_of_the_rows(head_code: str) -> None:
    x = torch.randn(4000, 12, generator=generator()).double()
    y = torch.stack((2 * x[:, 0] + 5, 3 * x[:, 1] - 4), dim=1)
    known = y.clone()
    known[torch.rand(4000, generator=generator(1)) < 0.5, 1] = torch.nan
    head, whole = nn.Linear(12, 2).double(), nn.Linear(12, 2).double()
    sylvinit.initialize_head_(head, (x, known), head_code=head_code)
    sylvinit.initialize_head_(whole, (x, y), head_code=head_code)
    # The covariance of the known rows is that of all up to 4000^(-1/2) = 1.6 %; seen 2.5 %.
    torch.testing.assert_close(solution(head), solution(whole), rtol=0, atol=0.06 * 4)


def test_lda_of_label_maps_sees_the_labels_of_its_rows() -> None:
    x, y = shapes()
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1)).double()
    sylvinit.initialize_(model, (x.double(), y), code="lda", head_code="onehot", patches="all")
    pixels, labels = x.double().movedim(1, -1).reshape(-1, 2).numpy(), y.flatten().numpy()
    means = np.stack([pixels[labels == c].mean(axis=0) for c in range(3)])
    share = np.bincount(labels) / len(labels)
    between = (share * (means - pixels.mean(axis=0)).T) @ (means - pixels.mean(axis=0))
    direction = np.linalg.eigh(np.linalg.solve(np.cov(pixels.T, bias=True), between).T)[1][:, -1]
    found = model[0].weight[0, :, 0, 0].detach().numpy()
    cosine = found @ direction / np.linalg.norm(found) / np.linalg.norm(direction)
    assert abs(cosine) > 0.95  # pixels are drawn white, so that both forms agree up to noise


def test_presets_take_no_labels_of_rows_in_hidden_layers() -> None:
    x, y = shapes()
    model = dense_prediction(3)
    report = sylvinit.initialize_(model, (x, y), preset="frozen")
    assert report.layers[0].code.startswith("pca")


# ----------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("labels", "outputs", "match"),
    [
        (torch.randn(200), 3, "3 outputs"),
        (torch.randn(200, 4), 3, "3 outputs"),
        (torch.full((200, 3), torch.nan), 3, "NaN or left out"),
        (torch.full((200,), -100), 3, "no row is left"),
        (torch.zeros(200, 7, dtype=torch.int64), 3, "1 rows"),
        (torch.randn(199, 3), 3, "one entry per sample"),
    ],
)
def test_labels_that_do_not_suit(labels: Tensor, outputs: int, match: str) -> None:
    model = dense(outputs)
    before = Snapshot.of(model)
    with pytest.raises(LabelError, match=match):
        sylvinit.initialize_(model, (rows(), labels), preset="best")
    assert Snapshot.of(model) == before


def test_more_classes_than_outputs_are_left_aside() -> None:
    with pytest.warns(SylvinitWarning, match="5 classes, 1 outputs; for numbers pass floats"):
        report = sylvinit.initialize_(dense(1), (rows(), torch.arange(200) % 5), preset="best")
    assert report.layers[-1].code == "pca"


def test_named_labels_that_do_not_suit_are_left_aside() -> None:
    class Named(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = Named(*dense(3))
    with pytest.warns(SylvinitWarning, match="without labels"):
        report = sylvinit.initialize_(
            model, {"x": rows(), "labels": torch.randn(200, 8)}, preset="best"
        )
    assert report.layers[-1].code == "pca"


def test_float_class_numbers_are_classes_with_a_warning() -> None:
    y = torch.arange(200) % 3
    model, other = dense(3), dense(3)
    with pytest.warns(SylvinitWarning, match="read as classes"):
        sylvinit.initialize_(model, (rows(), y.float()), preset="best")
    sylvinit.initialize_(other, (rows(), y), preset="best")
    assert torch.equal(solution(model), solution(other))


@pytest.mark.parametrize("code", ["targets", "ridge"])
def test_targets_are_for_heads(code: str) -> None:
    with pytest.raises(OptionError, match=f"head_code='{code}'"):
        sylvinit.initialize_(dense(1), (rows(), torch.randn(200)), code=code)


def test_balance_needs_classes() -> None:
    with pytest.raises(OptionError, match="balance=True needs class labels"):
        sylvinit.initialize_(dense(1), (rows(), torch.randn(200)), preset="best", balance=True)


def test_unshifted_labels_of_a_language_model() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.embedding(input_ids))

    tokens = torch.randint(0, 20, (12, 7), generator=generator())
    with pytest.warns(SylvinitWarning, match="not shifted"):
        sylvinit.initialize_head_(Causal(), {"input_ids": tokens, "labels": tokens})
    shifted = torch.cat((tokens[:, 1:], torch.full((12, 1), -100)), dim=1)
    report = sylvinit.initialize_head_(Causal(), {"input_ids": tokens, "labels": shifted})
    assert not any("shifted" in text for text in report.warnings)


def test_labels_that_forward_fn_is_given_are_no_inputs() -> None:
    """A class for every pixel."""
    model = nn.Conv2d(3, 4, 1)
    images = torch.randn(12, 3, 5, 5, generator=generator())
    data = {"images": images, "labels": images.argmax(dim=1)}
    report = sylvinit.initialize_head_(model, data, forward_fn=lambda m, x: m(x["images"]))
    assert not any("labels" in text for text in report.warnings)


def test_a_head_over_a_vocabulary() -> None:
    """Nothing of the size of classes times classes is made: that would be 20 GB."""
    head = nn.Linear(4, 50_000).double()
    x = torch.randn(500, 4, generator=generator(), dtype=torch.float64)
    y = torch.randint(0, 50_000, (500,), generator=generator())
    y[:200] = 7
    sylvinit.initialize_head_(head, (x, y))
    present = y.unique()
    absent = torch.ones(50_000, dtype=torch.bool)
    absent[present] = False
    assert not head.weight[absent].any()
    number = torch.searchsorted(present, y)
    expected = explicit(x.numpy(), np.eye(len(present))[number.numpy()], np.ones(500), 10.0)
    found = torch.cat((head.weight, head.bias[:, None]), dim=1)[present].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
