"""Zero-shot recognition with the semantic autoencoder of Kodirov, Xiang and Gong (CVPR 2017).

Classes are described by attributes. From images X (one per column) of seen classes and the
attributes S of their classes, W encodes images and W^T decodes attributes,

    min |X - W^T S|^2 + lam |W X - S|^2,   hence   S S^T W + lam W X X^T = (1 + lam) S X^T.

An image of a class that was never seen belongs to the class whose attributes W x resembles most.

Here: scikit-learn's digits; two of the ten digits are unseen, for all 45 pairs of them. lam is
chosen for each pair by hiding, in turn, each two of the eight digits that are seen. The equation
needs only sums over classes, so leaving classes out is adding up others; all 255 fits, each for
all lam, are one call. Attributes and images are centered with the seen classes' means.
"""

from __future__ import annotations

from itertools import combinations

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import normalize

import sylvinit

# Segments of a seven-segment display: top, upper left and right, middle, lower left and right,
# bottom. Nothing in them was made for handwriting.
SEGMENTS = """1110111 0010010 1011101 1011011 0111010 1101011 1101111 1010010 1111111 1111011"""
# What strokes of the handwritten digits look like: closed above, closed below, open to the left
# above, open to the left below, open to the right above, open to the right below, upright stroke,
# horizontal stroke at the top, in the middle, at the bottom.
STROKES = """1100000000 0000001000 0010010001 0011000000 0000001010
             0001100100 0100100000 0011000100 1100000010 1001000000"""
LAMS = torch.logspace(-2, 2, 5, dtype=torch.float64)


class ClassSums:
    """Per class: n, sum of x, sum of x x^T."""

    def __init__(self) -> None:
        digits = load_digits()
        images = torch.from_numpy(digits.data) / 16
        images = images[:, images.std(dim=0) > 1 / 16]  # pixels at the rim hardly ever vary
        labels = torch.from_numpy(digits.target)
        self.images = [images[labels == c] for c in range(10)]
        self.n = torch.tensor([len(x) for x in self.images], dtype=torch.float64)
        self.sums = torch.stack([x.sum(dim=0) for x in self.images])
        self.products = torch.stack([x.mT @ x for x in self.images])


def fit(classes: ClassSums, attributes: torch.Tensor, hidden: list[tuple[int, ...]]):
    """W (len(hidden), len(LAMS), attributes, pixels), mean x and mean s, of those not hidden."""
    seen = torch.ones(len(hidden), 10, dtype=torch.float64)
    for row, left_out in zip(seen, hidden, strict=True):
        row[list(left_out)] = 0
    weight = seen * classes.n
    total = weight.sum(dim=1, keepdim=True)
    mean_x, mean_s = seen @ classes.sums / total, weight @ attributes / total
    xx = torch.einsum("hc,cij->hij", seen, classes.products)
    xx -= total[..., None] * mean_x[:, :, None] * mean_x[:, None, :]
    s = attributes - mean_s[:, None]
    ss = s.mT @ (weight[..., None] * s)
    sx = s.mT @ (seen[..., None] * classes.sums - weight[..., None] * mean_x[:, None])
    factors = sylvinit.sylvester_factor(ss[:, None], xx[:, None], assume_a="pos")
    w = factors.solve((1 + LAMS)[:, None, None] * sx[:, None], scale=LAMS)
    return w, mean_x, mean_s


def accuracy(classes: ClassSums, attributes: torch.Tensor, fitted, pair) -> torch.Tensor:
    """Mean over both classes of a pair of the fraction of images recognized, for each lam."""
    w, mean_x, mean_s = fitted
    first, second = normalize(attributes[list(pair)] - mean_s, dim=-1)
    direction = w.mT @ (first - second)  # an image x is taken for the first where this . x > 0
    hits = [(classes.images[c] - mean_x) @ direction.mT > 0 for c in pair]
    return (hits[0].double().mean(dim=0) + (~hits[1]).double().mean(dim=0)) / 2


def evaluate(classes: ClassSums, attributes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Accuracy of each of the 45 pairs: with lam chosen on seen classes, and with every lam."""
    pairs, fours = list(combinations(range(10), 2)), list(combinations(range(10), 4))
    fits = zip(*fit(classes, attributes, pairs + fours), strict=True)
    fitted = dict(zip(pairs + fours, fits, strict=True))
    inner = {
        (four, pair): accuracy(classes, attributes, fitted[four], pair)
        for four in fours
        for pair in combinations(four, 2)
    }
    every = torch.stack([accuracy(classes, attributes, fitted[pair], pair) for pair in pairs])
    chosen = []
    for rates, (u, v) in zip(every, pairs, strict=True):
        seen = [c for c in range(10) if c not in (u, v)]
        rehearsal = [inner[tuple(sorted((u, v, *pair))), pair] for pair in combinations(seen, 2)]
        chosen.append(rates[torch.stack(rehearsal).mean(dim=0).argmax()])
    return torch.stack(chosen), every


def main() -> None:
    classes = ClassSums()
    for name, table in (("segments", SEGMENTS), ("strokes", STROKES)):
        attributes = torch.tensor([[float(bit) for bit in bits] for bits in table.split()]).double()
        chosen, every = evaluate(classes, attributes)
        mean, above = float(chosen.mean()), int((chosen > 0.5).sum())
        print(f"{name}: {mean:.1%} over all 45 unseen pairs (chance 50 %), {above} above chance")
        sweep = ", ".join(f"{rate:.1%}" for rate in every.mean(dim=0))
        print(f"  with lam = {LAMS[0]:g} ... {LAMS[-1]:g}: {sweep}")
        assert mean > 0.55


if __name__ == "__main__":
    main()
