"""Support sets without a record: folders of images and masks as AnoGen ships them.

    DIR/CATEGORY/DEFECT/STEM.png and DIR/CATEGORY/DEFECT_mask/STEM_mask.png, or
    DIR/DEFECT/STEM.png and DIR/DEFECT_mask/STEM_mask.png, where DIR is called as the category

This is the layout of AnoGen's `images/train_images`, and of a folder of `synth support` whose record was lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from flawscope.datasets.defects.file_names import check_name
from flawscope.datasets.folders import contents
from flawscope.errors import DataError

_MASKS = "_mask"


class BareImage(NamedTuple):
    """One image of a support set without a record.

    Attributes:
        category: Name of the category.
        defect: Defect type.
        picture: Path of the image below the folder.
        mask: Path of its mask below the folder.
    """

    category: str
    defect: str
    picture: str
    mask: str


def find_bare_support(folder: Path) -> list[BareImage]:
    """Return the images of a folder in the layout above, in the order of their names; none if it has another one.

    Raises:
        DataError: If an image has no mask, or a folder cannot be listed.
    """
    if not folder.is_dir():
        return []
    found = [(folder.resolve().name, folder, images) for images in _defects(folder)]
    if not found:
        categories = contents(folder).folders
        found = [(category.name, category, images) for category in categories for images in _defects(category)]
    images = []
    for category, place, defect in found:
        check_name(category, f"{folder}: category")
        check_name(defect.name, f"{folder}: defect type")
        for image in contents(defect).images:
            mask = place / f"{defect.name}{_MASKS}" / f"{image.stem}{_MASKS}.png"
            if not mask.is_file():
                raise DataError(f"{image}: expected its mask {mask}, got none. Add it, or take the image out.")
            picture, drawn = (path.relative_to(folder).as_posix() for path in (image, mask))
            images.append(BareImage(category, defect.name, picture, drawn))
    return images


def _defects(place: Path) -> list[Path]:
    """Return the folders of images that have a folder of masks beside them."""
    folders = {path.name: path for path in contents(place).folders}
    return [path for name, path in folders.items() if f"{name}{_MASKS}" in folders]
