"""Thresholds as the manifest states them: their values, how they were set, their limits, and the record of changes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from flawscope.ranges import Count, Share

Guarantee = Literal["bound", "estimated"]
"""What an upper bound on false rejects is: one that holds with the stated confidence, or an estimate of it."""


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number above which (strictly) a score or a pixel is anomalous, and how it was set.

    Attributes:
        value: The threshold on the raw score or map.
        method: `order-statistic` on normal images, `f1` on labelled ones, or `manual`.
        images: Number of images it was set on.
        false_reject_rate: The requested rate, a fraction.
        confidence: One-sided confidence of `upper_bound`, a fraction.
        upper_bound: Upper confidence bound of the true false-reject rate, a fraction.
        backend: The backend that computed the scores; `torch` for cross-fitted ones.
        guarantee: `bound` where `upper_bound` is one: with images that the detector had not seen. `estimated` with
            cross-fitted scores, of fits on fewer images than the detector's: see `flawscope.cross_scores`.
    """

    value: float
    method: Literal["order-statistic", "f1", "manual"]
    images: Count = 0
    false_reject_rate: Share | None = None
    confidence: Share | None = None
    upper_bound: Share | None = None
    backend: str | None = None
    guarantee: Guarantee = "bound"

    @property
    def claim(self) -> str | None:
        """What is said of false rejects, a clause; None for thresholds without a rate."""
        if self.upper_bound is None or self.confidence is None:
            return None
        if self.guarantee == "estimated":
            return (
                f"an estimated {self.upper_bound:.2%} at most of good parts like these are rejected, with about "
                f"{self.confidence:.0%} confidence"
            )
        rate = f"{self.upper_bound:.2%} of good parts like these are rejected"
        return f"with {self.confidence:.0%} confidence at most {rate}"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The smallest and the largest value that a threshold may be given without changing the bundle."""

    low: float
    high: float


class ThresholdLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a threshold overlay: on the image score, and on the pixels of the anomaly map."""

    image: Limits
    pixel: Limits


class ZoneThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The thresholds of one zone.

    Their bounds are those of the image as a whole, all zones together: see `Thresholds.image`.

    Attributes:
        name: Name of the zone.
        image: Threshold on its score, the largest value of the anomaly map in it.
        pixel: Threshold on its pixels.
    """

    name: str
    image: Threshold
    pixel: Threshold


class ProductThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The thresholds of one product, of a detector that has learned several.

    Attributes:
        name: Name of the product: that of its category in the dataset.
        images: Its normal images that there were to set thresholds on.
        image: Threshold on the image score, with its own bound; null where there were too few images.
        pixel: Threshold on the pixels of the anomaly map; null where there were too few images.
    """

    name: Annotated[str, msgspec.Meta(min_length=1)]
    images: Count
    image: Threshold | None = None
    pixel: Threshold | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if only one of the two thresholds is there."""
        if (self.image is None) != (self.pixel is None):
            raise ValueError("expected both thresholds of a product or none, got one")


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle's own thresholds: on the image score, and on the pixels of the anomaly map.

    Attributes:
        image: Threshold on the image score. With zones it is 0, on the largest of their scores minus their thresholds,
            and its bound is that of the image as a whole.
        pixel: Threshold on the pixels of the anomaly map. With zones it is the largest of theirs, and decides nothing.
        limits: How far a threshold overlay may go; null where none is allowed.
        zones: The thresholds of the zones, in their order; not written where the bundle has none.
        products: The thresholds by product, sorted by name; not written where there are none.
        normal: Image scores of the normal images that the thresholds were set on, rising; of more than 1,000 so many,
            at equal steps of their ranks. A line compares its own with them. Not written where they say less of a
            line: with zones, by product, cross-fitted, and in bundles of before.
    """

    image: Threshold
    pixel: Threshold
    limits: ThresholdLimits | None = None
    # UNSET and not an empty default: manifests without them keep their bytes, which the digest covers.
    zones: tuple[ZoneThresholds, ...] | msgspec.UnsetType = msgspec.UNSET
    products: tuple[ProductThresholds, ...] | msgspec.UnsetType = msgspec.UNSET
    normal: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def of_zones(self) -> tuple[ZoneThresholds, ...]:
        """The thresholds of the zones; empty where the bundle has none."""
        return () if self.zones is msgspec.UNSET else self.zones

    @property
    def by_product(self) -> tuple[ProductThresholds, ...]:
        """The thresholds by product; empty where there are none."""
        return () if self.products is msgspec.UNSET else self.products

    @property
    def normal_scores(self) -> tuple[float, ...]:
        """`normal`, empty where it is unset."""
        return () if self.normal is msgspec.UNSET else self.normal


class ThresholdChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the threshold history: when, which (of which precision, zone, product), from, to, command."""

    when: str
    name: Literal["image", "pixel"]
    old: float | None
    new: float
    command: str
    precision: str = "fp32"
    zone: str | msgspec.UnsetType = msgspec.UNSET
    product: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def what(self) -> str:
        """Which threshold it is of, for messages."""
        zone = "" if self.zone is msgspec.UNSET else f" of zone {self.zone}"
        product = "" if self.product is msgspec.UNSET else f" of product {self.product}"
        return f"{self.name}{zone}{product}"
