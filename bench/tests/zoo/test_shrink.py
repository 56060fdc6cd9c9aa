"""Configurations made smaller by the names of their fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from zoo_models.shrink import Shrinkage, small_fields


@dataclass
class Vision:
    hidden_size: int = 768
    image_size: int = 224
    patch_size: int = 16
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    embed_dims: tuple[int, ...] = (64, 128)


@dataclass
class Language:
    hidden_size: int = 4096
    intermediate_size: int | None = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 32000
    num_experts: int = 64
    num_experts_per_tok: int = 8
    max_position_embeddings: int = 2048
    hidden_dropout: float = 0.1
    pad_token_id: int | None = None
    eos_token_id: int = 31999
    conv_kernel: int = 4
    use_cache: bool = True
    kinds: list[str] = field(default_factory=lambda: ["ssm", "ssm", "attention", "ssm"] * 8)
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": Vision}


def test_fewer_heads_of_the_same_width() -> None:
    assert small_fields(Language, Shrinkage(32, fewer_heads=True)) == {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 128,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "kinds": ["ssm", "ssm"],
        "vision_config": {
            "image_size": 112,
            "hidden_size": 24,
            "depths": [1, 1, 1, 1],
            "embed_dims": (4, 8),
        },
    }


def test_as_many_narrower_heads() -> None:
    small = small_fields(Language, Shrinkage(8, fewer_heads=False, layers=4))
    assert small["hidden_size"] == 4096 // 8
    assert small["head_dim"] == 128 // 8
    assert "num_attention_heads" not in small
    assert small["num_hidden_layers"] == 4
    assert small["vision_config"]["embed_dims"] == (8, 16)  # by the same divisor
    assert small["vision_config"]["depths"] == [2, 2, 4, 2]  # deeper where one block each fails
