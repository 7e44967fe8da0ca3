"""Limits of the acceptance gate of a reduced precision, and their messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET

from flawscope.bundle import Gate
from flawscope.errors import ArgumentError

Method = Literal["entropy", "percentile"]
METHODS: tuple[Method, ...] = ("percentile", "entropy")
"""How the range of a tensor is chosen from its histogram: 99.999 % of its values, or the least divergence. The latter
clips large values, and large values are what a defect causes: the default is the former."""


@dataclass(frozen=True)
class Limits:
    """Limits of the acceptance gate; all but the last are fractions or correlations, none is in per cent.

    Attributes:
        image_auroc: Largest |change| of the image AUROC.
        pixel_auroc: Largest |change| of the pixel AUROC.
        spearman: Least rank correlation of the scores, -1 to 1.
        false_rejects: Largest share of normal images above the largest FP32 score of a normal image.
        score_error: Largest relative change of a normal image's score.
        map_place: Largest change of the map at one place, mean over the normal images; see `place_change`.
        images: Fewest normal images, which the detector has not learned from: of 20 one is 5 %, and of fewer a share
            of false rejects says nothing.
    """

    image_auroc: float
    pixel_auroc: float
    spearman: float
    false_rejects: float
    score_error: float
    map_place: float = 1.0
    images: int = 20

    def check(self) -> None:
        """Raise ArgumentError unless every limit is within the range of its figure."""
        if self.images < 1:
            raise ArgumentError(f"limit images: expected at least 1, got {self.images}.")
        for name, value in vars(self).items():
            if name == "images":
                continue
            low = -1.0 if name == "spearman" else 0.0
            if not low <= value <= 1.0:
                raise ArgumentError(f"limit {name}: expected {low:g} to 1, got {value}.")


LIMITS = {
    "fp16": Limits(
        image_auroc=0.001, pixel_auroc=0.001, spearman=0.999, false_rejects=0.02, score_error=0.01, map_place=0.01
    ),
    "bf16": Limits(
        image_auroc=0.002, pixel_auroc=0.002, spearman=0.995, false_rejects=0.03, score_error=0.05, map_place=0.03
    ),
    "int8": Limits(
        image_auroc=0.005, pixel_auroc=0.005, spearman=0.99, false_rejects=0.05, score_error=0.05, map_place=0.05
    ),
}
"""Defaults by precision."""


def failures(gate: Gate, limits: Limits) -> list[str]:
    """Return what is outside the limits, a phrase each; empty when the gate is passed."""
    # Written as `not a <= b`, never `a > b`: NaN must fail. None is undefined, and fails nothing.
    labels = f"{gate.labelled} labelled images" if gate.labelled else f"{gate.images} normal images alone"
    phrases = []
    for name, change, limit in (
        ("image AUROC", gate.image_auroc_change, limits.image_auroc),
        ("pixel AUROC", gate.pixel_auroc_change, limits.pixel_auroc),
    ):
        if change is not None and not abs(change) <= limit:
            phrases.append(f"{name} changes by {change:+.4f}, limit {limit:g}")
    if gate.score_spearman is not None and not gate.score_spearman >= limits.spearman:
        hint = "" if gate.labelled else ", whose scores differ little: give labelled images to judge by them"
        phrases.append(
            f"rank correlation of the scores is {gate.score_spearman:.4f}, limit {limits.spearman:g} ({labels}{hint})"
        )
    if not gate.false_reject_shift <= limits.false_rejects:
        phrases.append(
            f"{gate.false_reject_shift:.1%} of normal images score above every one of FP32, limit "
            f"{limits.false_rejects:.1%}"
        )
    if not gate.score_max_relative <= limits.score_error:
        phrases.append(
            f"the score of a normal image changes by {gate.score_max_relative:.1%}, limit {limits.score_error:.1%}"
        )
    if gate.map_place_change is not UNSET and not gate.map_place_change <= limits.map_place:
        phrases.append(
            f"maps change by {gate.map_place_change:.1%} at one place in the mean of all normal images, limit "
            f"{limits.map_place:.1%}"
        )
    return phrases


def verdict(gate: Gate, precision: str) -> str:
    """Return a sentence on the speed: a precision that is not faster on a backend should not be used there."""
    # Gains below 5 % count as none: they may be chance, and are not worth the changed scores.
    ratio = gate.images_per_second / gate.images_per_second_fp32
    if ratio >= 1.05:
        return f"{precision.upper()} takes {1 / ratio:.2f} of the time of FP32 on {gate.backend}"
    other = "keep FP16 or FP32" if precision == "int8" else "keep FP32"
    return f"{precision.upper()} is not faster than FP32 on {gate.backend} ({ratio:.2f} of its rate): {other} there"


def gate_rows(gate: Gate, precision: str) -> list[tuple[str, str, str]]:
    """Return the gate's table: figure, FP32, and the change."""

    def as_text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    name = precision.upper()
    place = None if gate.map_place_change is UNSET else gate.map_place_change
    return [
        ("image AUROC", as_text(gate.image_auroc, ".4f"), as_text(gate.image_auroc_change, "+.4f")),
        ("pixel AUROC", as_text(gate.pixel_auroc, ".4f"), as_text(gate.pixel_auroc_change, "+.4f")),
        ("rank correlation of scores", "1", as_text(gate.score_spearman, ".4f")),
        ("normal images above the largest FP32 score", "0.0%", f"{gate.false_reject_shift:+.1%}"),
        ("score of a normal image, largest change", "-", f"{gate.score_max_relative:.2%}"),
        ("map value, largest change", "-", f"{gate.map_max_relative:.2%}"),
        ("map at one place, mean change", "-", as_text(place, ".2%")),
        ("images per second", f"{gate.images_per_second_fp32:.1f}", f"{gate.images_per_second:.1f} ({name})"),
    ]
