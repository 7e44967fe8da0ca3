"""Views of a fitting image, turned and mirrored, that fill a memory bank beside the image itself.

A bank of few images knows few poses of a part; turned copies teach it the others without a further image (AnomalyDINO,
arXiv:2405.14529, turns every image by multiples of 45 degrees). Only the bank sees them: thresholds and inspection are
of images as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from flawscope.arrays import UInt8Array

Views = Literal["none", "flips", "quarters", "rotations", "both"]


@dataclass(frozen=True)
class View:
    """One way to look at a prepared image.

    Attributes:
        name: What progress calls it.
        make: Prepared images uint8 [N, H, W, 3] -> the same images seen so, of the same shape.
    """

    name: str
    make: Callable[[UInt8Array], UInt8Array]


def fitting_views(kind: Views) -> tuple[View, ...]:
    """Return the views of a setting, the image as it is first.

    `flips` are the 4 of mirroring left and right, up and down, and both; `quarters` 4 turns by 90 degrees, `rotations`
    8 by 45 degrees; `both` the 8 rotations, each also mirrored.
    """
    if kind == "flips":
        return (
            View("as they are", _same),
            View("left and right mirrored", lambda images: images[:, :, ::-1]),
            View("upside down", lambda images: images[:, ::-1]),
            View("turned by 180 degrees", lambda images: images[:, ::-1, ::-1]),
        )
    steps = {"none": 1, "quarters": 4, "rotations": 8, "both": 8}[kind]
    turned = tuple(_turned(360 * step // steps) for step in range(steps))
    return turned if kind != "both" else (*turned, *map(_mirrored, turned))


def rotate(images: UInt8Array, degrees: int) -> UInt8Array:
    """Turn images uint8 [N, H, W, 3] counter-clockwise around their centre, within their frame.

    Half turns, and quarter turns of square images, move pixels without changing them. At other angles pixels are
    interpolated bilinearly, and what lay outside of the frame is the image's mirror image.
    """
    height, width = images.shape[1:3]
    if degrees % 180 == 0 or (degrees % 90 == 0 and height == width):
        return np.ascontiguousarray(np.rot90(images, degrees // 90, axes=(1, 2)))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = [
        cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        for image in images
    ]
    return np.stack(turned).astype(np.uint8, copy=False)


def _same(images: UInt8Array) -> UInt8Array:
    return images


def _turned(degrees: int) -> View:
    if degrees == 0:
        return View("as they are", _same)
    return View(f"turned by {degrees} degrees", lambda images: rotate(images, degrees))


def _mirrored(view: View) -> View:
    return View(f"{view.name}, mirrored", lambda images: view.make(images[:, :, ::-1]))
