"""Images of a report: the galleries of those worth a look, and the previews of all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from flawscope.arrays import BoolArray, Float32Array, Float64Array, UInt8Array
from flawscope.calibration.evaluation import report_images
from flawscope.calibration.evaluation.evaluate import Evaluation
from flawscope.imaging.heat import HeatScale
from flawscope.imaging.images import read_image

_SHOWN = 6
_STEPS = ((report_images.SIDE_PX, report_images.QUALITY), (400, 70), (320, 60), (240, 50), (160, 40))
"""Longer side in pixels and quality of the images of cards, from the best to the smallest."""
_BUDGET = 700_000
"""Bytes of all cards together, as they stand in the file."""
_KEPT = 64
"""Images that are kept at the size of the report: those from which the size of the previews is chosen, and cards."""

T = TypeVar("T")


@dataclass(frozen=True)
class Card:
    """One image of the report with its map.

    Attributes:
        row: Its row in the measurements.
        title: Where the image lies below the dataset's folder.
        kind: Its true type.
        decision: What was decided.
        score: Its score.
        plain: The image as a data URI.
        heat: The image with map, outline and boxes, as a data URI.
        has_outline: Whether the true defect is drawn.
        boxes: Number of boxes drawn.
        is_wide: Whether image and map stand below each other.
    """

    row: int
    title: str
    kind: str
    decision: str
    score: float
    plain: str
    heat: str
    has_outline: bool
    boxes: int
    is_wide: bool


@dataclass(frozen=True)
class Gallery:
    """Images under one heading; `empty` is the text without images, `total` counts also those that are not shown."""

    title: str
    text: str
    empty: str
    cards: tuple[Card, ...]
    total: int


@dataclass(frozen=True)
class _Source:
    """An image at the size of the report, uint8 [H, W, 3], its mask, bool [H, W], and the size of the file's image.

    `has_defect` says whether the mask as stored has a pixel.
    """

    image: UInt8Array
    mask: BoolArray | None
    size: tuple[int, int]
    has_defect: bool


class Drawings:
    """Draws the images of an evaluation, all with one colour scale.

    Args:
        evaluation: The evaluation.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        measured, thresholds = evaluation.measured, evaluation.thresholds
        self._evaluation = evaluation
        self._sources: OrderedDict[int, _Source] = OrderedDict()
        self.scale: HeatScale = report_images.make_scale(
            measured.maps, ~measured.labels, measured.usable, thresholds.pixel.value if thresholds else None
        )

    def card(self, row: int, side: int, quality: int) -> Card:
        """Return the card of an image that was scored, `side` pixels on its longer side."""
        measured, source = self._evaluation.measured, self._source(row)
        outcome = measured.outcomes[row]
        return Card(
            row=row,
            title=self._evaluation.figures.per_image[row].image,
            kind=measured.samples[row].defect,
            decision=outcome.decision,
            score=float(measured.scores[row]),
            plain=report_images.plain(self.plain(row, side), quality),
            heat=report_images.plain(self.heat(row, side), quality),
            has_outline=source.has_defect,
            boxes=len(outcome.boxes),
            is_wide=report_images.is_wide(source.image),
        )

    def preview(self, row: int, side: int, quality: int) -> str:
        """Return an image and its map as one, a data URI; empty where the image could not be scored."""
        if not self._evaluation.measured.usable[row]:
            return ""
        return report_images.side_by_side((self.plain(row, side), self.heat(row, side)), quality)

    def plain(self, row: int, side: int) -> UInt8Array:
        """Return an image, uint8 [H, W, 3], `side` pixels on its longer side."""
        return report_images.fit(self._source(row).image, side)

    def heat(self, row: int, side: int) -> UInt8Array:
        """Return the same with its map, the outline of the true defect and boxes."""
        measured, source = self._evaluation.measured, self._source(row)
        outcome, heat = measured.outcomes[row], measured.maps[row]
        return report_images.overlay(
            self.plain(row, side),
            self._moved(row, heat),
            self._evaluation.manifest.input.stretched,
            self.scale,
            source.mask,
            outcome.boxes,
            source.size,
        )

    def _moved(self, row: int, heat: Float32Array) -> Float32Array:
        measured, middle = self._evaluation.measured, self.scale.middle
        if measured.pixel_thresholds is None and measured.outcomes[row].pixel_threshold is None:
            return heat
        # Moved so that the threshold of each zone or product is where the colour changes.
        return np.asarray(heat - np.float32(measured.pixel_threshold(row, middle)) + np.float32(middle), np.float32)

    def _source(self, row: int) -> _Source:
        """Return an image that was read before, or read it: files are large, and a few are drawn more than once."""
        if (source := self._sources.get(row)) is None:
            sample = self._evaluation.measured.samples[row]
            image = read_image(sample.path, self._evaluation.manifest.input.bits)
            mask = sample.read_mask() if sample.is_anomalous else None
            small = report_images.fit(image)
            source = _Source(
                small,
                None if mask is None else report_images.fit_mask(mask, small),
                (image.shape[0], image.shape[1]),
                mask is not None and bool(mask.any()),
            )
            self._sources[row] = source
            if len(self._sources) > _KEPT:
                self._sources.popitem(last=False)
        return source


@dataclass(frozen=True)
class _Wanted:
    """A gallery before its images are drawn."""

    title: str
    text: str
    empty: str
    rows: Sequence[int]


def galleries(evaluation: Evaluation, drawings: Drawings) -> list[Gallery]:
    """Return the images that are worth a look, the worst first."""
    wanted = _wanted(evaluation)
    # Cut before the cards are made: each reads its image, and its data URIs are weight of the file.
    rows = [row for gallery in wanted for row in gallery.rows[:_SHOWN]]
    cards = iter(
        within_budget(
            lambda side, quality: [drawings.card(row, side, quality) for row in rows],
            lambda card: len(card.plain) + len(card.heat),
        )
    )
    return [
        Gallery(each.title, each.text, each.empty, tuple(islice(cards, len(each.rows[:_SHOWN]))), len(each.rows))
        for each in wanted
    ]


def within_budget(draw: Callable[[int, int], list[T]], weigh: Callable[[T], int]) -> list[T]:
    """Return what `draw` makes with the largest side and best quality that keep to the budget of bytes.

    Args:
        draw: Longer side in pixels and quality -> cards.
        weigh: Card -> its bytes.
    """
    cards: list[T] = []
    for side, quality in _STEPS:
        cards = draw(side, quality)
        if sum(map(weigh, cards)) <= _BUDGET:
            break
    return cards


def _wanted(evaluation: Evaluation) -> list[_Wanted]:
    measured = evaluation.measured
    usable = np.flatnonzero(measured.usable)
    good = [int(row) for row in usable if not measured.labels[row]]
    defective = [int(row) for row in usable if measured.labels[row]]
    scores = measured.scores
    if not (good or defective):
        return []
    # Without thresholds nothing was missed or rejected: the galleries show which images would be first.
    if evaluation.figures.confusion is None:
        highest = _Wanted(
            "Highest normal",
            "Good parts with the highest scores: the first false rejects.",
            "",
            sorted(good, key=lambda row: -scores[row]),
        )
        lowest = _Wanted(
            "Lowest anomalous",
            "Defective parts with the lowest scores: the first misses.",
            "",
            sorted(defective, key=lambda row: scores[row]),
        )
        return [each for each in (highest, lowest) if each.rows]
    decision = [outcome.decision for outcome in measured.outcomes]
    misses = _Wanted(
        "Worst misses",
        "Defective parts that were accepted, lowest score first.",
        "No defective part was accepted.",
        sorted((row for row in defective if decision[row] == "accept"), key=lambda row: scores[row]),
    )
    false_rejects = _Wanted(
        "Worst false rejects",
        "Good parts that were rejected, highest score first.",
        "No good part was rejected.",
        sorted((row for row in good if decision[row] == "reject"), key=lambda row: -scores[row]),
    )
    if not defective:
        # Without a defect to look at: which good parts would be rejected next.
        near = _Wanted(
            "Closest to a false reject",
            "Good parts that were accepted, highest score first.",
            "No good part was accepted.",
            sorted((row for row in good if decision[row] == "accept"), key=lambda row: -scores[row]),
        )
        return [false_rejects, near]
    typical = _Wanted(
        "Typical correct rejects",
        "Of each defect type, the rejected part with the middle score.",
        "No defective part was rejected.",
        _typical(evaluation, [row for row in defective if decision[row] == "reject"], scores),
    )
    return [misses, false_rejects, typical] if good else [misses, typical]


def _typical(evaluation: Evaluation, rows: Sequence[int], scores: Float64Array) -> list[int]:
    """Return the row with the median score of every type."""
    by_type: dict[str, list[int]] = {}
    for row in rows:
        by_type.setdefault(evaluation.measured.samples[row].defect, []).append(row)
    return [sorted(group, key=lambda row: scores[row])[len(group) // 2] for _, group in sorted(by_type.items())]
