"""`images.json` of a bundle: which images it was made from, by the hashes of their contents.

{"training": ["sha256 as 64 hexadecimal digits", ...], "held_out": [...]}

Calibration and evaluation leave these images out: scores on what a detector has learned say nothing of new parts.
"""

from __future__ import annotations

import msgspec

from flawscope.bundle.store import Bundle
from flawscope.errors import BundleError

IMAGE_HASHES = "images.json"
"""Name of the file in a bundle; a reader goes by the manifest's `provenance.images`."""


class ImageHashes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The images a bundle was made from.

    Attributes:
        training: SHA-256 of every image that was learned from.
        held_out: SHA-256 of the normal training images that were kept for calibration.
    """

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the content of `images.json`."""
        # On one line: the digest of a bundle covers these bytes, so indenting them would change every bundle's digest.
        return msgspec.json.encode(self)


def read_image_hashes(bundle: Bundle) -> ImageHashes:
    """Return which images a bundle was made from.

    Raises:
        BundleError: If the record is missing or broken.
    """
    name = bundle.manifest.provenance.images
    try:
        return msgspec.json.decode(bundle.file(name).read_bytes(), type=ImageHashes)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise BundleError(
            f"{bundle.path}: {name}: expected the hashes of training and held-out images, got a broken file: {err}. "
            "Export the bundle again."
        ) from err
