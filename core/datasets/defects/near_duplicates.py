"""Near-duplicate detection: whether two images probably show the same defect of the same part.

Datasets have such images: each magnetic tile was photographed under up to six exposures. Their bytes differ, so a
content hash does not find them, and a detector trained on one of them would be tested on the others.

It is a heuristic of two criteria that both have to hold: the defects overlap, and the fine structure of the images
correlates. On the magnetic tiles it finds most such pairs of blowholes and breaks, fewer of thin cracks, and confuses
some different parts with the wide defect `uneven`: check the contact sheet.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, UInt8Array

_MIN_OVERLAP = 0.3  # of the defects: intersection over union
_MIN_CORRELATION = 0.4  # of the fine structure
_MASK_SIDE, _DETAIL_SIDE = 128, 32  # pixels
_COARSE_SIGMA = 4.0  # pixels at 32; coarser structure is illumination, which exposures change


class Appearance(NamedTuple):
    """Features for the comparison: the defect's mask, bool [128, 128], and fine structure, float32 [32, 32]."""

    place: BoolArray
    detail: npt.NDArray[np.float32]


def appearance_of(image: UInt8Array, mask: BoolArray) -> Appearance:
    """Return the features of an image, uint8 [H, W, 3] RGB, and its mask, bool [H, W]."""
    size = (_MASK_SIDE, _MASK_SIDE)
    place = cv2.resize(mask.astype(np.uint8) * np.uint8(255), size, interpolation=cv2.INTER_AREA)
    # Dilated by two pixels: with slightly different framing thin defects would not overlap.
    place = cv2.dilate((place > 0).astype(np.uint8), np.ones((5, 5), np.uint8))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (_DETAIL_SIDE, _DETAIL_SIDE), interpolation=cv2.INTER_AREA)
    detail = small - cv2.GaussianBlur(small, (0, 0), _COARSE_SIGMA)
    detail = (detail - detail.mean()) / (np.linalg.norm(detail - detail.mean()) + np.float32(1e-6))
    return Appearance(np.asarray(place > 0), np.asarray(detail, np.float32))


def is_near_duplicate(first: Appearance, second: Appearance) -> bool:
    """Return whether two images of one defect type probably show the same part."""
    union = np.count_nonzero(first.place | second.place)
    overlap = np.count_nonzero(first.place & second.place) / union if union else 0.0
    return overlap > _MIN_OVERLAP and float((first.detail * second.detail).sum()) > _MIN_CORRELATION
