"""Training examples from a support set: images and masks as pixels, crops, boxes and sentences.

The records of support sets and descriptions are read by `flawscope.datasets.defects`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets.defects import Description, SupportImage, read_descriptions, read_support
from flawscope.diffusion.location_words import located, location_of, without_location
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.boxes import boxes_of
from flawscope.imaging.crops import Crop, crop_around, cut_image, cut_mask
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.imaging.masks import read_mask
from flawscope.training.synthesis.prompt_templates import defect_sentences


@dataclass(frozen=True, eq=False)
class SupportExample:
    """An anomalous image of a support set with its mask, as pixels.

    Attributes:
        record: Its entry in the record of the support set.
        image_file: File of the image.
        mask_file: File of the mask.
        image: uint8 [H, W, 3] RGB.
        mask: bool [H, W], true at the defect; not empty.
        is_drawn: Whether it is no support image, but was drawn from them; its record is of the drawing then.
    """

    record: SupportImage
    image_file: Path
    mask_file: Path
    image: UInt8Array
    mask: BoolArray
    is_drawn: bool = False

    @property
    def category(self) -> str:
        """Name of the category."""
        return self.record.category

    @property
    def defect(self) -> str:
        """Defect type, without the category."""
        return self.record.defect

    @property
    def name(self) -> str:
        """File name of the image, without its suffix."""
        return self.image_file.stem

    @property
    def type(self) -> str:
        """CATEGORY/DEFECT."""
        return f"{self.category}/{self.defect}"

    def cut(
        self, size: tuple[int, int], fill: float | None, box: BoolArray | None = None
    ) -> tuple[UInt8Array, BoolArray]:
        """Return image and mask as a model sees them, uint8 [*size, 3] and bool [*size].

        Args:
            size: Height and width in pixels of the model's images.
            fill: Largest share of the crop's sides that the mask takes (see `flawscope.imaging.crops`), or None for
                the whole image.
            box: Used instead of the mask, bool [H, W].
        """
        mask = self.mask if box is None else box
        crop = self._window(size, fill, mask)
        image = prepare(self.image, Preprocessing(resize=size)) if fill is None else cut_image(self.image, crop)
        return image, cut_mask(mask, crop)

    def cut_both(
        self, size: tuple[int, int], fill: float | None, box: BoolArray
    ) -> tuple[UInt8Array, BoolArray, BoolArray]:
        """Return image and box as `cut` does, and the mask of the defect in the same window, bool [*size]."""
        image, cut_box = self.cut(size, fill, box)
        crop = self._window(size, fill, box)
        return image, cut_box, cut_mask(self.mask, crop)

    def _window(self, size: tuple[int, int], fill: float | None, mask: BoolArray) -> Crop:
        if fill is None:
            return Crop(0, 0, self.image.shape[0], self.image.shape[1], size)
        return crop_around(mask, size, fill=fill)


@dataclass(frozen=True)
class SupportExamples:
    """The examples of a support set, or of some defect types of it.

    Attributes:
        path: Folder of the support set.
        examples: The examples, in the order of its record; what was drawn from them follows.
    """

    path: Path
    examples: tuple[SupportExample, ...]

    @property
    def real(self) -> tuple[SupportExample, ...]:
        """The support images, without what was drawn from them."""
        return tuple(example for example in self.examples if not example.is_drawn)

    @property
    def types(self) -> tuple[tuple[str, str], ...]:
        """Category and name of every defect type, in the order of the examples."""
        # A dict and not a set: embeddings are trained, and stored, in this order.
        return tuple(dict.fromkeys((example.category, example.defect) for example in self.examples))

    def shots(self, category: str, defect: str) -> int:
        """Return the number of support images of a defect type."""
        return sum((example.category, example.defect) == (category, defect) for example in self.real)

    def of(self, category: str, defect: str) -> tuple[SupportExample, ...]:
        """Return the examples of a defect type."""
        return tuple(example for example in self.examples if (example.category, example.defect) == (category, defect))


def read_support_examples(folder: Path, defects: Sequence[str] = (), bits: int | None = None) -> SupportExamples:
    """Read a folder of `synth support` with its pixels.

    Args:
        folder: The folder.
        defects: Defect types to read, as DEFECT or CATEGORY/DEFECT; empty for all.
        bits: Bits in use of 16-bit images; see `Preprocessing.bits`.

    Raises:
        ArgumentError: If a defect type is not in it.
        DataError: If the folder is no support set (see `read_support`), a file is missing or broken, or a mask is empty
            or of another size than its image.
    """
    records = read_support(folder).pictures
    present = tuple(dict.fromkeys(f"{record.category}/{record.defect}" for record in records))
    for defect in defects:
        if not any(_is_called(name, defect) for name in present):
            raise ArgumentError(f"defects: expected some of {', '.join(present)} ({folder}), got {defect!r}.")
    chosen = [
        record
        for record in records
        if not defects or any(_is_called(f"{record.category}/{record.defect}", defect) for defect in defects)
    ]
    return SupportExamples(folder, tuple(_read(folder, record, bits) for record in chosen))


def _is_called(name: str, defect: str) -> bool:
    """Return whether a defect type CATEGORY/DEFECT is meant by `defect`, with or without its category."""
    return defect in (name, name.partition("/")[2])


def _read(folder: Path, record: SupportImage, bits: int | None) -> SupportExample:
    image_file, mask_file = folder / record.picture, folder / record.mask
    image, mask = read_image(image_file, bits), read_mask(mask_file)
    _check_mask(mask, mask_file, image, image_file)
    return SupportExample(record, image_file, mask_file, image, mask)


def _check_mask(mask: BoolArray, path: Path, image: UInt8Array, image_file: Path) -> None:
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        raise DataError(
            f"{path}: expected a mask of {width}x{height} pixels as {image_file.name} has, got "
            f"{mask.shape[1]}x{mask.shape[0]}. Make the folder again."
        )
    if not mask.any():
        raise DataError(f"{path}: expected white pixels, got a mask without any. Make the folder again.")


# ---- Boxes and sentences ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Described:
    """Box and sentences of a defect.

    Attributes:
        box: Rectangle around the defect with a margin, bool [H, W].
        texts: Sentences of the same meaning.
    """

    box: BoolArray
    texts: tuple[str, ...]


def describe(support: SupportExamples, descriptions: Path | None = None) -> tuple[Described, ...]:
    """Return a box and sentences for every example of a support set, in its order.

    Args:
        support: The examples.
        descriptions: Folder of `synth describe`, made from the same support set; None for the box of the mask with a
            margin, and built-in sentences.

    Raises:
        DataError: If the folder has no line for an example, a line is broken (see `read_descriptions`), or a box is of
            another size than its image or does not contain the defect.
    """
    if descriptions is None:
        return tuple(_built_in(example) for example in support.examples)
    lines = {
        (category, line.defect, line.fault): line
        for category in dict.fromkeys(example.category for example in support.examples)
        for line in read_descriptions(descriptions, category)
    }
    described = [
        _of_line(example, lines.get((example.category, example.defect, example.record.source)), descriptions, support)
        for example in support.real
    ]
    # A drawing has no line: it is described as the first support image of its type, at its own place.
    texts = {
        (example.category, example.defect): description.texts
        for example, description in reversed(list(zip(support.real, described, strict=True)))
    }
    drawn = (example for example in support.examples if example.is_drawn)
    return (*described, *(_like(example, texts[example.category, example.defect]) for example in drawn))


def _of_line(example: SupportExample, line: Description | None, folder: Path, support: SupportExamples) -> Described:
    if line is None:
        raise DataError(
            f"{folder}: expected a line for the support image {example.record.source} ({example.type}), got none. "
            f"Make the descriptions with flawscope synth describe --support {support.path}."
        )
    path = folder / line.mask
    box = read_mask(path)
    _check_mask(box, path, example.image, example.image_file)
    # Pixels of the defect outside the box would be shown to the network as normal surroundings.
    if (example.mask & ~box).any():
        raise DataError(
            f"{path}: expected a box that contains the defect of {example.image_file}, got one that does not. Make the "
            f"descriptions with flawscope synth describe --support {support.path}."
        )
    return Described(box, line.text)


def _like(example: SupportExample, texts: Sequence[str]) -> Described:
    size = example.image.shape[:2]
    (box,) = boxes_of(example.mask)
    place = location_of(box, size)
    return Described(box.to_mask(size), tuple(located(without_location(text), place) for text in texts))


def _built_in(example: SupportExample) -> Described:
    size = example.image.shape[:2]
    (box,) = boxes_of(example.mask)
    return Described(box.to_mask(size), defect_sentences(example.category, example.defect, location_of(box, size)))
