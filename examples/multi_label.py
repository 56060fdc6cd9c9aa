"""Several labels at once: four questions about a handwritten digit, some of them unanswered.

Is it odd, is it prime, is it more than four, does it have a closed loop? scikit-learn's digits, 300
of them for training; a third of the answers is unknown (NaN) and left out, of the head and of the
loss alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import sylvinit
from sylvinit.io.datasets import load_digits

QUESTIONS = {
    "odd": (1, 3, 5, 7, 9),
    "prime": (2, 3, 5, 7),
    "more than four": (5, 6, 7, 8, 9),
    "closed loop": (0, 6, 8, 9),
}
SEEDS, TRAIN, EPOCHS = 5, 300, 10


def answers(digits: Tensor) -> Tensor:
    """1 for yes and 0 for no, float (n, 4)."""
    columns = [torch.isin(digits, torch.tensor(yes)) for yes in QUESTIONS.values()]
    return torch.stack(columns, dim=1).float()


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 4)),
    )


def loss_of(scores: Tensor, y: Tensor) -> Tensor:
    known = ~y.isnan()
    return nn.functional.binary_cross_entropy_with_logits(scores[known], y[known])


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            loss_of(model(x[index]), y[index]).backward()
            optimizer.step()


@torch.no_grad()
def judge(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss, and the share of right answers to every question."""
    scores = model.eval()(x)
    right = ((scores > 0) == (y > 0)).float().mean(dim=0)
    return torch.cat((loss_of(scores, y)[None], right))


def main() -> None:
    data, test = load_digits()
    x, y, y_test = data.inputs[:TRAIN], answers(data.labels[:TRAIN]), answers(test.labels)
    y[torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < 1 / 3] = math.nan
    found: dict[str, list[Tensor]] = {}
    for seed in range(SEEDS):
        for name in ("own", "solved"):
            torch.manual_seed(seed)
            model = network()
            if name == "solved":
                sylvinit.initialize_(model, (x, y))
            for when in ("before training", f"after {EPOCHS} epochs"):
                if when != "before training":
                    train(model, x, y)
                found.setdefault(f"{name}, {when}", []).append(judge(model, test.inputs, y_test))
    print(f"{'797 other digits, mean of five seeds':37s} loss  " + "  ".join(QUESTIONS))
    for name, values in found.items():
        loss, *right = torch.stack(values).mean(dim=0).tolist()
        shares = "  ".join(f"{r:{len(q)}.0%}" for q, r in zip(QUESTIONS, right, strict=True))
        print(f"{name:36s} {loss:5.3f}  {shares}")
    assert max(loss[0] for loss in found["solved, before training"]) < math.log(2)


if __name__ == "__main__":
    main()
