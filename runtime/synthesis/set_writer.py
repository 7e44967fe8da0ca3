"""Writing a folder of drawn images: images and masks as they come, then the lines, the contact sheet and the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets.defects.drawn_set import LINES, StoredFile
from flawscope.datasets.defects.set_files import SHEET, write_image, write_json, write_lines, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, CYAN, MAGENTA, Row, Tile, draw_sheet, small_tile
from flawscope.files import sha256_file
from flawscope.resident_memory import peak_kib
from flawscope.runtime.synthesis.candidates import Candidate
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.generated_set import (
    MARKER,
    DefectCount,
    GeneratedImage,
    GenerateRecord,
    RecordedOptions,
    RecordedSettings,
    runs_of,
)
from flawscope.runtime.synthesis.quality import Verdict, summarise
from flawscope.runtime.synthesis.synthesizer import Synthesizer
from flawscope.versions import package_versions


class SetWriter:
    """Writes images below a temporary folder, and collects what the record and the sheet need."""

    def __init__(
        self, folder: Path, synthesizer: Synthesizer, settings: GenerateSettings, hashes: Mapping[Path, str]
    ) -> None:
        self._folder, self._synthesizer, self._settings, self._hashes = folder, synthesizer, settings, hashes
        # Resolved: a line must redraw its image even if the defaults of a later version differ.
        self._options = RecordedOptions.of(settings.options.resolved(synthesizer.head))
        self._tiles: dict[str, dict[str, list[Tile]]] = {}
        self._counts: Counter[tuple[str, bool]] = Counter()
        self.lines: list[GeneratedImage] = []

    def add(self, candidate: Candidate, *, accepted: bool) -> None:
        """Write one image with its masks, and keep its line and its thumbnails."""
        site, drawn, manifest = candidate.site, candidate.drawn, self._synthesizer.manifest
        # Accepted and rejected images are numbered apart, so that the accepted ones have no gaps.
        self._counts[site.key, accepted] += 1
        name = f"{site.defect}/{self._counts[site.key, accepted]:03d}.png"
        # Whoever looks at a rejected image wants to see its mask as well; under names that no reader of masks takes.
        images, apart = ("gen_img", "") if accepted else ("rejected", "rejected_")
        bbox, runs = runs_of(drawn.region)
        self.lines.append(
            GeneratedImage(
                number=candidate.number,
                round=candidate.round,
                category=site.category,
                defect=site.defect,
                accepted=accepted,
                image=self._stored(f"{site.category}/{images}/{name}", drawn.image),
                mask=self._stored(f"{site.category}/{apart}prs_mask/{name}", drawn.mask),
                box_mask=self._stored(f"{site.category}/{apart}box_mask/{name}", drawn.region),
                good=site.place,
                good_sha256=self._hashes[site.good],
                box=site.box,
                bbox=bbox,
                runs=runs,
                text=drawn.text,
                seed=drawn.seed,
                crop=drawn.crop,
                bundle=manifest.name,
                digest=manifest.digest,
                backend=self._synthesizer.backend,
                precision=self._synthesizer.precision,
                batch=drawn.batch,
                options=self._options,
                verdict=drawn.verdict,
                score=candidate.score,
            )
        )
        self._show(candidate, name.rpartition("/")[2], accepted)

    def _stored(self, place: str, pixels: UInt8Array | BoolArray) -> StoredFile:
        path = self._folder / place
        if pixels.dtype == np.bool_:
            write_mask(path, pixels.astype(np.bool_, copy=False))  # astype narrows the type for mypy, without a copy
        else:
            write_image(path, pixels.astype(np.uint8, copy=False))
        return StoredFile(place, sha256_file(path))

    def _show(self, candidate: Candidate, name: str, accepted: bool) -> None:
        site, drawn, failed = candidate.site, candidate.drawn, candidate.drawn.verdict.reasons
        rows = self._tiles.setdefault(site.key, {"normal images": [], "drawn": [], "precise masks": [], "rejected": []})
        if not accepted:
            if len(rows["rejected"]) < COLUMNS:
                why = failed[0] if failed else "not the best"
                rows["rejected"].append(small_tile(why, drawn.image, drawn.region, CYAN))
        elif len(rows["drawn"]) < COLUMNS:
            rows["normal images"].append(small_tile(site.good.name, candidate.good, drawn.region, CYAN))
            # Without the filter, images that it would have rejected are among those that are kept.
            rows["drawn"].append(small_tile(f"{name}: {failed[0]}" if failed else name, drawn.image))
            rows["precise masks"].append(small_tile(drawn.text, drawn.image, drawn.mask, MAGENTA))

    def finish(
        self,
        wanted: Mapping[str, int],
        seconds: float,
        in_test: int,
        lines: Mapping[str, str],
        weights: Mapping[str, str],
        resized: int,
    ) -> GenerateRecord:
        """Write the lines, the sheet and the record.

        Args:
            wanted: CATEGORY/DEFECT -> accepted images asked for.
            seconds: Time of all images.
            in_test: Support images in the test split.
            lines: File of lines -> SHA-256.
            weights: File of weights that candidates were compared with -> SHA-256.
            resized: Records whose mask was resized to its image.
        """
        verdicts: dict[str, list[Verdict]] = {}
        kept: Counter[str] = Counter()
        for line in self.lines:
            key = f"{line.category}/{line.defect}"
            verdicts.setdefault(key, []).append(line.verdict)
            kept[key] += line.accepted
        counts = {key: DefectCount(wanted[key], kept[key], summarise(of_key)) for key, of_key in verdicts.items()}
        summary = summarise(line.verdict for line in self.lines)
        synthesizer = self._synthesizer
        record = GenerateRecord(
            flawscope=package_versions()["flawscope"],
            bundle=synthesizer.manifest.name,
            digest=synthesizer.manifest.digest,
            method=synthesizer.manifest.method,
            mode=synthesizer.head.mode,
            licence=synthesizer.head.licence,
            backend=synthesizer.backend,
            backend_reason=synthesizer.backend_reason,
            precision=synthesizer.precision,
            settings=RecordedSettings.of(self._settings),
            lines=dict(lines),
            summary=summary,
            defects=counts,
            seconds=seconds,
            seconds_per_picture=seconds / summary.pictures,
            seconds_per_accepted=seconds / kept.total() if kept.total() else None,
            peak_memory_kib=peak_kib(),
            versions={**package_versions(), "tokenizers": version("tokenizers")},
            support=tuple(dict.fromkeys(image.sha256 for image in synthesizer.head.support)),
            support_in_test=in_test,
            lpips=dict(weights),
            resized=resized,
        )
        titled = [
            Row(f"{key.replace('/', ': ')}, {title}", tiles)
            for key, rows in self._tiles.items()
            for title, tiles in rows.items()
            if tiles
        ]
        write_lines(self._folder / LINES, self.lines)
        write_image(self._folder / SHEET, draw_sheet(titled))
        write_json(self._folder / MARKER, record)
        return record
