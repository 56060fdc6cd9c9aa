from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sylvinit.io.datasets import load_digits

FACTORIES = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
                         nn.Linear(216, 10))

def tied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[3].weight = model[1].weight
    return model

def regression():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))

def dense():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))

def double():
    return net().double().to(memory_format=torch.channels_last)

built = net()

def not_a_model():
    return 3

def broken():
    raise KeyError("in the user's code")
"""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with factories and 200 digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    (tmp_path / "factories.py").write_text(FACTORIES)
    inputs, labels = load_digits().train
    np.savez(tmp_path / "digits.npz", x=inputs[:200].numpy(), y=labels[:200].numpy())
    np.save(tmp_path / "unlabeled.npy", inputs[:200].numpy())
    return tmp_path
