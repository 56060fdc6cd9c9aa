"""What the arguments of :func:`sylvinit.initialize_` are where the user does not give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sylvinit.codes import PCA, Code, Discriminant, OneHot, SignPairs

PresetName = Literal["paper", "best"]


@dataclass(frozen=True)
class Preset:
    """Settings that belong together.

    Attributes:
        name: for reports.
        patches: per sample and layer.
        lam: weight of the encoding loss.
        head: code of a head that has an output for every class.
        rescale: whether rows of hidden layers get unit output variance.
        supervised_from: hidden layers that lie so deep (see :meth:`hidden`) use labels, if there
            are some; 1 for none.
    """

    name: PresetName
    patches: int
    lam: float
    head: Code
    rescale: bool
    supervised_from: float

    def supervised(self, depth: float) -> bool:
        """Whether a hidden layer is to use labels."""
        return depth >= self.supervised_from

    def hidden(self, *, depth: float, labelled: bool, rectified: bool) -> Code:
        """Code of a hidden layer.

        Early layers keep what varies most: what they do not pass on is lost to all others, and
        patches of theirs tell little of the class. Late ones look for what tells classes apart, in
        pairs of opposite sign where a rectifier would drop half of it.

        Args:
            depth: the share of the network's layers that are executed before this one, in [0, 1).
            labelled: whether there are class labels.
            rectified: whether its output passes through a rectifier before the next layer.
        """
        if not (labelled and self.supervised(depth)):
            return PCA()
        return SignPairs(Discriminant()) if rectified else Discriminant()


# One-hot heads in both: their scores stay near 0 and 1. Those of a logistic head grow with how easy
# the training samples are, and features that were made with labels make them very easy: training
# from there went wrong at a learning rate of 0.1.
#
# "best" was chosen by the accuracy after training, on images that were neither trained on nor
# tested on (bench/experiments/configs/choose_preset.json).
_PRESETS: dict[str, Preset] = {
    "paper": Preset("paper", 10, 10.0, OneHot(), rescale=False, supervised_from=1.0),
    "best": Preset("best", 30, 10.0, OneHot(), rescale=True, supervised_from=1 / 3),
}


def available_presets() -> tuple[str, ...]:
    """Names that ``preset=`` takes."""
    return tuple(_PRESETS)


def get_preset(name: str) -> Preset:
    """The preset of that name, one of :func:`available_presets`."""
    return _PRESETS[name]
