"""A class for every pixel: discs, squares and triangles on a dark ground.

Sixty generated images of 32 x 32 pixels, and 200 others to look at. The labels are maps
(n, 32, 32). Pixels at the border of a shape are left out (-100), and all classes count alike in the
head and in the loss, although most pixels are ground. The network looks at the image at three
resolutions and puts that together for every pixel. ``python examples/segmentation.py PICTURE.png``
draws what comes out.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sylvinit

CLASSES = ("ground", "disc", "square", "triangle")
SEEDS, TRAIN, EPOCHS, SIZE = 3, 60, 10, 32


def shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) and a class for every pixel, int64 (count, 32, 32)."""
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    images = 0.4 * torch.rand(count, 3, 1, 1, generator=generator).repeat(1, 1, SIZE, SIZE)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    for image, label in zip(images, labels, strict=True):
        for kind in torch.randperm(3, generator=generator)[:2].tolist():
            y, x = (8 + 16 * torch.rand(2, generator=generator)).tolist()
            radius = 4 + 4 * float(torch.rand((), generator=generator))
            down, right = (row - y) / radius, (column - x).abs() / radius
            inside = (
                down.square() + right.square() < 1,
                (down.abs() < 0.9) & (right < 0.9),
                (down.abs() < 1) & (right < (down + 1) / 2),
            )[kind]
            label[inside] = kind + 1
            image[:, inside] = 0.3 + 0.7 * torch.rand(3, 1, generator=generator)
    return images + 0.1 * torch.randn(images.shape, generator=generator), labels


def without_borders(labels: Tensor) -> Tensor:
    """Labels with -100 where a pixel beside has another class."""
    x = labels[:, None].float()
    high, low = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    return labels.masked_fill((high != low)[:, 0], -100)


class Segmenter(nn.Module):
    """Three resolutions, put together at the first, with a head of one output for every class."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 24, 48)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()),
                *(nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()),
            )
            for a, b in pairwise(widths)
        )
        self.head = nn.Conv2d(sum(widths[1:]), len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.stages:
            x = stage(F.max_pool2d(x, 2) if maps else x)
            maps.append(F.interpolate(x, size=(SIZE, SIZE), mode="bilinear"))
        return self.head(torch.cat(maps, dim=1))


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    weight = 1 / torch.bincount(y[y >= 0], minlength=len(CLASSES))
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x)).split(10):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index], weight).backward()
            optimizer.step()


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x).argmax(dim=1)


def judge(found: Tensor, y: Tensor) -> tuple[float, float]:
    """Share of right pixels, and the mean over the classes of intersection over union."""
    shares = [
        float(((found == c) & (y == c)).sum() / ((found == c) | (y == c)).sum())
        for c in range(len(CLASSES))
    ]
    return float((found == y).float().mean()), sum(shares) / len(shares)


def draw(path: str, rows: list[tuple[str, Tensor]]) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    count = len(rows[0][1])
    figure = Figure(figsize=(1.1 * count, 1.15 * len(rows)), layout="constrained")
    for line, (name, images) in zip(figure.subplots(len(rows), count), rows, strict=True):
        for place, image in zip(line, images, strict=True):
            colors = matplotlib.colormaps["tab10"](image.clamp(max=9)) if image.ndim == 2 else None
            place.imshow(image.movedim(0, -1).clamp(0, 1) if colors is None else colors)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=8)
    figure.savefig(path, dpi=72)


def main(picture: str | None = None) -> None:
    generator = torch.Generator().manual_seed(0)
    (x, y), (x_test, y_test) = shapes(TRAIN, generator), shapes(200, generator)
    y = without_borders(y)
    found: dict[str, list[tuple[float, float]]] = {}
    rows = [("image", x_test[:5]), ("truth", y_test[:5])]
    for seed in range(SEEDS):
        for name in ("own", "solved"):
            torch.manual_seed(seed)
            model = Segmenter()
            if name == "solved":
                sylvinit.initialize_(model, (x, y), balance=True)
            for when in ("before training", f"after {EPOCHS} epochs"):
                if when != "before training":
                    train(model, x, y)
                prediction = predict(model, x_test)
                found.setdefault(f"{name}, {when}", []).append(judge(prediction, y_test))
                if seed == 0 and (name, when) != ("own", "before training"):
                    rows.append((f"{name},\n{when}", prediction[:5]))
    print(f"{'200 other images, mean of three seeds':38s} pixels right  mean IoU")
    for name, values in found.items():
        right, iou = torch.tensor(values).mean(dim=0).tolist()
        print(f"{name:38s} {right:12.1%} {iou:9.3f}")
    least = min(iou for _, iou in found["solved, before training"])
    assert least > max(iou for _, iou in found["own, before training"])
    if picture is not None:
        draw(picture, rows)


if __name__ == "__main__":
    main(*sys.argv[1:2])
