"""The pictures that defects are learned from: a support set read back, cut out as a model sees them, and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets.record_paths import place_below
from flawscope.diffusion.location_words import location_of
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.boxes import boxes_of
from flawscope.imaging.crops import Crop, crop_around, cut_image, cut_mask
from flawscope.imaging.images import Preprocessing, prepare, read_image, read_mask
from flawscope.training.synthesis.prompt_templates import defect_sentences

SUPPORT_RECORD = "support.json"

_Kind = TypeVar("_Kind")
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class _Entry(msgspec.Struct, frozen=True):
    """What is read of a picture's entry in `support.json`; the other fields are of no use here."""

    category: _Text
    defect: _Text
    source: _Text
    content: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    picture: _Text
    mask: _Text


class _Record(msgspec.Struct, frozen=True):
    pictures: Annotated[tuple[_Entry, ...], msgspec.Meta(min_length=1)]
    schema: Literal[1]


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line of `synth describe`."""

    fault: _Text
    mask: _Text
    text: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1)]
    defect: _Text


@dataclass(frozen=True, eq=False)
class SupportPicture:
    """A defective picture with its mask.

    Attributes:
        category: Name of the category.
        defect: Defect type, without the category.
        name: Name of the picture, without an ending.
        source: The original picture, below the dataset's root.
        sha256: SHA-256 of the original picture's bytes.
        picture: The file it was read from.
        mask_file: The file that its mask was read from.
        image: uint8 [H, W, 3] RGB.
        mask: bool [H, W], true at the defect; somewhere it is.
    """

    category: str
    defect: str
    name: str
    source: str
    sha256: str
    picture: Path
    mask_file: Path
    image: UInt8Array
    mask: BoolArray

    @property
    def type(self) -> str:
        """CATEGORY/DEFECT."""
        return f"{self.category}/{self.defect}"

    def cut(
        self, size: tuple[int, int], fill: float | None, box: BoolArray | None = None
    ) -> tuple[UInt8Array, BoolArray]:
        """Return picture and mask as a model sees them, uint8 [*size, 3] and bool [*size].

        Args:
            size: Height and width in pixels of the model's pictures.
            fill: Largest share of the window's sides that the mask takes (see `flawscope.imaging.crops`), or None for the whole
                picture.
            box: What is cut around, and cut, instead of the mask, bool [H, W].
        """
        mask = self.mask if box is None else box
        if fill is None:
            whole = Crop(0, 0, self.image.shape[0], self.image.shape[1], size)
            return prepare(self.image, Preprocessing(resize=size)), cut_mask(mask, whole)
        crop = crop_around(mask, size, fill=fill)
        return cut_image(self.image, crop), cut_mask(mask, crop)


@dataclass(frozen=True)
class SupportSet:
    """A support set, or some defect types of it.

    Attributes:
        path: Its folder.
        pictures: In the order of its record.
    """

    path: Path
    pictures: tuple[SupportPicture, ...]

    @property
    def types(self) -> tuple[tuple[str, str], ...]:
        """Category and name of every defect type, in the order of the pictures."""
        return tuple(dict.fromkeys((one.category, one.defect) for one in self.pictures))

    def of(self, category: str, defect: str) -> tuple[SupportPicture, ...]:
        """Return the pictures of a defect type."""
        return tuple(one for one in self.pictures if (one.category, one.defect) == (category, defect))


def read_support_set(folder: Path, defects: Sequence[str] = ()) -> SupportSet:
    """Read a folder of `synth support`.

    Args:
        folder: The folder.
        defects: Defect types to take, as DEFECT or CATEGORY/DEFECT; none for all.

    Raises:
        ArgumentError: If a defect type is not in it.
        DataError: If the folder is no support set, its record names a file outside the folder or twice, a file is
            missing or broken, or a mask is empty or of another size than its picture.
    """
    path = folder / SUPPORT_RECORD
    record = _decoded(_bytes(path, "the record of a support set", "flawscope synth support"), _Record, str(path))
    _check_record(folder, path, record)
    known = tuple(dict.fromkeys(f"{entry.category}/{entry.defect}" for entry in record.pictures))
    for defect in defects:
        if not any(_is_called(name, defect) for name in known):
            raise ArgumentError(f"defects: expected some of {', '.join(known)} ({path}), got {defect!r}.")
    chosen = [
        entry
        for entry in record.pictures
        if not defects or any(_is_called(f"{entry.category}/{entry.defect}", defect) for defect in defects)
    ]
    return SupportSet(folder, tuple(_read(folder, entry) for entry in chosen))


def _is_called(name: str, wanted: str) -> bool:
    return wanted in (name, name.partition("/")[2])


def _check_record(folder: Path, path: Path, record: _Record) -> None:
    seen: set[tuple[str, str, str]] = set()
    for entry in record.pictures:
        for name in (entry.category, entry.defect):
            # They become folders of a run and names of tensors.
            if name != Path(name).name or name.startswith(".") or "\\" in name or not name.isprintable():
                raise DataError(f"{path}: expected names that a folder can have, got {name!r}. Mend the file.")
        for place in (entry.picture, entry.mask):
            place_below(folder, place, str(path))
        key = (entry.category, entry.defect, Path(entry.picture).stem)
        if key in seen:
            raise DataError(f"{path}: expected every picture once, got {entry.picture} twice. Mend the file.")
        seen.add(key)


def _read(folder: Path, entry: _Entry) -> SupportPicture:
    picture, mask_file = folder / entry.picture, folder / entry.mask
    image, mask = read_image(picture), read_mask(mask_file)
    _check_mask(mask, mask_file, image, picture)
    return SupportPicture(
        category=entry.category,
        defect=entry.defect,
        name=picture.stem,
        source=entry.source,
        sha256=entry.content,
        picture=picture,
        mask_file=mask_file,
        image=image,
        mask=mask,
    )


def _check_mask(mask: BoolArray, path: Path, image: UInt8Array, picture: Path) -> None:
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        raise DataError(
            f"{path}: expected a mask of {width}x{height} pixels as {picture.name} has, got "
            f"{mask.shape[1]}x{mask.shape[0]}. Make the folder again."
        )
    if not mask.any():
        raise DataError(f"{path}: expected white pixels, got a mask without any. Make the folder again.")


# ---- Boxes and sentences ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Described:
    """Where a defect is and what it looks like.

    Attributes:
        box: Rectangle that holds the defect with a margin, bool [H, W].
        texts: Sentences of the same meaning.
    """

    box: BoolArray
    texts: tuple[str, ...]


def describe(support: SupportSet, descriptions: Path | None = None) -> tuple[Described, ...]:
    """Return a box and sentences for every picture of a support set, in its order.

    Args:
        support: The support set.
        descriptions: Folder of `synth describe`, made from the same support set; None takes the box of the mask with a
            margin, and built-in sentences.

    Raises:
        DataError: If the folder has no line for a picture, a line cannot be read or names a file outside the folder, or
            a box is of another size than its picture or does not hold the defect.
    """
    if descriptions is None:
        return tuple(_built_in(one) for one in support.pictures)
    lines: dict[tuple[str, str, str], _Line] = {}
    for category in dict.fromkeys(one.category for one in support.pictures):
        path = descriptions / category / f"{category}_train.jsonl"
        data = _bytes(path, "descriptions", f"flawscope synth describe --support {support.path}")
        for number, text in enumerate(data.splitlines(), 1):
            if text.strip():
                line = _decoded(text, _Line, f"{path}:{number}")
                place_below(descriptions, line.mask, f"{path}:{number}")
                lines[category, line.defect, line.fault] = line
    return tuple(
        _of_line(one, lines.get((one.category, one.defect, one.source)), descriptions, support)
        for one in support.pictures
    )


def _of_line(one: SupportPicture, line: _Line | None, folder: Path, support: SupportSet) -> Described:
    if line is None:
        raise DataError(
            f"{folder}: expected a line for the support picture {one.source} ({one.type}), got none. Make the "
            f"descriptions with flawscope synth describe --support {support.path}."
        )
    path = folder / line.mask
    box = read_mask(path)
    _check_mask(box, path, one.image, one.picture)
    if (one.mask & ~box).any():
        raise DataError(
            f"{path}: expected a box that holds the defect of {one.picture}, got one that does not. Make the "
            f"descriptions with flawscope synth describe --support {support.path}."
        )
    return Described(box, line.text)


def _built_in(one: SupportPicture) -> Described:
    size = one.image.shape[:2]
    (box,) = boxes_of(one.mask)
    return Described(box.to_mask(size), defect_sentences(one.category, one.defect, location_of(box, size)))


# ---- Files -----------------------------------------------------------------------------------------------------------


def _bytes(path: Path, what: str, command: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise DataError(
            f"{path}: expected {what}, got: {err.strerror or err}. Make the folder with {command}."
        ) from err


def _decoded(data: bytes, kind: type[_Kind], where: str) -> _Kind:
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise DataError(f"{where}: expected what flawscope synth writes, got: {err}. Make the folder again.") from err
