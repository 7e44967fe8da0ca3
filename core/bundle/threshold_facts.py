"""What `bundle info` says of thresholds."""

from __future__ import annotations

from flawscope.bundle.threshold_structs import ProductThresholds, Threshold, ThresholdLimits, Thresholds


def thresholds_facts(thresholds: Thresholds) -> list[tuple[str, str]]:
    """Return a label and a text for each threshold of a bundle."""
    if thresholds.of_zones:
        return [
            ("image", _threshold(thresholds.image, "all zones together")),
            *(
                (f"zone {zone.name}", f"image {_of_zone(zone.image)}, pixel {_of_zone(zone.pixel)}")
                for zone in thresholds.of_zones
            ),
        ]
    return [
        ("image", _threshold(thresholds.image)),
        ("pixel", _threshold(thresholds.pixel)),
        ("limits", _limits(thresholds.limits)),
        *((f"product {row.name}", _of_product(row)) for row in thresholds.by_product),
    ]


def _of_product(row: ProductThresholds) -> str:
    if row.image is None or row.pixel is None:
        return f"no thresholds: too few normal images, {row.images}"
    return f"image {_threshold(row.image)}, pixel {row.pixel.value:.6g}"


def _of_zone(threshold: Threshold) -> str:
    return f"{threshold.value:.6g} ({threshold.method})"


def _limits(limits: ThresholdLimits | None) -> str:
    if limits is None:
        return "none: no threshold overlay is allowed (flawscope calibrate sets them)"
    return (
        f"a threshold overlay may set image {limits.image.low:.6g} to {limits.image.high:.6g}, pixel "
        f"{limits.pixel.low:.6g} to {limits.pixel.high:.6g}"
    )


def _threshold(threshold: Threshold, value: str | None = None) -> str:
    text = f"{f'{threshold.value:.6g}' if value is None else value} ({threshold.method}"
    if threshold.images:
        text += f" on {threshold.images} images"
    if threshold.upper_bound is not None and threshold.confidence is not None:
        about, words = ("about ", "estimated at most") if threshold.guarantee == "estimated" else ("", "at most")
        text += f", false rejects {words} {threshold.upper_bound:.2%} with {about}{threshold.confidence:.0%} confidence"
    return text + ")"
