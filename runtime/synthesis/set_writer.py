"""Writing a folder of drawn images: images, masks and lines as they come, then the contact sheet and the record.

What is kept in memory are counts and the thumbnails of the sheet, however many images there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import msgspec

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.bundle import Manifest, SynthHead
from flawscope.datasets.defects.drawn_set import LINES, StoredFile
from flawscope.datasets.defects.set_files import SHEET, write_image, write_json
from flawscope.datasets.defects.set_sheets import COLUMNS, CYAN, MAGENTA, Row, Tile, draw_sheet, small_tile
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.generated_set import (
    MARKER,
    DefectCount,
    GeneratedImage,
    GenerateRecord,
    RecordedSettings,
)
from flawscope.runtime.synthesis.quality import RejectTally
from flawscope.runtime.synthesis.set_lines import Files
from flawscope.text import encode_json
from flawscope.versions import package_versions


class Shown(NamedTuple):
    """What the contact sheet shows of an image.

    Attributes:
        good_name: Name of the normal image.
        good: The normal image, uint8 [H, W, 3] RGB.
        image: The drawn image, uint8 [H, W, 3] RGB.
        mask: Its precise mask, bool [H, W].
        region: Where it was asked for, bool [H, W].
    """

    good_name: str
    good: UInt8Array
    image: UInt8Array
    mask: BoolArray
    region: BoolArray


@dataclass(frozen=True)
class DrawnBy:
    """What drew a set, for its record.

    Attributes:
        manifest: Manifest of the bundle.
        head: Its description of how it draws.
        backend: Backend that ran the graphs.
        backend_reason: Why this backend was chosen.
        precision: Precision of the graphs.
        settings: Settings of the run.
    """

    manifest: Manifest
    head: SynthHead
    backend: str
    backend_reason: str
    precision: str
    settings: GenerateSettings


@dataclass(frozen=True)
class SetFacts:
    """What only the whole run knows of a set, for its record.

    Attributes:
        wanted: CATEGORY/DEFECT -> accepted images asked for.
        seconds: Time of all images.
        peak_kib: Largest resident memory of a process that drew, in KiB; None where the system does not report it.
        in_test: Support images in the test split.
        lines: File of lines -> SHA-256.
        weights: File of weights that candidates were compared with -> SHA-256.
        resized: Records whose mask was resized to its image.
    """

    wanted: Mapping[str, int]
    seconds: float
    peak_kib: int | None
    in_test: int
    lines: Mapping[str, str]
    weights: Mapping[str, str]
    resized: int


class SetWriter:
    """Writes a set below a temporary folder. Use it in `with`: it holds the file of lines open.

    Attributes:
        written: Images written so far.
    """

    def __init__(self, folder: Path) -> None:
        self.written = 0
        self._folder = folder
        self._lines: BinaryIO = (folder / LINES).open("wb")
        self._made: set[Path] = set()
        self._tiles: dict[str, dict[str, list[Tile]]] = {}
        self._tallies: dict[str, RejectTally] = {}
        self._all = RejectTally()
        self._counts: Counter[tuple[str, bool]] = Counter()

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()

    def add(self, line: GeneratedImage, files: Files, show: Callable[[], Shown]) -> None:
        """Write one image with its masks and its line.

        Args:
            line: Its line; where its files lie is decided here.
            files: Their bytes.
            show: Returns what the sheet shows of it; called only where there is room on the sheet.
        """
        key = f"{line.category}/{line.defect}"
        # Accepted and rejected images are numbered apart, so that the accepted ones have no gaps.
        self._counts[key, line.accepted] += 1
        name = f"{line.defect}/{self._counts[key, line.accepted]:03d}.png"
        # Whoever looks at a rejected image wants to see its mask as well; under names that no reader of masks takes.
        images, apart = ("gen_img", "") if line.accepted else ("rejected", "rejected_")
        kinds = (images, f"{apart}prs_mask", f"{apart}box_mask")
        places = [f"{line.category}/{kind}/{name}" for kind in kinds]
        for place, data in zip(places, files, strict=True):
            self._write(place, data)
        assert line.mask is not None
        assert line.box_mask is not None
        named = msgspec.structs.replace(
            line,
            image=StoredFile(places[0], line.image.sha256),
            mask=StoredFile(places[1], line.mask.sha256),
            box_mask=StoredFile(places[2], line.box_mask.sha256),
        )
        self._lines.write(encode_json(named) + b"\n")
        self.written += 1
        self._all.add(line.verdict)
        self._tallies.setdefault(key, RejectTally()).add(line.verdict)
        self._show(named, name.rpartition("/")[2], show)

    def _write(self, place: str, data: bytes) -> None:
        path = self._folder / place
        if path.parent not in self._made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        path.write_bytes(data)

    def _show(self, line: GeneratedImage, name: str, show: Callable[[], Shown]) -> None:
        failed = line.verdict.reasons
        rows = self._tiles.setdefault(
            f"{line.category}/{line.defect}", {"normal images": [], "drawn": [], "precise masks": [], "rejected": []}
        )
        if len(rows["drawn" if line.accepted else "rejected"]) >= COLUMNS:
            return
        shown = show()
        if not line.accepted:
            rows["rejected"].append(
                small_tile(failed[0] if failed else "not the best", shown.image, shown.region, CYAN)
            )
            return
        rows["normal images"].append(small_tile(shown.good_name, shown.good, shown.region, CYAN))
        # Without the filter, images that it would have rejected are among those that are kept.
        rows["drawn"].append(small_tile(f"{name}: {failed[0]}" if failed else name, shown.image))
        rows["precise masks"].append(small_tile(line.text, shown.image, shown.mask, MAGENTA))

    def finish(self, by: DrawnBy, facts: SetFacts) -> GenerateRecord:
        """Write the sheet and the record.

        Args:
            by: What drew.
            facts: What the whole run knows.
        """
        self._lines.close()
        accepted = sum(count for (_, is_accepted), count in self._counts.items() if is_accepted)
        summary = self._all.summary()
        record = GenerateRecord(
            flawscope=package_versions()["flawscope"],
            bundle=by.manifest.name,
            digest=by.manifest.digest,
            method=by.manifest.method,
            mode=by.head.mode,
            licence=by.head.licence,
            backend=by.backend,
            backend_reason=by.backend_reason,
            precision=by.precision,
            settings=RecordedSettings.of(by.settings),
            lines=dict(facts.lines),
            summary=summary,
            defects={
                key: DefectCount(facts.wanted[key], self._counts[key, True], tally.summary())
                for key, tally in self._tallies.items()
            },
            seconds=facts.seconds,
            seconds_per_picture=facts.seconds / summary.pictures,
            seconds_per_accepted=facts.seconds / accepted if accepted else None,
            peak_memory_kib=facts.peak_kib,
            versions={**package_versions(), "tokenizers": version("tokenizers")},
            support=tuple(dict.fromkeys(image.sha256 for image in by.head.support)),
            support_in_test=facts.in_test,
            lpips=dict(facts.weights),
            resized=facts.resized,
        )
        titled = [
            Row(f"{key.replace('/', ': ')}, {title}", tiles)
            for key, rows in self._tiles.items()
            for title, tiles in rows.items()
            if tiles
        ]
        write_image(self._folder / SHEET, draw_sheet(titled))
        write_json(self._folder / MARKER, record)
        return record
