"""Records of a folder of generated images, and redrawing an image from its record."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from flawscope.arrays import BoolArray
from flawscope.datasets.defects.drawn_set import LINES, MARKERS, StoredFile, read_drawn_lines
from flawscope.datasets.defects.set_files import decode_json
from flawscope.datasets.fingerprints import content_hash
from flawscope.datasets.record_paths import place_below
from flawscope.diffusion.latent_inpainting import Mode
from flawscope.errors import BundleError, DataError
from flawscope.imaging.boxes import Rect, bounds_of
from flawscope.imaging.crops import Crop
from flawscope.imaging.images import read_image
from flawscope.runtime.synthesis.draw_options import DrawOptions, DrawOrder, GenerateSettings, Tone
from flawscope.runtime.synthesis.quality import QualityLimits, RejectSummary, Verdict
from flawscope.runtime.synthesis.synthesizer import Drawn, Synthesizer

MARKER = MARKERS["diffusion"]


class RecordedLimits(QualityLimits, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits as a record has them; see `RecordedOptions`. A limit of 0 lets everything pass."""

    smooth: float = 0.0


class RecordedOptions(DrawOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options as a record has them.

    A record that lacks an option was written before there was one, and means what was done then: its image must be
    drawn again to the same bytes, whatever the defaults have become.
    """

    tone: Tone | None = "none"
    text_noise: float | None = 0.0
    limits: RecordedLimits = RecordedLimits()

    @staticmethod
    def of(options: DrawOptions) -> RecordedOptions:
        """Return the same options, as a record has them."""
        return msgspec.convert(options, RecordedOptions, from_attributes=True)


class RecordedSettings(GenerateSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings as a record has them; see `RecordedOptions`."""

    options: RecordedOptions = RecordedOptions()

    @staticmethod
    def of(settings: GenerateSettings) -> RecordedSettings:
        """Return the same settings, as a record has them."""
        fields = msgspec.structs.asdict(settings)
        return RecordedSettings(**{**fields, "options": RecordedOptions.of(settings.options)})


class GeneratedImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of generated.jsonl: an image and everything needed to draw it again.

    Attributes:
        number: Number of the record, from 0; a record that is drawn again keeps it.
        round: Number of the drawing of this record, from 1.
        category: Name of the category.
        defect: Defect type.
        accepted: Whether it is kept: the quality filter accepted it, or was left out, and of several candidates it is
            the best.
        image: The image.
        mask: The precise mask; None for a rejected image of an earlier version.
        box_mask: Where the defect was asked for; None likewise.
        good: The normal image, below the dataset's root.
        good_sha256: SHA-256 of its bytes.
        box: The mask of the box, below the box set.
        bbox: Left, top, width and height of the region in pixels.
        runs: For a region that does not fill `bbox`: lengths of alternating runs of black and white pixels inside it,
            row by row, black first; empty for a box.
        text: The prompt.
        seed: Seed of the noise.
        crop: The window that the model saw.
        bundle: Name of the bundle.
        digest: Digest of its manifest.
        backend: Backend that ran the graphs.
        precision: Precision of the graphs.
        batch: Number of images in its batch.
        options: Options of the drawing, with the bundle's numbers filled in.
        verdict: Verdict of the quality filter, every measure with its limit.
        score: By what it was compared with the other candidates of its record; None where there were none.
    """

    number: int
    round: int
    category: str
    defect: str
    accepted: bool
    image: StoredFile
    mask: StoredFile | None
    box_mask: StoredFile | None
    good: str
    good_sha256: str
    box: str
    bbox: tuple[int, int, int, int]
    runs: tuple[int, ...]
    text: str
    seed: int
    crop: Crop
    bundle: str
    digest: str
    backend: str
    precision: str
    batch: int
    options: RecordedOptions
    verdict: Verdict
    score: float | None = None


class DefectCount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result for one defect type.

    Attributes:
        wanted: Number of accepted images asked for.
        accepted: Number of accepted images: those that are kept, with `keep_all` whatever the filter said.
        summary: What the filter said of all images drawn.
    """

    wanted: int
    accepted: int
    summary: RejectSummary


class GenerateRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sources, settings and cost of a folder of drawn images; the content of `generate.json`.

    Attributes:
        flawscope: Version that wrote it.
        bundle: Name of the bundle.
        digest: Digest of its manifest.
        method: Its method.
        mode: How it draws.
        licence: Licence of the base model.
        backend: Backend that ran the graphs.
        backend_reason: Why this backend was chosen.
        precision: Precision of the graphs.
        settings: Settings of the run.
        lines: File of lines, below the box set → SHA-256 of its bytes.
        summary: What the filter said of all images; with `settings.keep_all` nothing was rejected for it.
        defects: CATEGORY/DEFECT → result.
        seconds: Time of reading, drawing, judging and writing all images; without loading the bundle.
        seconds_per_picture: `seconds` per image.
        seconds_per_accepted: `seconds` per accepted image; None if no image was accepted.
        peak_memory_kib: Largest resident memory of the process in KiB; None where the system does not report it.
        versions: Versions of the packages that influence the numbers.
        support: SHA-256 of every support image that the bundle learned from.
        support_in_test: How many of them are in the dataset's test split; an evaluation has to leave them out.
        resized: Records whose mask was resized to its image (nearest); `bbox` and `runs` are of the resized one.
        lpips: Name of each file of weights that candidates were compared with → SHA-256 of its bytes.
        schema: Version of this record.
    """

    flawscope: str
    bundle: str
    digest: str
    method: str
    mode: Mode
    licence: str
    backend: str
    backend_reason: str
    precision: str
    settings: RecordedSettings
    lines: dict[str, str]
    summary: RejectSummary
    defects: dict[str, DefectCount]
    seconds: float
    seconds_per_picture: float
    seconds_per_accepted: float | None
    peak_memory_kib: int | None
    versions: dict[str, str]
    support: tuple[str, ...]
    support_in_test: int
    resized: int = 0
    lpips: dict[str, str] = {}
    schema: Literal[1] = 1


def runs_of(region: BoolArray) -> tuple[tuple[int, int, int, int], tuple[int, ...]]:
    """Return the box around a region, and the region's runs inside it; no runs if it fills the box."""
    box = bounds_of(region)
    bbox, flat = (box.left, box.top, box.width, box.height), region[box.window].ravel()
    if flat.all():
        return bbox, ()
    ends = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    lengths = tuple(int(length) for length in np.diff(ends))
    # Black comes first: a region that is white at the corner of its box starts with an empty run.
    return bbox, lengths if not flat[0] else (0, *lengths)


def region_of(line: GeneratedImage, size: tuple[int, int]) -> BoolArray:
    """Return where a recorded image's defect was asked for, bool [H, W].

    Raises:
        DataError: If the record fits no image of this size.
    """
    left, top, width, height = line.bbox
    # The line is a file that anybody may have edited: np.repeat and the slices below would take nonsense.
    fits = min(left, top) >= 0 and top + height <= size[0] and left + width <= size[1] and min(width, height) > 0
    if not fits or (line.runs and (sum(line.runs) != width * height or min(line.runs) < 0)):
        raise DataError(f"{line.image.place}: expected a region inside {size[1]}x{size[0]} pixels, got {line.bbox}.")
    region = Rect(*line.bbox).to_mask(size)
    if line.runs:
        inside = np.repeat(np.arange(len(line.runs)) % 2 == 1, line.runs).reshape(height, width)
        region[top : top + height, left : left + width] = inside
    return region


def read_generated(folder: Path) -> list[GeneratedImage]:
    """Read the lines of a folder that diffusion has drawn; its images and masks must be unchanged.

    `flawscope.datasets.defects.read_drawn` reads the folders of all sources.

    Raises:
        DataError: If a line or a file is missing, broken or was changed, or a line is of another source.
    """
    lines = []
    for drawn, text, where in read_drawn_lines(folder):
        if drawn.source != "diffusion":
            raise DataError(
                f"{where}: expected an image that diffusion has drawn, got one of {drawn.source}. Name a folder of "
                "flawscope synth generate."
            )
        lines.append(decode_json(text, GeneratedImage, where, "the record of a drawn image"))
    return lines


def redraw(bundle: Synthesizer | Path | str, line: GeneratedImage, root: Path) -> Drawn:
    """Draw a recorded image again: the same bytes, on the same backend.

    Args:
        bundle: The bundle that drew it, or its path, which is loaded with the recorded backend and precision.
        line: Its line of `generated.jsonl`.
        root: The folder that `line.good` is below: the root of the dataset.

    Raises:
        ArgumentError: If the bundle cannot draw a batch of the recorded size.
        BundleError: If it is another bundle.
        DataError: If the normal image is missing or has other content.
    """
    if not isinstance(bundle, Synthesizer):
        with Synthesizer.load(bundle, line.backend, line.precision) as loaded:
            return redraw(loaded, line, root)
    if bundle.manifest.digest != line.digest:
        raise BundleError(
            f"{bundle.bundle.path}: expected the bundle {line.bundle} ({line.digest[:12]}…), got "
            f"{bundle.manifest.name} ({bundle.manifest.digest[:12]}…). Take the one that drew the image."
        )
    path = root / place_below(root, line.good, LINES)
    if content_hash(path) != line.good_sha256:
        raise DataError(f"{path}: expected the normal image that was drawn on, got other content.")
    image = read_image(path, bundle.manifest.input.bits)
    region = region_of(line, (image.shape[0], image.shape[1]))
    order = DrawOrder(image, region, f"{line.category}/{line.defect}", line.text, line.seed)
    bundle.check_batch(line.batch)  # before a list of that length is made: the line may have been edited
    # In a batch of the same size: the last bits of some kernels' sums depend on it. Its other images do not matter.
    return bundle.draw([order] * line.batch, line.options, batch=line.batch)[0]
