"""Classifiers of sequences that apply their head to all tokens and read the last one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sylvinit

N, T, CLASSES = 60, 7, 3
_G = torch.Generator().manual_seed(0)
LABELS = torch.arange(N) % CLASSES
TOKENS = torch.randint(1, 20, (N, T), generator=_G)
LENGTHS = 2 + torch.arange(N) * 5 % (T - 1)
LENGTHS[:2] = T  # the first samples have no padding
MASK = (torch.arange(T) < LENGTHS[:, None]).long()
TOKENS = torch.where(MASK.bool(), TOKENS, 0)
LAST = LENGTHS - 1
Read = Callable[[Tensor, Tensor], Tensor]


class Decoder(nn.Module):
    """Sums of all tokens up to each one, and a head on every row."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed, self.body = nn.Embedding(20, 10), nn.Linear(10, 12)
            self.score = nn.Linear(12, CLASSES, bias=False)
        self.read = read

    def features(self, input_ids: Tensor) -> Tensor:
        return self.body(self.embed(input_ids).cumsum(dim=1)).relu()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.read(self.score(self.features(input_ids)), input_ids)


def last_of_all(y: Tensor, tokens: Tensor) -> Tensor:
    return y[:, -1]


def last_token(y: Tensor, tokens: Tensor) -> Tensor:
    places = ((tokens != 0) * torch.arange(tokens.shape[1])).argmax(dim=1)
    return y[torch.arange(len(y)), places]


def first_token(y: Tensor, tokens: Tensor) -> Tensor:
    return y[:, 0]


def mean(y: Tensor, tokens: Tensor) -> Tensor:
    return y.mean(dim=1)


def head_of(read: Read, data: dict[str, Tensor], microbatch: int = 20) -> tuple[Tensor, str]:
    model = Decoder(read)
    report = sylvinit.initialize_head_(model, {**data, "labels": LABELS}, microbatch=microbatch)
    return model.score.weight.detach(), " ".join(report["score"].notes)


def expected(rows: Tensor) -> Tensor:
    """The head of a network that is given these rows of every sample alone."""
    alone = nn.Linear(12, CLASSES, bias=False)
    sylvinit.initialize_head_(
        alone, (Decoder(mean).features(TOKENS)[torch.arange(N), rows], LABELS)
    )
    return alone.weight.detach()


# A sample in three has one token of padding.
ONE_SHORT = torch.cat([TOKENS.clamp_min(1), (torch.arange(N) % 3 > 0).long()[:, None] * 5], dim=1)
ONE_SHORT[::3, -1], ONE_SHORT[1::3, -1] = 0, 6 + torch.arange(20) % 9
PADDED = {"input_ids": TOKENS, "attention_mask": MASK}
BARE = {"input_ids": TOKENS}


@pytest.mark.parametrize("microbatch", [20, 60])
def test_the_last_token_that_is_no_padding(microbatch: int) -> None:
    weight, note = head_of(last_token, PADDED, microbatch)
    assert torch.allclose(weight, expected(LAST), atol=1e-6)
    assert "only the last token" in note


def test_the_last_row_without_a_mask() -> None:
    weight, note = head_of(last_of_all, BARE)
    assert torch.allclose(weight, expected(torch.full((N,), T - 1)), atol=1e-6)
    assert "only the last token" in note


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (mean, PADDED),
        (first_token, PADDED),
        (last_of_all, PADDED),  # padding, that is
        (last_token, BARE),  # no mask says which one it is
        (last_token, {"input_ids": ONE_SHORT}),
    ],
)
def test_what_reads_other_rows_takes_all(read: Read, data: dict[str, Tensor]) -> None:
    weight, note = head_of(read, data)
    assert "all rows of a sample are taken with its label" in note
    assert torch.equal(weight, head_of(lambda y, tokens: y.sum(dim=1), data)[0])


def test_decoders_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2, num_labels=3, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config).eval()
    report = sylvinit.initialize_head_(model, {**PADDED, "labels": LABELS})
    assert report["score"].rows == N
    with torch.no_grad():
        rows = model.transformer(**PADDED).last_hidden_state[torch.arange(N), LAST]
    alone = nn.Linear(16, 3, bias=False)
    sylvinit.initialize_head_(alone, (rows, LABELS))
    assert torch.allclose(model.get_parameter("score.weight"), alone.weight, atol=1e-5)
