"""Hashes of every weight that initialize_ writes, to compare two versions on one machine.

    python tests/scenarios/weight_hashes.py before.json             # at the old version
    python tests/scenarios/weight_hashes.py after.json before.json  # exit code 1 if float64 differs

Six networks of different make on fixed data, with every preset. float64 hashes tell any change of
the arithmetic; float32 ones are listed, but sums in another order may change them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.networks import resnet20

PRESETS = ("best", "paper", "frozen")
CLASSES = 10


def vgg8() -> nn.Sequential:
    """Convolutions without normalization, 2 x 2 poolings, a linear head."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((16,), (32,), (48, 48), (64, 64), (64,)):
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, CLASSES))


class TinyViT(nn.Module):
    """A patch embedding, a class token, two encoder layers of torch's own, a linear head."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1) + self.place
        return self.head(self.encoder(x)[:, 0])


def depthwise_net() -> nn.Sequential:
    """Depthwise and pointwise convolutions with batch norm."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, stride=2, padding=1)]
    for width, out in ((16, 32), (32, 48)):
        layers += [
            nn.Conv2d(width, width, 5, stride=2, padding=2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, out, 1),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, CLASSES))


class UNet(nn.Module):
    """Two levels down and up, with skip connections stored on the module, a pooled linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.bottom = nn.Conv2d(24, 24, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(24, 24, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(48, 12, 2, stride=2)
        self.merge = nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, CLASSES)
        self.skips: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.skips.clear()
        for layer in (self.down1, self.down2):
            x = layer(x).relu()
            self.skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x).relu()
        x = torch.cat((self.up2(x), self.skips.pop()), dim=1)
        x = torch.cat((self.up1(x), self.skips.pop()), dim=1)
        return self.head(self.merge(x).relu().mean(dim=(2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "resnet20 float64": (resnet20, torch.float64),
    "resnet20 float32": (resnet20, torch.float32),
    "vgg8 float64": (vgg8, torch.float64),
    "vit float64": (TinyViT, torch.float64),
    "depthwise float64": (depthwise_net, torch.float64),
    "unet float64": (UNet, torch.float64),
}


def images(count: int = 60) -> tuple[Tensor, Tensor]:
    """Smooth random images (count, 3, 32, 32) that differ between classes, float64."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(count) % CLASSES
    shape = (3, 36, 36)
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    pattern = torch.randn(CLASSES, *shape, generator=generator, dtype=torch.float64)
    return F.avg_pool2d(noise + pattern[labels], 5, stride=1), labels


def digest(x: Tensor) -> str:
    """Of the bytes of a tensor."""
    data = x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def weight_hashes(name: str, preset: str) -> dict[str, str]:
    """Of every parameter and buffer of one network, initialized in microbatches of 25."""
    make, dtype = NETWORKS[name]
    torch.manual_seed(0)
    net = make().to(dtype)
    inputs, labels = images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        sylvinit.initialize_(net, (inputs.to(dtype), labels), preset=preset, microbatch=25)
    return {key: digest(value) for key, value in net.state_dict().items()}


def all_hashes() -> dict[str, dict[str, str]]:
    """Of all networks with all presets."""
    return {
        f"{name} {preset}": weight_hashes(name, preset) for name in NETWORKS for preset in PRESETS
    }


def differences(
    old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]
) -> list[tuple[str, str]]:
    """(network and preset, weight) where two runs differ."""
    return [
        (case, key)
        for case in {**old, **new}
        for key in {**old.get(case, {}), **new.get(case, {})}
        if old.get(case, {}).get(key) != new.get(case, {}).get(key)
    ]


def main(arguments: Sequence[str]) -> int:
    found = all_hashes()
    Path(arguments[0]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if len(arguments) < 2:
        return 0
    changed = differences(json.loads(Path(arguments[1]).read_text(encoding="utf-8")), found)
    for case, key in changed:
        sys.stdout.write(f"differs: {case}: {key}\n")
    sys.stdout.write(f"{sum(map(len, found.values()))} weights, {len(changed)} differ\n")
    return int(any("float64" in case for case, _ in changed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
