"""Support sets without a record: folders of images and masks as AnoGen ships them.

    DIR/CATEGORY/DEFECT/STEM.png and DIR/CATEGORY/DEFECT_mask/STEM_mask.png, or
    DIR/DEFECT/STEM.png and DIR/DEFECT_mask/STEM_mask.png, where DIR is called as the category

This is the layout of AnoGen's `images/train_images`, and of a folder of `synth support` whose record was lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from flawscope.datasets import Dataset, content_hash
from flawscope.datasets.defects.anomalous_samples import AnomalousSample
from flawscope.datasets.defects.file_names import category_of, check_name, defect_of, place_of
from flawscope.datasets.folders import contents
from flawscope.errors import DataError
from flawscope.progress import CountProgress

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


class Copy(Protocol):
    """What is known of a support image without a record: category, path of the copy, SHA-256 of its bytes."""

    @property
    def category(self) -> str:
        """Name of the category."""

    @property
    def picture(self) -> str:
        """Path of the copy below the set's folder."""

    @property
    def content(self) -> str:
        """SHA-256 of its bytes."""


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


def check_found(dataset: Dataset, images: Sequence[Copy], contents: Collection[str]) -> None:
    """Raise DataError unless all images of the dataset's categories are in it, to be left out.

    Args:
        dataset: The dataset.
        images: Images of a support set without a record.
        contents: SHA-256 of the files in the dataset.
    """
    names = {category_of(dataset, sample) for sample in dataset.samples}
    absent = [image.picture for image in images if image.category in names and image.content not in contents]
    if absent:
        raise DataError(
            f"{dataset.root}: expected the {len(absent)} images of the support set like {absent[0]}, to leave them "
            "out, got none of their content. Name the dataset they were taken from."
        )


def find_by_content(
    dataset: Dataset, images: Sequence[Copy], progress: CountProgress | None = None
) -> list[AnomalousSample]:
    """Return the images of a dataset that have the content of those of a support set, with the dataset's masks.

    Images of categories that the dataset does not have are left out.

    Raises:
        DataError: If none is of its categories, or one is not there.
    """
    samples = [sample for sample in dataset.samples if sample.is_anomalous and sample.mask is not None]
    # By the bytes of the files, as AnoGen copies them and records have them.
    by_content = {content_hash(sample.path): sample for sample in samples}
    names = {category_of(dataset, sample) for sample in dataset.samples}
    chosen = [image for image in images if image.category in names]
    if not chosen:
        got = ", ".join(sorted({image.category for image in images}))
        raise DataError(
            f"{dataset.root}: expected a support set of {', '.join(sorted(names))}, got one of {got}. Name the "
            "folder of the category."
        )
    entries = []
    for count, image in enumerate(chosen, 1):
        sample = by_content.get(image.content)
        if sample is None:
            raise DataError(
                f"{dataset.root}: expected the support image {image.picture} with its mask, got none of its content "
                "there. Name the dataset the support set was taken from."
            )
        place = place_of(dataset, sample.path)
        entries.append(AnomalousSample(sample, category_of(dataset, sample), defect_of(sample), place))
        if progress:
            progress(count, len(chosen))
    return entries
