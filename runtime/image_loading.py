"""The first stage of an inspection: an image is read and prepared, or is a fault that says why it cannot be."""

from __future__ import annotations

import time

from flawscope.bundle import Manifest
from flawscope.imaging.images import grey_as_rgb, prepare
from flawscope.imaging.learned_images import differences, look_of
from flawscope.runtime.frame import Frame, as_seen
from flawscope.runtime.image_sources import Color, Source, read_source_image
from flawscope.runtime.judge import Judge, LoadedImage
from flawscope.runtime.results import Result, fault_of, fault_reason

UNLIKE = "unlike the images that the bundle learned from"
"""How the reason begins of an image that is a fault for what it looks like, with `strict`."""


class ImageLoader:
    """Reads and prepares images for a bundle.

    Args:
        manifest: The bundle's manifest.
        strict: Whether an image unlike all those that the bundle learned from is a fault.
    """

    __slots__ = ("_manifest", "_strict")

    def __init__(self, manifest: Manifest, *, strict: bool) -> None:
        self._manifest, self._strict = manifest, strict

    def load(
        self, source: Source | Frame, position: int, color: Color, product: str | None, judge: Judge
    ) -> LoadedImage | Result:
        """Return an image read and prepared, or its fault.

        Args:
            source: The image.
            position: Its place in the stream.
            color: Order of the channels of an array.
            product: The product that it shows.
            judge: What will judge it: its region may follow the part.
        """
        manifest = self._manifest
        image_source, seen = as_seen(source, position)
        notes: tuple[str, ...] = ()
        started = time.perf_counter()
        try:
            image, bits = read_source_image(image_source, seen.name, color, manifest.input.bits)
            read_at = time.perf_counter()
            if manifest.learned is not None:
                notes = differences(look_of(image, bits), manifest.learned)
                if notes and self._strict:
                    return fault_of(seen, f"{UNLIKE}: {'; '.join(notes)}", judge.origin, notes)
            shift = None if judge.region is None else judge.region.shift_of(image)
            # Tiles are cut from the pixels of the source and prepared one by one.
            prepared = prepare(image, manifest.input) if manifest.tiling is None else grey_as_rgb(image)
        except Exception as err:
            return fault_of(seen, fault_reason(err, seen.name), judge.origin, notes)
        timings = {"read": 1e3 * (read_at - started), "prepare": 1e3 * (time.perf_counter() - read_at)}
        return LoadedImage(seen, prepared, (image.shape[0], image.shape[1]), timings, notes, shift, product)
