"""The models and data that the recipes of README.md are about."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import OPTConfig, OPTForSequenceClassification

import sylvinit

images, labels = torch.randn(40, 3, 64, 64), torch.arange(40) % 5
loader = DataLoader(TensorDataset(images, labels), batch_size=8)
transformer = OPTForSequenceClassification(
    OPTConfig(
        vocab_size=64,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=3,
    )
)
mask = torch.ones(24, 10, dtype=torch.long)
tokens = [{"input_ids": 2 + mask, "labels": torch.arange(24) % 3, "attention_mask": mask}]
network = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
rows, prices = torch.randn(100, 8), 1e4 * torch.rand(100, 2)
unet = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 5, 1))
maps = torch.randint(0, 5, (40, 64, 64))
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


class MyCode(sylvinit.codes.PCA):
    name = "mine"


__all__ = [
    *("MyCode", "images", "labels", "loader", "maps", "network", "nn", "prices", "rows"),
    *("sylvinit", "tokens", "torch", "transformer", "unet"),
]
