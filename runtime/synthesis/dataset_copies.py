"""Files that a dataset of drawn and real images is made of: what is copied where, one after the other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from flawscope.datasets import Sample
from flawscope.errors import DataError
from flawscope.imaging.images import read_encoded, read_image
from flawscope.imaging.png import encode_mask, encode_png
from flawscope.text import name_bytes

_PNG = b"\x89PNG\r\n\x1a\n"


class DrawnCopy(msgspec.Struct, frozen=True, kw_only=True, tag="drawn"):
    """A drawn image and its mask, which are copied byte for byte.

    Attributes:
        image: The image file.
        image_sha256: SHA-256 of its bytes.
        mask: The mask file.
        mask_sha256: SHA-256 of its bytes.
        image_place: Where the image goes, below the dataset's folder.
        mask_place: Where the mask goes.
    """

    image: str
    image_sha256: str
    mask: str
    mask_sha256: str
    image_place: str
    mask_place: str

    def absolute(self) -> DrawnCopy:
        """Return the same with absolute paths, for a process in another folder."""
        return msgspec.structs.replace(self, image=absolute(self.image), mask=absolute(self.mask))

    def read(self) -> dict[str, bytes]:
        """Return the bytes of each place; raises DataError if a file cannot be read or was changed."""
        return {
            self.image_place: _unchanged(Path(self.image), self.image_sha256),
            self.mask_place: _unchanged(Path(self.mask), self.mask_sha256),
        }


class RealCopy(msgspec.Struct, frozen=True, kw_only=True, tag="real"):
    """A real image, written as PNG, byte for byte if it is one already, and its mask with the values 0 and 255.

    Attributes:
        image: The image file.
        masks: Its mask files, whose union is written.
        is_mask_indexed: As in `Sample`.
        image_place: Where the image goes, below the dataset's folder.
        mask_place: Where the mask goes.
    """

    image: str
    masks: tuple[str, ...]
    is_mask_indexed: bool
    image_place: str
    mask_place: str

    @staticmethod
    def of(sample: Sample, image_place: str, mask_place: str) -> RealCopy:
        """Return the copy of a sample."""
        return RealCopy(
            image=str(sample.path),
            masks=tuple(map(str, sample.masks)),
            is_mask_indexed=sample.is_mask_indexed,
            image_place=image_place,
            mask_place=mask_place,
        )

    def absolute(self) -> RealCopy:
        """Return the same with absolute paths, for a process in another folder."""
        return msgspec.structs.replace(self, image=absolute(self.image), masks=tuple(map(absolute, self.masks)))

    def read(self) -> dict[str, bytes]:
        """Return the bytes of each place; raises ImageError if a file cannot be read."""
        path = Path(self.image)
        image = read_image(path)  # a PNG file is decoded too: a broken one fails here and not in a later training
        data = read_encoded(path)
        # By content: a suffix may lie.
        files = {self.image_place: data if data.startswith(_PNG) else encode_png(image)}
        masks = [Path(mask) for mask in self.masks]
        sample = Sample(
            path,
            "test",  # says nothing about reading
            "",
            mask=masks[0] if masks else None,
            is_mask_indexed=self.is_mask_indexed,
            more_masks=tuple(masks[1:]),
        )
        if (mask := sample.read_mask()) is not None:
            files[self.mask_place] = encode_mask(mask)
        return files


def absolute(path: str) -> str:
    """Return a path that means the same in every folder.

    Raises:
        DataError: If its name is not UTF-8, in which plans are written.
    """
    if name_bytes(str(Path(path).absolute())) is not None:
        raise DataError(f"{path}: expected a name in UTF-8 for work in shards, got other bytes. Rename it.")
    return str(Path(path).absolute())


def _unchanged(source: Path, sha256: str) -> bytes:
    data = read_encoded(source)
    # Of the bytes that are written, whoever has looked at the file before.
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{source}: expected the file that was drawn, got other content. Generate it again.")
    return data
