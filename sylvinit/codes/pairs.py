"""Codes whose entries come in pairs of opposite sign."""

from __future__ import annotations

from dataclasses import dataclass, field

from sylvinit.codes.code import Code, Latent, is_mirrored, needs_sample_means
from sylvinit.codes.targets import OneHot, Targets
from sylvinit.errors import OptionError, OptionTypeError
from sylvinit.moments.statistics import LayerStatistics


@dataclass(frozen=True)
class SignPairs:
    """The code (s_1, -s_1, s_2, -s_2, ...) for layers that are followed by a rectifier.

    ReLU(s) alone forgets where s is negative; ReLU(s) and ReLU(-s) together keep s (Shang, Sohn,
    Almeida and Lee, "Understanding and improving convolutional neural networks via concatenated
    rectified linear units", 2016). With S = (S_1, -S_1) the equation A W + W B = Q has the solution
    (W_1, -W_1) with 2 A_1 W_1 + W_1 B = Q_1, which is what is solved.

    Attributes:
        code: what the pairs are made of: any but those of given labels, whose entries stand for a
            class or target each, and but those that are pairs already.

    Raises:
        OptionError: there are no pairs of that code.
        OptionTypeError: ``code`` is not a :class:`Code`.
    """

    code: Code
    name: str = field(init=False, repr=False)
    needs_labels: bool = field(init=False, repr=False)
    needs_sample_means: bool = field(init=False, repr=False)
    reservoir: int = field(init=False, repr=False)
    reducible: bool = field(init=False, repr=False)
    mirrored: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.code, Code):
            raise OptionTypeError(
                f"code of sign pairs must be a Code, got {self.code!r}; sylvinit.codes.get_code "
                "gives the code of a name"
            )
        if isinstance(self.code, (OneHot, Targets)):
            raise OptionError(
                "code of sign pairs must have entries of either sign, such as components; got "
                f"{self.code.name!r}, and the negative of a class or target is no class or target. "
                f"Use {self.code.name!r} alone"
            )
        if is_mirrored(self.code):
            raise OptionError(
                f"code of sign pairs must not be in pairs itself, got {self.code.name!r}; use it "
                "as it is"
            )
        derived = {
            "name": f"{self.code.name}-pairs",
            "needs_sample_means": needs_sample_means(self.code),
            **{x: getattr(self.code, x) for x in ("needs_labels", "reservoir", "reducible")},
        }
        for attribute, value in derived.items():
            object.__setattr__(self, attribute, value)  # the class is frozen

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """The entries of the code without their negatives."""
        return self.code.fit(stats, k, seed)
