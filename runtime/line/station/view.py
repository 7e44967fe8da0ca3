"""One view of a station: an image becomes what is on record of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.bundle import InForce, Manifest
from flawscope.errors import FlawscopeError
from flawscope.imaging.images import decode_stored, to_8_bit
from flawscope.runtime.image_loading import UNLIKE
from flawscope.runtime.line.gallery.keeper import Heat, Kept, Pixels
from flawscope.runtime.line.parts import Reason, ViewRecord
from flawscope.runtime.line.sources.source import Frame, Source
from flawscope.runtime.results import Result
from flawscope.runtime.shared_scoring import SharedScoring

Color = Literal["rgb", "bgr"]
Crop = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""


class SceneVerdict(Protocol):
    """What a check of the scene says of an image."""

    @property
    def problem(self) -> Reason:
        """Why it must not be scored; empty where it may."""

    @property
    def detail(self) -> str:
        """The problem in words."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is near a limit."""

    @property
    def values(self) -> Mapping[str, float]:
        """What was measured, by name."""


class ChecksScene(Protocol):
    """Says of an image whether it may be scored."""

    def check(self, image: npt.NDArray[np.uint8]) -> SceneVerdict:
        """Check an image uint8 [H, W] or [H, W, 3]."""


@dataclass(frozen=True)
class Measure:
    """By what a view decides: one bundle with its thresholds.

    Attributes:
        scoring: Scores images, together with other views of the same bundle.
        bundle: Digest of the bundle.
        bits: Bits in use of 16-bit images, as the bundle was trained.
        manifest: Manifest of the bundle; None where there is no bundle.
        in_force: The thresholds that decide; None for those that the bundle was loaded with.
        heat: Says how an anomaly map is drawn by which thresholds; None where it is not.
        golden: Prepares one of the bundle's golden images, by its number, and returns what scores it and raises where
            it has not its stored score; None where there is no bundle.
    """

    scoring: SharedScoring
    bundle: str
    bits: int | None
    manifest: Manifest | None = None
    in_force: InForce | None = None
    heat: Callable[[InForce | None, Float32Array], Heat] | None = None
    golden: Callable[[int], Callable[[], None]] | None = None

    @property
    def revision(self) -> int:
        """Revision of the thresholds; 0 for the bundle's own."""
        return 0 if self.in_force is None else self.in_force.revision

    @property
    def threshold(self) -> float | None:
        """The threshold on the score; None where there is no bundle."""
        thresholds = None if self.in_force is None else self.in_force.thresholds
        return None if thresholds is None else thresholds.image.value

    def deciding_by(self, in_force: InForce) -> Measure:
        """Return the same bundle with other thresholds."""
        return replace(self, in_force=in_force)


@dataclass(frozen=True)
class InWork:
    """An image that is being scored.

    Attributes:
        frame: The image as it came, without its pixels.
        result: Its result, later.
        notes: What the scene was near to.
        measure: What scores it; the view may have another one when the result is there.
        image: What is inspected, for whoever keeps it.
        color: Order of its channels.
        scene: What was measured of its scene, by name.
    """

    frame: Frame
    result: Future[Result]
    notes: tuple[str, ...]
    measure: Measure
    image: Pixels | bytes
    color: Color
    scene: Mapping[str, float] = field(default_factory=dict)


class View:
    """One view: its source, what its images must be like, and the measure in force.

    Args:
        name: Its name.
        source: Brings its images.
        measure: By what it decides.
        scene: Checks images before they are scored; None for no check.
        crop: What of an image is inspected; None for all of it.

    Attributes:
        measure: As above; replaced between two parts. A part is decided by the one that it was opened with.
        seen: Shape and bits of a value of the last image that was inspected; None before the first.
    """

    def __init__(
        self, name: str, source: Source, measure: Measure, scene: ChecksScene | None = None, crop: Crop | None = None
    ) -> None:
        self.name, self.source, self.measure = name, source, measure
        self.seen: tuple[tuple[int, ...], int] | None = None
        self._scene, self._crop = scene, crop

    def begin(self, frame: Frame, deadline_ns: int, measure: Measure | None = None) -> InWork | Kept:
        """Check an image and have it scored; what must not be scored is on record at once.

        Args:
            frame: The image as it came.
            deadline_ns: When its part must have a verdict.
            measure: By what it is decided; None for the one in force now.
        """
        if frame.problem or frame.image is None:
            return self._unscored(frame, frame.problem or "incomplete_image", frame.detail or "there is no image")
        measure = self.measure if measure is None else measure
        try:
            image, color = self._pixels(frame)
            # A file is kept as it came: it is smaller, and nothing is lost.
            kept = frame.image if isinstance(frame.image, bytes) and self._crop is None else image
            self.seen = (image.shape, 8 * image.itemsize)
            notes: tuple[str, ...] = ()
            measured: Mapping[str, float] = {}
            if self._scene is not None:
                seen = to_8_bit(image, frame.source or self.name, measure.bits)
                scene = self._scene.check(seen[..., ::-1] if color == "bgr" and seen.ndim == 3 else seen)
                if scene.problem:
                    return Kept(
                        self.name,
                        self._fault(frame, scene.problem, scene.detail, scene.notes),
                        kept,
                        color,
                        measure.bits,
                    )
                notes, measured = scene.notes, scene.values
        except FlawscopeError as err:
            return self._unscored(frame, "unreadable_image", str(err).removeprefix(f"{self.name}: "))
        except Exception as err:  # a decoder or a check that fails in a way that nobody foresaw is no accept
            return self._unscored(frame, "unreadable_image", f"unexpected {type(err).__name__}: {err}")
        result = measure.scoring.submit(image, deadline_ns, color, measure.in_force)
        return InWork(replace(frame, image=None), result, notes, measure, kept, color, measured)

    def finish(self, work: InWork, result: Result) -> ViewRecord:
        """Return what is on record of an image that was scored."""
        notes = work.notes + result.notes
        if result.decision == "fault":
            text = result.reason or "the inspector gave no reason"
            return self._fault(work.frame, "unlike_images" if text.startswith(UNLIKE) else "inference", text, notes)
        numbers = (result.score, result.threshold)
        if result.decision == "accept" and not all(number is not None and math.isfinite(number) for number in numbers):
            return self._fault(work.frame, "inference", "accepted without a score and a threshold", notes)
        return ViewRecord(
            self.name,
            result.decision,
            score=result.score,
            threshold=result.threshold,
            threshold_revision=result.threshold_revision,
            bundle=work.measure.bundle,
            frame_id=work.frame.frame_id,
            source=work.frame.source,
            notes=notes,
        )

    def judged_by(self, measure: Measure) -> View:
        """Return a view of the same images that decides by another measure, and checks no scene."""
        return View(self.name, self.source, measure, None, self._crop)

    def kept(self, work: InWork | Kept) -> Kept:
        """Return an image that was scored, with what is on record of it and all that is needed to draw it."""
        if isinstance(work, Kept):
            return work
        result = work.result.result()
        measure = work.measure
        return Kept(
            self.name,
            self.finish(work, result),
            work.image,
            work.color,
            measure.bits,
            result.anomaly_map,
            None if measure.heat is None else partial(measure.heat, measure.in_force),
            result.boxes,
        )

    def missing(self, reason: Reason, detail: str) -> ViewRecord:
        """Return what is on record of an image that did not come, or has no result in time."""
        return ViewRecord(self.name, "fault", reason, detail)

    def _fault(self, frame: Frame, reason: Reason, detail: str, notes: tuple[str, ...] = ()) -> ViewRecord:
        return ViewRecord(self.name, "fault", reason, detail, frame_id=frame.frame_id, source=frame.source, notes=notes)

    def _unscored(self, frame: Frame, reason: Reason, detail: str) -> Kept:
        """Return an image of which nothing could be inspected, as it came."""
        return Kept(self.name, self._fault(frame, reason, detail), frame.image, bits=self.measure.bits)

    def _pixels(self, frame: Frame) -> tuple[npt.NDArray[Any], Color]:
        """Return the pixels that are inspected, and the order of their colours."""
        color: Color
        if isinstance(frame.image, bytes):
            # As `flawscope score` decodes a file, once: OpenCV's order stays, the inspector turns it.
            image, color = decode_stored(frame.image, frame.source or self.name), "bgr"
        else:
            image, color = np.asarray(frame.image), "rgb"
        if self._crop is None:
            return image, color
        left, top, width, height = self._crop
        if left + width > image.shape[1] or top + height > image.shape[0]:
            raise FlawscopeError(
                f"{self.name}: expected an image that holds the crop {list(self._crop)}, got {image.shape[1]}x"
                f"{image.shape[0]} pixels. Check the camera, or crop in the configuration."
            )
        return np.ascontiguousarray(image[top : top + height, left : left + width]), color
