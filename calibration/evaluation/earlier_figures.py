"""Figures of an earlier `evaluate --json`, made on another machine or with another backend or precision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from flawscope.bundle import Manifest, model_identity
from flawscope.calibration.evaluation.figures import DatasetIdentity, ImageResult, judged_by
from flawscope.datasets import Dataset
from flawscope.errors import DataError
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.text import NOT_JSON

_LARGEST_SCORE = float(np.finfo(np.float32).max)
"""Scores are float32. Differences of any two of them, and their quotients, are finite in float64."""
_Short = Annotated[str, msgspec.Meta(max_length=200)]
"""What the bundle's evidence repeats: a longer text would fill its manifest."""
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class EarlierBundle(msgspec.Struct, frozen=True):
    """Which bundle was measured; files of before images were kept have no model."""

    name: str
    model: str = ""


class EarlierThreshold(msgspec.Struct, frozen=True):
    """A threshold that was in force."""

    value: float


class EarlierConfusion(msgspec.Struct, frozen=True):
    """The decisions, as far as they are compared: at which thresholds they were made."""

    image_threshold: EarlierThreshold
    pixel_threshold: EarlierThreshold


class EarlierZone(msgspec.Struct, frozen=True):
    """The threshold of one zone."""

    zone: str
    image_threshold: float


class EarlierProduct(msgspec.Struct, frozen=True):
    """The decisions on one product."""

    product: str
    confusion: EarlierConfusion


class EarlierFigures(msgspec.Struct, frozen=True):
    """What is compared of the figures of `evaluate --json`; all else in the file is passed over.

    Attributes:
        per_image: The images; None in files of before they were kept.
        product: The product whose thresholds were taken; empty for the common ones.
        products: One entry for each product, where images were judged by theirs.
        zones: One entry for each zone, of a bundle with zones.
    """

    # Not `Figures`: a file of another version of flawscope has other fields beside these.
    bundle: EarlierBundle
    dataset: DatasetIdentity
    backend: _Short
    path: _Short
    precision: _Short
    when: _Short
    confusion: EarlierConfusion | None = None
    per_image: tuple[ImageResult, ...] | None = None
    pixel_auroc: _Share | None = None
    pixel_ap: _Share | None = None
    aupro: _Share | None = None
    aupro_05: _Share | None = None
    pixel_f1: _Share | None = None
    pixel_recall: _Share | None = None
    product: str = ""
    products: tuple[EarlierProduct, ...] = ()
    zones: tuple[EarlierZone, ...] = ()

    @property
    def judged(self) -> str:
        """By whose thresholds images were judged, as `Figures.judged`."""
        return judged_by(self.product or None, by_product=bool(self.products))


@dataclass(frozen=True)
class Pairs:
    """Which images of two measurements are the same.

    Attributes:
        both: Images of the one and of the other.
        only_before: Number of images of the first alone.
        only_after: Number of images of the second alone.
    """

    both: tuple[tuple[ImageResult, ImageResult], ...]
    only_before: int
    only_after: int


def read_earlier_figures(path: Path) -> EarlierFigures:
    """Read what `evaluate --json` wrote.

    Raises:
        DataError: If the file cannot be read, is none of `evaluate`, is broken, or has no single images, as those of
            older versions.
    """
    again = "Write it with flawscope evaluate BUNDLE --data DIR --json FILE on the other machine."
    try:
        data = read_regular(path, RECORD_BYTES)
        figures = msgspec.json.decode(data, type=EarlierFigures)
    except OSError as err:
        raise DataError(f"{path}: expected a file of flawscope evaluate --json, got: {err.strerror or err}.") from err
    except NOT_JSON as err:
        raise DataError(f"{path}: expected a file of flawscope evaluate --json, got: {err}. {again}") from err
    if figures.per_image is None or not figures.bundle.model:
        raise DataError(f"{path}: expected figures with single images, got those of an older flawscope. {again}")
    if not figures.per_image or not all(_is_whole(result) for result in figures.per_image):
        what = "a score too large for float32, or a decision without one" if figures.per_image else "none"
        raise DataError(f"{path}: expected images with their scores, got {what}. {again}")
    return figures


def _is_whole(result: ImageResult) -> bool:
    # A decision without a score would be an accept of something that was never measured.
    return result.decision in (None, "fault") if result.score is None else abs(result.score) <= _LARGEST_SCORE


def check_same_model(earlier: EarlierFigures, file: Path, manifest: Manifest, bundle: Path) -> None:
    """Raise DataError unless the figures are of the model of a bundle."""
    model = model_identity(manifest)
    if earlier.bundle.model != model:
        raise DataError(
            f"{file}: expected figures of the model of {bundle} ({manifest.name}, {model[:12]}…), got those of "
            f"{earlier.bundle.name} ({earlier.bundle.model[:12]}…). Measure the same bundle on both machines."
        )


def check_same_judging(earlier: EarlierFigures, file: Path, judged: str) -> None:
    """Raise DataError unless images were judged by the thresholds of the same product; `judged` as `Figures.judged`."""
    if earlier.judged != judged:
        here, there = (text or "common thresholds" for text in (judged, earlier.judged))
        raise DataError(
            f"{file}: expected figures at the same thresholds ({here}), got others ({there}). Give --product and "
            "--by-product alike on both machines."
        )


def check_same_images(earlier: EarlierFigures, file: Path, dataset: Dataset, contents: Mapping[Path, str]) -> None:
    """Raise DataError unless some of the images are test images of a dataset, and all of these are labelled alike.

    Args:
        earlier: The other figures.
        file: Where they were read.
        dataset: The dataset.
        contents: Image of the dataset -> hash of its pixels.
    """
    labels: dict[str, set[bool]] = defaultdict(set)
    for result in earlier.per_image or ():
        labels[result.content].add(result.is_anomalous)
    shared = [sample for sample in dataset.test if contents[sample.path] in labels]
    if not shared:
        raise DataError(
            f"{file}: expected figures of the test images of {dataset.root}, got those of "
            f"{len(earlier.per_image or ())} images ({earlier.dataset.category}), none of which is there. Measure the "
            "same images on both machines."
        )
    for sample in shared:
        if sample.is_anomalous not in labels[contents[sample.path]]:
            here, there = ("anomalous", "normal") if sample.is_anomalous else ("normal", "anomalous")
            raise DataError(
                f"{file}: expected images labelled as in {dataset.root}, got {sample.path.name}, which is {there} "
                f"there and {here} here. Sort the images alike on both machines."
            )


def pair_images(before: Sequence[ImageResult], after: Sequence[ImageResult], *, by_product: bool = False) -> Pairs:
    """Return which images are the same by content and label; copies of an image are paired one by one.

    A copy is paired with the one at its own place if there is one: masks, and by product thresholds, may be others.

    Args:
        before: Images of the one measurement.
        after: Those of the other.
        by_product: Images were judged by the thresholds of their product: copies in two of them are two images.
    """

    def key_of(result: ImageResult) -> tuple[str, bool, str]:
        # Of a dataset of all categories the first folder is the category, and that is the product.
        return result.content, result.is_anomalous, result.image.partition("/")[0] if by_product else ""

    waiting: dict[tuple[str, bool, str], dict[int, ImageResult]] = defaultdict(dict)
    at_place: dict[tuple[str, bool, str], dict[str, int]] = defaultdict(dict)
    for number, result in enumerate(before):
        waiting[key_of(result)][number] = result
        at_place[key_of(result)][result.image] = number
    found: dict[int, ImageResult] = {}
    for number, result in enumerate(after):
        same = waiting[key_of(result)]
        # Popped, so that a file that names a place twice gives its image once.
        if (mine := same.pop(at_place[key_of(result)].get(result.image, -1), None)) is not None:
            found[number] = mine
    for number, result in enumerate(after):
        same = waiting[key_of(result)]
        if number not in found and same:
            found[number] = same.pop(next(iter(same)))
    both = tuple((found[number], result) for number, result in enumerate(after) if number in found)
    return Pairs(both, len(before) - len(both), len(after) - len(both))
