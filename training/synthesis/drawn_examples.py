"""Training examples that were drawn from a support set: pasted or generated defects, with their precise masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flawscope.datasets.defects import SupportImage, read_support
from flawscope.datasets.defects.drawn_set import LINES, DrawnImage, first_of_each, read_drawn, read_learned
from flawscope.datasets.fingerprints import content_hash
from flawscope.errors import DataError
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.path_kinds import kind_of_path
from flawscope.training.synthesis.support_examples import SupportExample, SupportExamples


def with_drawn(
    support: SupportExamples, folders: Sequence[Path], number: int | None, bits: int | None = None
) -> SupportExamples:
    """Return a support set with what was drawn from it, of its defect types.

    Args:
        support: The support set.
        folders: Folders of `synth paste` or `synth generate`.
        number: Most drawn images, of every folder and defect type in turn; None for all.
        bits: Bits in use of 16-bit images; see `Preprocessing.bits`.

    Raises:
        DataError: If one is no such folder, was drawn from other images than those of the support set, has no defect of
            its types, or a file is missing or was changed.
    """
    lines: list[DrawnImage] = []
    contents = {image.content for image in read_support(support.path).pictures}
    for folder in folders:
        if not (folder / LINES).is_file():
            got = kind_of_path(folder) or "none"
            raise DataError(f"drawn: expected a folder of drawn defects with {LINES}, got {got}: {folder}.")
        # Only what the support set has is left out of a test: a drawing of another image would leak that image.
        if others := read_learned(folder) - contents:
            raise DataError(
                f"drawn: expected defects drawn from the support set {support.path}, got {folder}, which was drawn "
                f"from {len(others)} other images. Draw it from this support set."
            )
        # An empty precise mask says that nothing of the drawing can be seen: there is nothing to learn.
        found = [line for line in read_drawn(folder) if (line.category, line.defect) in support.types]
        if not found:
            types = ", ".join(f"{category}/{name}" for category, name in support.types)
            raise DataError(f"drawn: expected defects of {types}, got {folder} without any. Leave it out.")
        lines += found
    examples = [_read(line, bits) for line in first_of_each(lines, number)]
    return SupportExamples(support.path, (*support.examples, *(example for example in examples if example.mask.any())))


def drawn_identity(folders: Sequence[Path]) -> str:
    """Return what a training depends on of folders of drawn defects; empty without any."""
    if not folders:
        return ""
    digest = hashlib.sha256("".join(f"{content_hash(folder / LINES)}\n" for folder in folders).encode())
    return f"; drawn sha256:{digest.hexdigest()}"


def _read(line: DrawnImage, bits: int | None) -> SupportExample:
    image, mask = read_image(line.path, bits), read_mask(line.mask_path)
    if mask.shape != image.shape[:2]:
        raise DataError(f"{line.mask_path}: expected a mask of the size of {line.path.name}. Draw the folder again.")
    record = SupportImage(
        line.category,
        line.defect,
        "train",
        line.good,
        line.image.sha256,
        line.box,
        content_hash(line.mask_path),
        str(line.path),
        str(line.mask_path),
        int(np.count_nonzero(mask)),
    )
    return SupportExample(record, line.path, line.mask_path, image, mask, is_drawn=True)
