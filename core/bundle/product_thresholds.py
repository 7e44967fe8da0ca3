"""The thresholds by which a bundle decides on one product, where a detector has learned several."""

from __future__ import annotations

from pathlib import Path

from flawscope.bundle.threshold_overlay import InForce
from flawscope.bundle.threshold_structs import Thresholds
from flawscope.errors import ArgumentError


def thresholds_of_product(in_force: InForce, product: str, bundle: Path) -> Thresholds:
    """Return the thresholds of a product; never the common ones in place of its own.

    Args:
        in_force: The thresholds in force of the bundle's precision.
        product: Name of the product.
        bundle: Path of the bundle, for messages.

    Raises:
        ArgumentError: If the bundle has none for this product, or a threshold overlay is in force.
    """
    if in_force.is_set:
        raise ArgumentError(
            f"{bundle}: expected the bundle's own thresholds with a product, since set_thresholds sets the common "
            f"ones, got those {in_force.source}. Leave the product out, or load the bundle once more."
        )
    if in_force.revision:
        raise ArgumentError(
            f"{bundle}: expected no threshold overlay with a product, since overlays are for the common thresholds, "
            f"got {in_force.source}. Leave the product or the overlay out."
        )
    products = () if in_force.thresholds is None else in_force.thresholds.by_product
    own = next((row for row in products if row.name == product), None)
    if own is None:
        has = ", ".join(row.name for row in products if row.image is not None) or "none"
        raise ArgumentError(
            f"{bundle}: expected a product that the bundle has thresholds of ({has}), got {product!r}. Set them with "
            "flawscope calibrate --category all --by-product."
        )
    if own.image is None or own.pixel is None:
        raise ArgumentError(
            f"{bundle}: expected a product with enough normal images for thresholds of its own, got {product!r}, of "
            f"which there were {own.images}. Calibrate with more, or leave the product out: then the common "
            "thresholds hold."
        )
    return Thresholds(own.image, own.pixel)
