"""The table of all images of a report: what was decided, by how much, and a preview of each.

The page counts misses and false rejects again for other thresholds. It does so with margins, which are scores minus
thresholds: an image is rejected where one of its margins is above the shift of its threshold, and at shift 0 that is
the decision that was made, without a digit lost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flawscope.calibration.evaluation.evaluate import Evaluation
from flawscope.calibration.evaluation.measurements import Measured
from flawscope.progress import Progress

_BUDGET = 1_500_000
"""Bytes of all previews together, as they stand in the file: 1,000 images then make a report below 3 MB."""
_STEPS = (
    *((480, 80), (400, 75), (320, 70), (240, 65), (200, 60), (160, 55), (128, 50)),
    *((96, 45), (96, 25), (72, 25), (48, 20)),
)
"""Longer side in pixels and quality of previews, from the best to the smallest."""
_SAMPLED = 24
"""Images that are drawn to choose the size of all."""

Draw = Callable[[int, int, int], str]
"""Row, longer side in pixels and quality -> preview as a data URI."""


@dataclass(frozen=True)
class Dial:
    """A threshold that can be moved in the page.

    Attributes:
        name: Name of its zone or product; empty for that of all images.
        value: The threshold in force; without thresholds, the one of the best F1, or else the highest score.
        low: Lowest score of its images.
        high: Highest score of its images.
    """

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ImageRow:
    """One image of the table.

    Attributes:
        row: Its row in the measurements.
        title: Where the image lies below the dataset's folder.
        kind: Its true type.
        is_anomalous: Whether it shows a defect.
        decision: What was decided; empty without thresholds.
        outcome: `correct`, `miss`, `false reject` or `fault`; empty without thresholds.
        score: By which it is ranked; None for a fault.
        margins: JSON: pairs of a dial and a margin.
        preview: Image and map as a data URI; empty where the file would grow too large.
    """

    row: int
    title: str
    kind: str
    is_anomalous: bool
    decision: str
    outcome: str
    score: float | None
    margins: str
    preview: str


@dataclass(frozen=True)
class ImageTable:
    """All images, those first that are worth a look.

    Attributes:
        rows: The images.
        dials: JSON: the thresholds that can be moved; empty text where no image was scored.
        has_thresholds: Whether thresholds are in force.
        moved_by: `zone` or `product` where each has a threshold of its own, else empty.
        without_preview: Number of images without a preview.
        begins: What the page begins at where no thresholds are in force.
    """

    rows: tuple[ImageRow, ...]
    dials: str
    has_thresholds: bool
    moved_by: str
    without_preview: int
    begins: Literal["best F1", "highest score"]


def image_table(evaluation: Evaluation, draw: Draw, progress: Progress) -> ImageTable:
    """Return the table of all images.

    Args:
        evaluation: The evaluation.
        draw: Makes previews.
        progress: Called after each preview.
    """
    measured, has_thresholds = evaluation.measured, evaluation.figures.confusion is not None
    dials, margins = dials_of(evaluation)
    outcomes = [outcome_of(measured, row) if has_thresholds else "" for row in range(len(measured.samples))]
    order = _order(measured, outcomes, margins)
    previews = make_previews(order, draw, progress)
    rows = tuple(
        ImageRow(
            row=row,
            title=evaluation.figures.per_image[row].image,
            kind=measured.samples[row].defect,
            is_anomalous=measured.samples[row].is_anomalous,
            decision=measured.outcomes[row].decision if has_thresholds else "",
            outcome=outcomes[row],
            score=float(measured.scores[row]) if measured.usable[row] else None,
            margins=json.dumps(margins[row]),
            preview=previews.get(row, ""),
        )
        for row in order
    )
    plain = [{"name": dial.name, "value": dial.value, "low": dial.low, "high": dial.high} for dial in dials]
    moved_by = "" if len(dials) == 1 and not dials[0].name else "product" if evaluation.products else "zone"
    return ImageTable(
        rows=rows,
        dials=json.dumps(plain) if plain else "",
        has_thresholds=has_thresholds,
        moved_by=moved_by if plain else "",
        without_preview=len(rows) - len(previews),
        begins="highest score" if evaluation.figures.f1_threshold is None else "best F1",
    )


def outcome_of(measured: Measured, row: int) -> str:
    """Return what a decision comes to, as the figures count it: `correct`, `miss`, `false reject` or `fault`."""
    decision, is_anomalous = measured.outcomes[row].decision, measured.samples[row].is_anomalous
    if decision == "fault":
        return "fault"
    if is_anomalous:
        return "miss" if decision == "accept" else "correct"
    return "correct" if decision == "accept" else "false reject"


def dials_of(evaluation: Evaluation) -> tuple[list[Dial], list[list[tuple[int, float]]]]:
    """Return the thresholds that can be moved, and for each image the dials that judge it, with its margins.

    An image that could not be scored has no margin. There is no dial where no image was scored.
    """
    measured, thresholds = evaluation.measured, evaluation.thresholds
    rows = range(len(measured.samples))
    pairs: list[list[tuple[str, float, float]]]  # of each image: name, score minus threshold, threshold
    if evaluation.products:
        # By product the score of the measurements is the margin already.
        pairs = [
            [(name, float(measured.scores[row]), evaluation.products[name].image.value)]
            for row, name in ((row, measured.samples[row].category) for row in rows)
        ]
    elif thresholds is not None and thresholds.of_zones:
        pairs = [
            [
                (zone.name, zone.score - zone.threshold, zone.threshold)
                for zone in measured.outcomes[row].zones
                if zone.threshold is not None
            ]
            for row in rows
        ]
    else:
        # Without any, the page begins at the threshold that does best on these images, and says so.
        best = evaluation.figures.f1_threshold
        if best is None:
            # Of one kind of image there is no F1: nothing is rejected at first.
            best = float(measured.scores[measured.usable].max(initial=-math.inf)) if measured.usable.any() else 0.0
        value = thresholds.image.value if thresholds is not None else best
        pairs = [[("", float(measured.scores[row]) - value, value)] for row in rows]
    pairs = [found if usable else [] for found, usable in zip(pairs, measured.usable, strict=True)]
    values = {name: value for found in pairs for name, _, value in found}
    names = sorted(values)
    dials = []
    for name in names:
        value = values[name]
        scores = [margin + value for found in pairs for own, margin, _ in found if own == name]
        dials.append(Dial(name, value, min(*scores, value), max(*scores, value)))
    return dials, [[(names.index(name), margin) for name, margin, _ in found] for found in pairs]


def _order(
    measured: Measured, outcomes: Sequence[str], margins: Sequence[Sequence[tuple[int, float]]]
) -> tuple[int, ...]:
    """Return the rows of images, wrong ones first and each kind by how close it was: a page without script stays so."""
    farthest = [max((margin for _, margin in found), default=0.0) for found in margins]
    place = {"miss": 0, "false reject": 1, "fault": 2}

    def key(row: int) -> tuple[int, float, int]:
        wrong = place.get(outcomes[row], 3)
        # Of wrong ones those that are farthest on the wrong side, of all others those nearest to the threshold.
        return wrong, -abs(farthest[row]) if wrong < 2 else abs(farthest[row]), row

    return tuple(sorted(range(len(measured.samples)), key=key))


def make_previews(order: Sequence[int], draw: Draw, progress: Progress, budget: int = _BUDGET) -> Mapping[int, str]:
    """Return row -> preview, as large as the budget of bytes allows; the last rows have none if even small ones do not.

    Args:
        order: Rows, the ones first that must have a preview.
        draw: Makes a preview; an empty text where there is nothing to show.
        progress: Called after each preview.
        budget: Bytes of all previews.
    """
    side, quality, drawn = _size_that_fits(order, draw, budget)
    previews, spent = {}, 0
    for done, row in enumerate(order, start=1):
        text = drawn[row] if row in drawn else draw(row, side, quality)
        spent += len(text)
        if spent > budget:
            break
        if text:
            previews[row] = text
        progress("Drawing the report", done, len(order))
    progress("Drawing the report", len(order), len(order))
    return previews


def _size_that_fits(order: Sequence[int], draw: Draw, budget: int) -> tuple[int, int, dict[int, str]]:
    """Return side, quality and first previews of the best size with which all keep to the budget, judged by some."""
    # 5% of room: the images that are drawn here are not all.
    room = 0.95 * budget / max(len(order), 1)
    some = order[:: max(len(order) // _SAMPLED, 1)]
    side, quality = _STEPS[0]
    drawn: dict[int, str] = {}
    for side, quality in _STEPS:
        drawn = {row: draw(row, side, quality) for row in some}
        if sum(map(len, drawn.values())) <= room * len(some):
            break
    return side, quality, drawn
