"""`images.json` of a bundle: content hashes of the images it was trained on and of those held out.

{"training": ["sha256 as 64 hexadecimal digits", ...], "held_out": [...]}

Calibration and evaluation leave these images out: scores of training images say nothing about new parts.
"""

from __future__ import annotations

import msgspec

from flawscope.bundle.opening import Bundle
from flawscope.errors import BundleError
from flawscope.text import NOT_JSON, encode_json

IMAGE_HASHES = "images.json"
"""Name of the file in a bundle; a reader goes by the manifest's `provenance.images`."""


class ImageHashes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The images a bundle was made from.

    Attributes:
        training: SHA-256 of every training image.
        held_out: SHA-256 of the normal images that were held out for calibration.
    """

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the content of `images.json`."""
        # Not indented: the digest of a bundle covers these bytes, and would change with them.
        return encode_json(self)


def read_image_hashes(bundle: Bundle) -> ImageHashes:
    """Return the hashes of the images a bundle was trained on, and of those held out.

    Raises:
        BundleError: If the record is missing or broken.
    """
    name = bundle.manifest.provenance.images
    try:
        return msgspec.json.decode(bundle.read(name), type=ImageHashes)
    except NOT_JSON as err:
        raise BundleError(
            f"{bundle.path}: {name}: expected the hashes of training and held-out images, got a broken file: {err}. "
            "Export the bundle again."
        ) from err
