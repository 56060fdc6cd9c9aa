"""Map-style datasets of torch and of Hugging Face's interface, read by a loader."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from driver_helpers import CLASSES, assert_identical, images, initialized, mlp, unchanged
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset
from torch.utils.data import TensorDataset as Tensors

import sylvinit
from sylvinit.errors import DataError, LabelError, OptionTypeError

X, Y = images(30)
ROWS = X.flatten(1)[:, :12]


class Row(NamedTuple):
    input: Tensor
    label: int


class Items(Dataset):
    """What a function makes of each index."""

    def __init__(self, make: Any, length: int = 30) -> None:
        self.make, self.length = make, length
        self.read: list[int] = []

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.make(index)

    def __len__(self) -> int:
        return self.length


class Columns:
    """As datasets.Dataset: no class of torch, lists of numbers unless tensors are asked for."""

    def __init__(self, columns: dict[str, list[Any]], kind: str | None = None) -> None:
        self.columns, self.format = columns, {"type": kind}

    def with_format(self, kind: str) -> Columns:
        return Columns(self.columns, kind)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {name: column[index] for name, column in self.columns.items()}
        if self.format["type"] is None:
            return row
        return {k: v if isinstance(v, str) else torch.tensor(v) for k, v in row.items()}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    def __iter__(self) -> Any:
        return (self[index] for index in range(len(self)))


class Indexed:
    """No dataset by its class, and nothing that could be iterated over."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return ROWS[index], Y[index]

    def __len__(self) -> int:
        return 30

    __iter__ = None


COLUMNS = {"input": ROWS.tolist(), "label": Y.tolist()}
DATASETS: dict[str, Any] = {
    "tensors": Tensors(ROWS, Y),
    "a part": Subset(Tensors(ROWS.repeat(2, 1), Y.repeat(2)), list(range(30))),
    "joined": ConcatDataset([Tensors(ROWS[:7], Y[:7]), Tensors(ROWS[7:], Y[7:])]),
    "plain numbers": Items(lambda at: (ROWS[at], int(Y[at]))),
    "arrays": Items(lambda at: (ROWS[at].numpy(), int(Y[at]))),
    "named tuples": Items(lambda at: Row(ROWS[at], int(Y[at]))),
    "mappings": Items(lambda at: {"input": ROWS[at], "label": Y[at]}),
    "columns": Columns(COLUMNS),
    "columns of tensors": Columns(COLUMNS, "torch"),
    "no class of torch": Indexed(),
}


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_are_their_samples(name: str) -> None:
    expected = initialized(mlp(), (ROWS, Y))
    assert_identical(expected, initialized(mlp(), DATASETS[name]))
    expected = initialized(mlp(), (ROWS[:20], Y[:20]), microbatch=8)
    assert_identical(expected, initialized(mlp(), DATASETS[name], microbatch=8, max_samples=20))


def test_without_labels() -> None:
    expected = initialized(mlp(), ROWS)
    assert_identical(expected, initialized(mlp(), Tensors(ROWS)))


def test_only_the_samples_that_are_used_are_read() -> None:
    items = Items(lambda at: (ROWS[at], Y[at]))
    sylvinit.initialize_(mlp(), items, preset="best", max_samples=5)
    assert set(items.read) == set(range(5))


def test_the_default_microbatch_is_that_of_the_data_in_one_piece() -> None:
    seen: list[int] = []
    model = mlp()
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    x, y = ROWS.repeat(100, 1), Y.repeat(100)
    sylvinit.initialize_(model, Tensors(x, y), preset="best")
    assert max(seen) == 2048


def test_random_numbers_of_a_dataset_are_put_back() -> None:
    items = Items(lambda at: (ROWS[at] + torch.rand(12), Y[at]))
    model = mlp()
    before = torch.random.get_rng_state()
    sylvinit.initialize_(model, items, preset="best")
    assert torch.equal(before, torch.random.get_rng_state())


def test_extra_columns_are_named() -> None:
    named = Columns(COLUMNS | {"idx": Y.tolist(), "text": ["a"] * 30})
    message = "columns idx, text, but the forward of Sequential takes input; .*forward_fn="
    model = mlp()
    with unchanged(model), pytest.raises(DataError, match=message):
        sylvinit.initialize_(model, named, preset="best")
    with unchanged(model), pytest.raises(DataError, match=r"batch has 3 members.*forward_fn="):
        sylvinit.initialize_(model, Tensors(ROWS, Y, Y), preset="best")

    def call(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        assert inputs.keys() == {"input", "idx", "text", "label"}
        return model(inputs["input"])

    expected = initialized(mlp(), (ROWS, Y))
    assert_identical(expected, initialized(mlp(), named, forward_fn=call))


class Swallows(nn.Module):
    """Takes any keyword, as many models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, input: Tensor, **options: Any) -> Tensor:
        return self.head(input)


def test_columns_that_only_further_keywords_would_take() -> None:
    """A dataset's are refused; in a batch they are meant."""
    model = Swallows()
    with unchanged(model), pytest.raises(DataError, match=r"columns idx, but .*Swallows takes"):
        sylvinit.initialize_(model, Columns(COLUMNS | {"idx": Y.tolist()}), preset="best")
    sylvinit.initialize_(model, {"input": ROWS, "idx": Y, "labels": Y}, preset="best")


class Stream(IterableDataset):
    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Any:
        return iter(self.samples)


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("empty", Tensors(ROWS[:0], Y[:0]), DataError, "data is empty"),
    ("unlike sizes", Items(lambda at: (torch.ones(at + 1), 0)), DataError, "no batch .*collate_fn"),
    ("objects", Items(lambda at: (object(), 0)), DataError, "no batch .*object.*collate_fn"),
    ("parts", {"train": Columns(COLUMNS), "test": Columns(COLUMNS)}, DataError, "train, test"),
    ("a stream", Stream(zip(ROWS, Y, strict=True)), LabelError, "single samples .*DataLoader"),
    ("a stream of rows", Stream(Columns(COLUMNS)), DataError, "single samples .*DataLoader"),
]


@pytest.mark.parametrize(
    ("data", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_datasets_that_make_no_batch(data: Any, error: type[Exception], message: str) -> None:
    model = mlp()
    with unchanged(model), pytest.raises(error, match=message):
        sylvinit.initialize_(model, data, preset="best")


def test_a_dataset_without_a_length() -> None:
    class Endless(Dataset):
        def __getitem__(self, index: int) -> Any:
            return ROWS[0], Y[0]

    with pytest.raises(OptionTypeError, match=r"Endless has no length; .*DataLoader"):
        sylvinit.initialize_(mlp(), Endless(), preset="best")


def test_an_error_of_a_dataset_is_its_own() -> None:
    def missing(index: int) -> Any:
        raise FileNotFoundError(f"{index}.png")

    with pytest.raises(FileNotFoundError, match=r"0\.png"):
        sylvinit.initialize_(mlp(), Items(missing), preset="best")


def test_a_loader_and_a_stream_of_batches_are_as_before() -> None:
    expected = initialized(mlp(), (ROWS, Y), microbatch=10)
    loader = DataLoader(Tensors(ROWS, Y), batch_size=10)
    assert_identical(expected, initialized(mlp(), loader))
    assert_identical(expected, initialized(mlp(), Stream(list(loader))))
