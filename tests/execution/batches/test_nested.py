"""Lists with one tensor for each sample, lists of inputs, packed sequences, nested tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driver_helpers import CLASSES, assert_identical, images, initialized, unchanged
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import sylvinit
from sylvinit.errors import DataError, LabelError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]
SIZES = [1 + at % 4 for at in range(30)]
BAGS = [ROWS[:size] + 0.1 * row for size, row in zip(SIZES, ROWS, strict=True)]


class Bags(nn.Module):
    """Multiple instances: features of each one, their mean over a bag, a classifier."""

    def __init__(self, kind: type = list) -> None:
        super().__init__()
        self.kind = kind
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            self.embed, self.head = nn.Linear(12, 8), nn.Linear(8, CLASSES)

    def forward(self, bags: Any, scale: Tensor | None = None) -> Tensor:
        assert type(bags) is self.kind
        x = torch.cat(list(bags)) if scale is None else torch.cat(list(bags)) * scale[0]
        parts = self.embed(x).relu().split([len(bag) for bag in bags])
        return self.head(torch.stack([part.mean(dim=0) for part in parts]))


def batches(form: Any, sizes: tuple[int, ...] = (10, 10, 10)) -> list[Any]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [form(end - size, end) for size, end in zip(sizes, ends, strict=True)]


FORMS: dict[str, tuple[Any, type]] = {
    "lists": (lambda i, j: (BAGS[i:j], Y[i:j]), list),
    "tuples": (lambda i, j: (tuple(BAGS[i:j]), Y[i:j]), tuple),
    "arrays": (lambda i, j: ([bag.numpy() for bag in BAGS[i:j]], Y[i:j]), list),
    "labels in a list": (lambda i, j: [BAGS[i:j], Y[i:j].tolist()], list),
    "by name": (lambda i, j: {"bags": BAGS[i:j], "labels": Y[i:j]}, list),
    "among arguments": (lambda i, j: ((BAGS[i:j], torch.ones(j - i)), Y[i:j]), list),
}


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("form", FORMS)
def test_a_list_with_a_tensor_for_each_label_is_a_batch(form: str, storage: Any) -> None:
    make, kind = FORMS[form]
    expected = initialized(Bags(), (BAGS, Y), microbatch=10)
    assert_identical(expected, initialized(Bags(kind), batches(make), storage=storage))


def test_all_rows_of_the_bags_are_used_and_labels_are_theirs() -> None:
    model = Bags()
    report = sylvinit.initialize_(model, batches(FORMS["lists"][0]), preset="best", patches="all")
    assert report["embed"].rows == sum(SIZES)
    assert report["head"].code == "onehot"
    assert report.samples == 30


def test_samples_are_cut_out_of_the_list() -> None:
    expected = initialized(Bags(), batches(FORMS["lists"][0], (4, 4, 3)), max_samples=9)
    assert_identical(expected, initialized(Bags(), (BAGS, Y), microbatch=4, max_samples=9))


class Sum(nn.Module):
    """Several inputs of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(9)
            self.head = nn.Linear(12, CLASSES)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.head(torch.stack(parts).sum(dim=0))


@pytest.mark.parametrize("kind", [list, tuple])
def test_entries_as_long_as_the_labels_are_inputs(kind: type) -> None:
    """Two inputs of two samples each."""
    x, y = ROWS[:10], torch.arange(10) % 2
    pairs = [(kind((x[i : i + 2], x[i : i + 2])), y[i : i + 2]) for i in range(0, 10, 2)]
    expected = initialized(Sum(), [((2 * x[i : i + 2],), y[i : i + 2]) for i in range(0, 10, 2)])
    assert_identical(expected, initialized(Sum(), pairs))


def test_decided_on_the_first_batch() -> None:
    # The last batch has two inputs of two samples.
    x, y = ROWS[:12], torch.arange(12) % 2
    pairs = [((x[i:j], x[i:j]), y[i:j]) for i, j in ((0, 10), (10, 12))]
    expected = initialized(Sum(), [((2 * x[i:j],), y[i:j]) for i, j in ((0, 10), (10, 12))])
    assert_identical(expected, initialized(Sum(), pairs))
    # The last batch has three bags of three instances, which would be inputs.
    bags = [*BAGS[:10], *(ROWS[i : i + 3] for i in range(3))]
    parts = [(bags[:10], Y[:10]), (bags[10:], Y[10:13])]
    whole = initialized(Bags(), (bags, Y[:13]), microbatch=10)
    assert_identical(whole, initialized(Bags(), parts))


class Detector(nn.Module):
    """Takes images of unlike sizes, as those of torchvision do, and gives a score for each."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(10)
            self.body = nn.Conv2d(3, 6, 3, padding=1)
            self.boxes = nn.Linear(6, 4)

    def forward(self, images: list[Tensor], targets: Any = None) -> list[Tensor]:
        assert targets is None
        size = [max(x.shape[axis] for x in images) for axis in (1, 2)]
        padded = images[0].new_zeros((len(images), 3, *size))
        for place, image in zip(padded, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return list(self.boxes(self.body(padded).relu().mean(dim=(2, 3))))


@pytest.mark.parametrize("size", [5, 3])  # three pictures of three channels are no arguments
def test_a_detection_model(size: int) -> None:
    pictures = [image[:, :, : 4 + at % 3] for at, image in enumerate(X)]
    targets = [{"boxes": torch.rand(2, 4), "labels": torch.ones(2)} for _ in pictures]
    starts = range(0, 30, size)
    data = [(tuple(pictures[i : i + size]), tuple(targets[i : i + size])) for i in starts]
    model = Detector()
    with pytest.warns(sylvinit.SylvinitWarning, match="data has no labels"):
        report = sylvinit.initialize_(model, data, preset="best")
    assert [layer.status for layer in report.layers] == ["solved", "solved"]
    assert report.samples == 30
    expected = Detector()
    sylvinit.initialize_(
        expected, [(list(x), Y[:size]) for x, _ in data], preset="best", head_code="pca"
    )
    assert torch.equal(model.body.weight, expected.body.weight)


BAD: list[tuple[str, Any, type[Exception], str]] = [
    (
        "a bag less later on",
        [(BAGS[:10], Y[:10]), (BAGS[10:19], Y[10:20])],
        DataError,
        "sample 10 has 10 labels and a list of 9 entries, 9 of them tensors; the first batch",
    ),
    (
        "no tensors later on",
        [(BAGS[:3], Y[:3]), ([None] * 3, Y[:3])],
        DataError,
        "a list of 3 entries, 0 of them tensors",
    ),
    (
        "a bag less",
        [(BAGS[:9], Y[:10])],
        LabelError,
        "one entry per sample: .*read as the model's arguments",
    ),
    ("NaN", [([*BAGS[:3], BAGS[3] * torch.nan], Y[:4])], DataError, "first in sample 3"),
    ("targets", [(BAGS[:4], [{}] * 3)], LabelError, "4 samples and 3 mappings|and 3 mappings"),
]


@pytest.mark.parametrize(
    ("data", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_lists_that_are_no_batch(data: Any, error: type[Exception], message: str) -> None:
    model = Bags()
    with unchanged(model), pytest.raises(error, match=message):
        sylvinit.initialize_(model, data, preset="best")


def test_a_model_that_wants_a_tensor_is_given_a_list() -> None:
    for first in (nn.Linear(12, 4), nn.BatchNorm1d(12)):
        model = nn.Sequential(first, nn.Linear(first.weight.shape[0], CLASSES))
        message = rf"0 \({type(first).__name__}\) was called with a list, .*forward_fn="
        with unchanged(model), pytest.raises(DataError, match=message):
            sylvinit.initialize_(model, (BAGS, Y), preset="best")


LENGTHS = torch.tensor([12, 7, 3])
PACKED = pack_padded_sequence(ROWS[:3, :, None], LENGTHS, batch_first=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (PACKED, Y[:3]), "PackedSequence.*pad_packed_sequence.*padding_mask='lengths'"),
        (lambda: pack_sequence([ROWS[0, :, None]]), "PackedSequence"),
        (lambda: [{"x": PACKED, "labels": Y[:3]}], "PackedSequence"),
        (lambda: (torch.nested.nested_tensor(BAGS[:3]), Y[:3]), "nested .*to_padded_tensor"),
        (
            lambda: [((ROWS[:3], torch.nested.nested_tensor(BAGS, layout=torch.jagged)), Y[:3])],
            "nested tensor",
        ),
    ],
    ids=["packed", "packed alone", "packed by name", "nested", "jagged"],
)
def test_packed_and_nested_inputs_are_refused(make: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(1, 2))
    with unchanged(model), pytest.raises(DataError, match=message):
        sylvinit.initialize_(model, make(), preset="best")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_layer_that_is_given_a_nested_tensor() -> None:
    class Nests(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.nested.nested_tensor(list(x)))

    model = Nests(nn.Linear(12, CLASSES))
    with unchanged(model), pytest.raises(DataError, match=r"0 .Linear. was called with a nested"):
        sylvinit.initialize_(model, ROWS, preset="best")
