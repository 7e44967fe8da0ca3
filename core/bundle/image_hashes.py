"""`images.json` of a bundle: content hashes of the images it was trained on and of those held out.

{"training": ["sha256 as 64 hexadecimal digits", ...], "held_out": [...]}

With cross-fitting also the scores of the training images, each by a fit that has not seen it: they are kept beside the
hashes that they belong to, and a reader that does not know them refuses the bundle.

Of a detector that has learned from labelled defects also the images that it has seen for them and that may lie in a
test split, each with how it was seen.

Calibration and evaluation leave these images out: scores of training images say nothing about new parts.
"""

from __future__ import annotations

import msgspec

from flawscope.bundle.opening import Bundle
from flawscope.cross_scores import CrossScores
from flawscope.errors import BundleError
from flawscope.text import NOT_JSON, encode_json

IMAGE_HASHES = "images.json"
"""Name of the file in a bundle; a reader goes by the manifest's `provenance.images`."""


class ImageHashes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The images a bundle was made from.

    Attributes:
        training: SHA-256 of every training image.
        held_out: SHA-256 of the normal images that were held out for calibration.
        cross: Scores of the training images by cross-fitting, or None; not written where there are none, so that the
            bytes of the file, which the digest covers, are those of before.
        defects: Hash of an image that was seen for labelled defects -> how it was seen; not written where it is empty.
    """

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    cross: CrossScores | None = None
    defects: dict[str, str] = {}

    @property
    def seen(self) -> frozenset[str]:
        """Hashes of all images that the detector has learned from or seen beside them; not of those held out."""
        return frozenset(self.training) | frozenset(self.defects)

    def __post_init__(self) -> None:
        """Raise ValueError if there are scores of an image that was not learned."""
        if self.cross is not None and not set(self.cross.images) <= set(self.training):
            raise ValueError("expected scores of images that were learned, got others")

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
