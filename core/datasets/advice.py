"""Advice: which method, input size and tiles suit a dataset, with the reasons, from what its images are.

Nothing is trained and no score is looked at. Poses come from normal training images; the size of the defects from the
masks, of which only the thickness is used, or from the user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray
from flawscope.datasets.pose import Pose, measure_pose, thumbnail
from flawscope.datasets.samples import Dataset, Sample
from flawscope.datasets.seeded_split import in_seeded_order
from flawscope.errors import ArgumentError, ImageError
from flawscope.imaging.images import read_stored
from flawscope.imaging.part_reference import PartShifts, learn_reference
from flawscope.imaging.part_shift import SIDE, part_thumbnail, thumbnail_size
from flawscope.ranges import MAX_SIDE

_IMAGES = 24
"""Normal images that poses are measured on: 60 pairs of them, in half a second."""
_MASKS = 100
_FEW_IMAGES = 50
_PADIM_MIB = 90
"""Memory that PaDiM with its defaults takes at 256 px, factors in float16, beyond what a small PatchCore does."""
_LEAST_PX = 4.0
"""Thickness in pixels of the input that a defect should have: one cell of the finest usual stage, of stride 4."""
_SIDES = (256, 320, 384, 512)
"""Input sizes that are proposed; beyond the last one images are cut into tiles."""


class Advice(msgspec.Struct, frozen=True):
    """A proposal for one category.

    Attributes:
        method: Name of the method.
        settings: Settings that differ from the method's defaults, by their flat names.
        reasons: Why this method, a sentence each.
        pose: What was measured of the poses; None where too few images can be read.
        shifts: How far the part shifts from image to image, in their pixels; None where no shift can be told.
        defect_px: Thickness of a small defect in pixels of the image; None where it is not known.
        size_reason: Why this input size; empty where nothing is known of the defects.
    """

    method: str
    settings: dict[str, tuple[int, int]]
    reasons: tuple[str, ...]
    pose: Pose | None
    defect_px: float | None
    size_reason: str = ""
    shifts: PartShifts | None = None

    def without_size(self) -> Advice:
        """Return the proposal for an input size that was chosen otherwise."""
        return msgspec.structs.replace(self, settings={}, size_reason="")

    @property
    def all_reasons(self) -> tuple[str, ...]:
        """Why this method and this input size, a sentence each."""
        return (*self.reasons, self.size_reason) if self.size_reason else self.reasons

    @property
    def line(self) -> str:
        """The proposal as it is typed: method and settings."""
        # Without spaces and brackets, which a shell would take apart.
        values = ((name, ",".join(map(str, value))) for name, value in self.settings.items())
        return " ".join((self.method, *(f"--set {name}={value}" for name, value in values)))


def advise(dataset: Dataset, *, backbone: str = "scattering", defect_px: float | None = None) -> Advice:
    """Return the proposal for a dataset.

    Args:
        dataset: Some of its normal training images and masks are opened; those that cannot be read are passed over.
        backbone: The backbone that will be used: `scattering`, or the name of a pretrained one.
        defect_px: Thickness in pixels of the image of the smallest defect that has to be found; None measures the
            masks.

    Raises:
        ArgumentError: If `defect_px` is not a positive number.
    """
    if defect_px is not None and not 0.0 < defect_px <= MAX_SIDE:
        raise ArgumentError(f"smallest defect: expected 0 to {MAX_SIDE} pixels, got {defect_px}.")
    normal = dataset.train_good
    images = []
    for sample in in_seeded_order(normal, 0)[:_IMAGES]:
        try:
            images.append(read_stored(sample.path))
        except ImageError:  # `data inspect` and `train` name the file
            continue
    pose = measure_pose([thumbnail(image) for image in images])
    is_measured = defect_px is None
    if defect_px is None:
        defect_px = _small_defect([sample for sample in dataset.samples if sample.masks])
    reasons = []
    shifts = _shifts(images)
    method, reason = _method(pose, len(normal))
    reasons.append(reason)
    if shifts is not None and shifts.largest_px >= 1.0:
        reasons.append(
            f"The part shifts by {shifts.median_px:.1f} pixels in the middle and {shifts.largest_px:.1f} at most. "
            "PaDiM and a window of PatchCore compare place by place; a region needs that margin or --follow."
        )
    settings: dict[str, tuple[int, int]] = {}
    size_reason = ""
    if defect_px is not None and images:
        shortest = int(np.median([min(image.shape[:2]) for image in images]))
        settings, size_reason = _size(defect_px, shortest, is_measured)
    if backbone == "scattering":
        reasons.append("A pretrained backbone (--backbone resnet18 or larger) finds more than the built-in one.")
    return Advice(method, settings, tuple(reasons), pose, defect_px, size_reason, shifts)


def _shifts(images: Sequence[npt.NDArray[Any]]) -> PartShifts | None:
    """Return how far the part on images of any size shifts, in pixels of one of median size; None if none is told."""
    if not images:
        return None
    size = (int(np.median([image.shape[0] for image in images])), int(np.median([image.shape[1] for image in images])))
    small = thumbnail_size(*size)
    thumbnails = [part_thumbnail(image, small) for image in images]
    shifts = learn_reference(thumbnails, (0, 0, *small), SIDE // 4, is_first=False).shifts(size)
    return shifts if shifts.are_told else None


def _method(pose: Pose | None, images: int) -> tuple[str, str]:
    """Return the method and the reason for it."""
    if pose is None:
        return "patchcore", "PatchCore: too few images to see whether the part always lies the same way."
    if pose.kind in ("turned", "shifted"):
        share = pose.turned if pose.kind == "turned" else pose.shifted
        return "patchcore", (
            f"PatchCore, which compares with patches from anywhere: the part is {pose.kind} from image to image "
            f"(correlation {pose.alike:.2f} as they lie, {share:.2f} {pose.kind})."
        )
    as_it_lies = (
        f"each place shows much the same in all images (correlation {pose.alike:.2f})"
        if pose.kind == "fixed"
        else f"there is no pose that varies (correlation {pose.alike:.2f}, as of a texture)"
    )
    if images < _FEW_IMAGES:
        return "patchcore", (
            f"PatchCore: {images} images are few for PaDiM, which estimates a covariance at every place; {as_it_lies}."
        )
    return "padim", (
        f"PaDiM, a Gaussian at each place: {as_it_lies}. Where about {_PADIM_MIB} MiB are too many, take PatchCore."
    )


def _size(defect_px: float, shortest: int, is_measured: bool) -> tuple[dict[str, tuple[int, int]], str]:
    """Return settings of the input for defects of some thickness, and the reason.

    Args:
        defect_px: Thickness in pixels of the image.
        shortest: The shorter side of the images.
        is_measured: Whether the thickness comes from masks.
    """
    source = "nine of ten masks are thicker" if is_measured else "as asked"
    small = f"the smallest defects are {defect_px:.3g} pixels thick ({source})"
    for side in _SIDES:
        thickness = defect_px * side / shortest
        # An input larger than the image shows nothing more.
        if thickness >= _LEAST_PX or side >= shortest:
            settings = {} if side == _SIDES[0] else {"resize": (side, side)}
            blurred = "" if thickness >= _LEAST_PX else ", which is little: a closer camera would show more"
            return settings, f"Input {side}x{side}: {small}, {thickness:.1f} of the input{blurred}."
    # Below this a tile would be enlarged.
    tile = max(_SIDES[0], int(_SIDES[0] * defect_px / _LEAST_PX))
    count = math.ceil(shortest / (0.75 * tile)) ** 2
    return {"tile": (tile, tile)}, (
        f"Tiles of {tile}x{tile} pixels: {small}, only {defect_px * _SIDES[-1] / shortest:.1f} of an input of "
        f"{_SIDES[-1]}x{_SIDES[-1]}. About {count} tiles an image, each of which costs an inference."
    )


def _small_defect(samples: Sequence[Sample]) -> float | None:
    """Return the thickness in pixels below which a tenth of the masks lie, or None without masks."""
    found = []
    for sample in in_seeded_order(samples, 0)[:_MASKS]:
        try:
            mask = sample.read_mask()
        except ImageError:  # `data inspect` names the file
            continue
        if mask is not None and mask.any():
            found.append(_thickness(mask))
    return float(np.quantile(found, 0.1)) if found else None


def _thickness(mask: BoolArray) -> float:
    """Return the diameter in pixels of the largest disc that fits into a mask: of a scratch, its width."""
    # A border of zeros: at the edge of the image a defect ends.
    padded = np.pad(mask.astype(np.uint8), 1)
    return 2.0 * float(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max()) - 1.0
