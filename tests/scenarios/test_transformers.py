"""Models of `transformers`, built from configurations, without special code for any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from driver_helpers import bits, images
from torch import nn

import sylvinit

transformers = pytest.importorskip("transformers")

X, LABELS = images(24, size=32)
TOKENS = torch.randint(1, 40, (24, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9) < 3 + torch.arange(24)[:, None] % 7).long()


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=4
    )
    return transformers.ResNetForImageClassification(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=32,
        patch_size=8,
        num_labels=4,
    )
    return transformers.ViTForImageClassification(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=4,
    )
    return transformers.BertForSequenceClassification(config)


def gpt2_config() -> Any:
    return transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, num_labels=4, pad_token_id=0
    )


def gpt2_classifier() -> nn.Module:
    return transformers.GPT2ForSequenceClassification(gpt2_config())


def gpt2_language() -> nn.Module:
    return transformers.GPT2LMHeadModel(gpt2_config())


def blocks(pattern: str, parts: str, count: int = 2) -> list[str]:
    return [f"{pattern.format(index)}.{part}" for index in range(count) for part in parts.split()]


PIXELS = {"pixel_values": X, "labels": LABELS}
TEXT = {"input_ids": TOKENS, "attention_mask": MASK, "labels": LABELS}
UNLABELLED = {"input_ids": TOKENS, "attention_mask": MASK}

RESNET = [
    "resnet.embedder.embedder.convolution",
    *blocks("resnet.encoder.stages.0.layers.0.layer.{}", "convolution"),
    *blocks("resnet.encoder.stages.1.layers.0.layer.{}", "convolution"),
    "resnet.encoder.stages.1.layers.0.shortcut.convolution",
]
GPT2 = blocks("transformer.h.{}", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj")

# The model, its data, how many layers must be solved, some of them by name, and the head.
MODELS: dict[str, tuple[Callable[[], nn.Module], Any, int, list[str], str | None]] = {
    "resnet": (resnet, PIXELS, 7, RESNET, "classifier.1"),
    "vit": (vit, PIXELS, 1 + 2 * 6 + 1, [], "classifier"),
    "bert": (bert, TEXT, 2 * 6 + 2, ["bert.pooler.dense"], "classifier"),
    "gpt2 classifier": (gpt2_classifier, TEXT, 2 * 4 + 1, GPT2, "score"),
    "gpt2 language": (gpt2_language, UNLABELLED, 2 * 4, GPT2, None),
}


def parameterised(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that own parameters, by name."""
    return {name: m for name, m in model.named_modules() if m._parameters}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_from_its_configuration(name: str) -> None:
    make, data, count, some, head = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    before = {key: bits(value) for key, value in model.named_parameters()}

    report = sylvinit.initialize_(model, data, preset="best", microbatch=10)

    solved = [layer.name for layer in report.solved]
    assert len(solved) == count
    assert set(some) <= set(solved)
    assert report.head == head
    assert {layer.name for layer in report.layers} == set(parameterised(model))
    for layer in report.layers:
        assert layer.status in ("solved", "calibrated") or layer.reason
    # Exactly the weights and biases of the solved layers are new.
    written = {
        f"{layer}.{key}" for layer in solved for key in model.get_submodule(layer)._parameters
    }
    after = {key: bits(value) for key, value in model.named_parameters()}
    assert {key for key in after if after[key] != before[key]} == {
        key for key in written if key in after
    }
    with torch.no_grad():
        output = model.eval()(**data).logits
    assert bool(output.isfinite().all())
    if head in solved:
        assert report[head].code == "onehot"
        # A classifier solved on 24 samples of 4 classes, used on them: chance is 25 %.
        assert float((output.argmax(dim=1) == LABELS).float().mean()) > 0.4


def test_the_ends_of_residual_branches() -> None:
    """In each of the two stages one, the first with a projection on its shortcut."""
    make, data, *_ = MODELS["resnet"]
    report = sylvinit.initialize_(make(), data, preset="best", branch_gain="depth", dry_run=True)
    ends = [layer.name for layer in report.layers if "residual branch" in str(layer.notes)]
    assert ends == [
        f"resnet.encoder.stages.{stage}.layers.0.layer.1.normalization" for stage in (0, 1)
    ]


def test_padding_is_dropped_and_labels_are_not_passed_on() -> None:
    model = bert()
    seen: list[set[str]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    report = sylvinit.initialize_(model, TEXT, preset="best", patches="all")
    assert all(keys == {"input_ids", "attention_mask"} for keys in seen)
    assert report["bert.encoder.layer.0.attention.self.query"].rows == int(MASK.sum())
    assert report["bert.pooler.dense"].rows == len(LABELS)


def test_a_tokenizers_batches() -> None:
    """BatchEncoding is a mapping, but no dict."""
    model = bert()
    batches = [
        transformers.BatchEncoding({key: value[i : i + 8] for key, value in TEXT.items()})
        for i in range(0, 24, 8)
    ]
    report = sylvinit.initialize_(model, batches, preset="best")
    assert report.samples == 24
    assert report["classifier"].code == "onehot"


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return transformers.T5ForConditionalGeneration(config)


def marian() -> nn.Module:
    config = transformers.MarianConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return transformers.MarianMTModel(config)


@pytest.mark.filterwarnings("ignore::sylvinit.SylvinitWarning")
@pytest.mark.parametrize("make", [t5, marian])
@pytest.mark.parametrize("batch", ["a mapping", "BatchEncoding"])
def test_the_decoder_reads_the_labels(make: Callable[[], nn.Module], batch: str) -> None:
    """As with the shifted labels as its input; -100 marks what the loss leaves out."""
    labels = torch.where(torch.arange(6) < 3 + torch.arange(24)[:, None] % 4, TOKENS[:, 2:8], -100)
    inputs = {"input_ids": TOKENS, "attention_mask": MASK}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, other = make(), make()
    other.load_state_dict(model.state_dict())
    data = inputs | {"labels": labels}
    if batch == "BatchEncoding":
        data = transformers.BatchEncoding(data)
    report = sylvinit.initialize_(model, data, preset="best", patches="all", microbatch=10)
    shifted = other.prepare_decoder_input_ids_from_labels(labels)
    sylvinit.initialize_(
        other, inputs | {"decoder_input_ids": shifted}, preset="best", patches="all", microbatch=10
    )
    values = model.state_dict()
    assert all(bits(values[name]) == bits(x) for name, x in other.state_dict().items())
    # q, k, v, o and two of the feed-forward network; in the decoder a second attention.
    solved = [layer.name for layer in report.solved if "lm_head" not in layer.name]
    assert len(solved) == 2 * 6 + 2 * 10
    rows = {layer.rows for layer in report.solved if "decoder" in layer.name}
    assert rows == {24 * 6, int(MASK.sum())}  # keys and values of the second are the encoder's


def test_a_decoder_with_shared_keys_learns_the_next_token() -> None:
    """A Llama: gated products, two queries for each key, RMSNorm, a head for every token."""
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, alone = transformers.LlamaForCausalLM(config), nn.Linear(16, 40, bias=False)
    data = {"input_ids": TOKENS, "attention_mask": MASK}
    known = MASK[:, 1:] == 1
    following = torch.where(known, TOKENS[:, 1:], -100)
    labels = torch.cat([following, torch.full((24, 1), -100)], dim=1)

    report = sylvinit.initialize_(model, data | {"labels": labels}, preset="best", patches="all")

    # q, k, v, o and three of the feed-forward network; the head.
    assert len(report.solved) == 2 * 7 + 1
    assert (report.head, report["lm_head"].code) == ("lm_head", "onehot")
    with torch.no_grad():
        features = model.eval().model(**data).last_hidden_state
    rows = features[:, :-1][known], TOKENS[:, 1:][known]
    sylvinit.initialize_head_(alone, rows)
    # Float32: the features are rounded twice, with padding and without.
    assert torch.allclose(model.lm_head.weight, alone.weight, atol=1e-4)
