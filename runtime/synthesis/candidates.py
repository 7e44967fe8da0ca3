"""Candidates of a record: which drawings are kept, and which of several is the best."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from flawscope.arrays import UInt8Array
from flawscope.imaging.crops import cut_image, cut_mask
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.masked_lpips import MIN_SIDE_PX, MaskedLpips
from flawscope.runtime.synthesis.quality import Verdict
from flawscope.runtime.synthesis.sites import Site
from flawscope.runtime.synthesis.synthesizer import Drawn


@dataclass(frozen=True)
class Candidate:
    """A drawing of a record, before it is known whether it is kept.

    Attributes:
        number: Number of the record.
        site: Where it was drawn.
        round: Number of the drawing of this record, from 1.
        good: The normal image, uint8 [H, W, 3].
        drawn: The drawing.
        score: By what it is compared with the other candidates, larger is better; None where there are none.
    """

    number: int
    site: Site
    round: int
    good: UInt8Array = field(repr=False)
    drawn: Drawn
    score: float | None


def is_kept(verdict: Verdict, settings: GenerateSettings) -> bool:
    """Return whether an image with this verdict is an accepted one of the run."""
    # NaN is no image of poor quality but none at all, and what stands in its place was never drawn.
    return "not-finite" not in verdict.reasons if settings.keep_all else verdict.is_accepted


def score_of(drawn: Drawn, good: UInt8Array, settings: GenerateSettings, distance: MaskedLpips | None) -> float | None:
    """Return the score of a candidate; None where a record has only one.

    Args:
        drawn: The drawing.
        good: The normal image, uint8 [H, W, 3].
        settings: Settings of the run.
        distance: Measures it by LPIPS; the margin to the filter's limits is taken without.
    """
    if settings.best_of == 1:
        return None
    if distance is None:
        return drawn.verdict.margin
    # Seen as the model saw it: a window of its own for each image, so that the score depends on nothing else.
    height, width = (max(side, MIN_SIDE_PX) for side in drawn.crop.size)
    crop = msgspec.structs.replace(drawn.crop, size=(height, width))
    return distance.measure(cut_image(drawn.image, crop), cut_image(good, crop), cut_mask(drawn.region, crop))


def is_better(new: Candidate, old: Candidate, settings: GenerateSettings) -> bool:
    """Return whether a candidate replaces an earlier one; of equal ones the first stays."""
    return _rank(new, settings) > _rank(old, settings)


def _rank(candidate: Candidate, settings: GenerateSettings) -> tuple[bool, float]:
    # What cannot be kept is never better than what can, whatever its score.
    return is_kept(candidate.drawn.verdict, settings), -1.0 if candidate.score is None else candidate.score
