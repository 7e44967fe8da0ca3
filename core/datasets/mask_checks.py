"""What is wrong with the masks of one image, or was understood otherwise than as grey levels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flawscope.datasets.problems import Problem
from flawscope.datasets.samples import Sample, union_of
from flawscope.errors import ImageError
from flawscope.imaging.masks import MaskReading, decode_alpha, looks_inverted


def mask_problems(sample: Sample, size: tuple[int, int]) -> Iterator[Problem]:
    """Yield a problem for everything about a sample's masks that changes figures, and how they were understood.

    Args:
        sample: A sample with a mask.
        size: Height and width of its image.
    """
    try:
        readings = sample.read_masks()
    except ImageError as err:
        yield _unreadable(sample, err)
        return
    for path, reading in zip(sample.masks, readings, strict=True):
        yield from _problems_of_one(path, reading, size)
    if len(readings) > 1:
        text = f"is one of {len(readings)} masks of {sample.path.name}, which were joined"
        yield Problem("several_masks", sample.masks[0], text, "note")
        try:
            union_of(sample.masks, readings)
        except ImageError as err:
            yield _unreadable(sample, err)


def _unreadable(sample: Sample, err: ImageError) -> Problem:
    broken = next((path for path in sample.masks if str(err).startswith(f"{path}: ")), sample.masks[0])
    return Problem("unreadable_mask", broken, str(err).removeprefix(f"{broken}: "))


def _problems_of_one(path: Path, reading: MaskReading, size: tuple[int, int]) -> Iterator[Problem]:
    defect = reading.defect
    # Reported here, because later both are resized to one size and the shift would go unseen.
    if defect.shape != size:
        got, want = (f"{width}x{height}" for height, width in (defect.shape, size))
        yield Problem("mask_size", path, f"is {got} pixels, while its image is {want}")
    if not defect.any():
        hint = f" (largest value {reading.largest}; a defect is above half of full scale)" if reading.largest else ""
        yield Problem("empty_mask", path, f"shows no defect{hint}")
    if looks_inverted(defect):
        share = f"{defect.mean():.1%} of it is defect, nearly the whole border included"
        yield Problem("inverted_mask", path, f"looks inverted: {share}. The defect has to be light, or not 0")
    if reading.classes:
        text = f"was taken as class numbers ({_listed(reading.classes)}): every value but 0 is a defect"
        yield Problem("mask_of_classes", path, text, "note")
    if reading.is_from_alpha:
        text = "was taken from the alpha channel: the colours are all the same"
        yield Problem("mask_in_alpha", path, text, "note")
    if reading.faint:
        text = f"has areas of the values {_listed(reading.faint)}, which are below half of full scale and no defect"
        yield Problem("faint_mask", path, text, "note")


def alpha_problem(sample: Sample, data: bytes) -> Problem | None:
    """Return a problem if an anomalous image without a mask has alpha that may be its mask, which is not read."""
    alpha = decode_alpha(data)
    if alpha is None or len(np.unique(alpha)) != 2:
        return None
    text = "has alpha with two values, which is left out: if it is the mask of the defect, save it as a mask file"
    return Problem("mask_in_alpha_of_image", sample.path, text)


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
