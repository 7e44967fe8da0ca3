"""Generation of a folder of drawn defects from the lines of a box set.

    DIR/CATEGORY/gen_img/DEFECT/NNN.png      accepted images
    DIR/CATEGORY/prs_mask/DEFECT/NNN.png     their precise masks
    DIR/CATEGORY/box_mask/DEFECT/NNN.png     where the defects were asked for
    DIR/CATEGORY/rejected/DEFECT/NNN.png     rejected images, which no dataset takes
    DIR/generated.jsonl                      a line for each image, accepted or not, with all it takes to redraw it
    DIR/generate.json                        settings, rates of rejection, time and memory
    DIR/contact_sheet.png

The same bundle, lines and settings give the same images, masks and lines byte for byte: what depends on the machine
(time, memory, versions) is in generate.json alone.

Source: MvP-Diff, stage 3b, for the folders. There every image has the same seed; here record i has seed + i.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.bundle import SynthHead
from flawscope.datasets import Dataset, as_recorded, hash_contents
from flawscope.datasets.defects.box_sets import shares
from flawscope.datasets.defects.drawn_set import LINES, StoredFile
from flawscope.datasets.defects.seeded_choice import check_seed
from flawscope.datasets.defects.set_files import SHEET, write_image, write_json, write_lines, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, CYAN, MAGENTA, Row, Tile, draw_sheet, small_tile
from flawscope.datasets.fingerprints import content_hash
from flawscope.errors import DataError
from flawscope.files import atomic_folder, check_replaceable, sha256_file
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.resident_memory import peak_kib
from flawscope.runtime.synthesis.draw_options import DrawOrder, GenerateSettings, Texts
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
from flawscope.runtime.synthesis.sites import Site
from flawscope.runtime.synthesis.synthesizer import Drawn, Synthesizer
from flawscope.versions import package_versions

Report = Callable[[str, int, int], None]
"""Called with the name of the stage, the number of items finished and their total."""


def generate_images(
    synthesizer: Synthesizer,
    sites: Sequence[Site],
    folder: Path,
    settings: GenerateSettings | None = None,
    *,
    dataset: Dataset | None = None,
    lines: Mapping[str, str] | None = None,
    report: Report | None = None,
    overwrite: bool = False,
) -> GenerateRecord:
    """Draw defects on normal images and write them, their masks, records and a contact sheet.

    The folder appears whole under its name or not at all. All sites are checked before the first image is drawn.

    Args:
        synthesizer: The bundle.
        sites: Where to draw.
        folder: The folder to make.
        settings: How many images, and how they are drawn.
        dataset: Dataset whose test split is searched for support images.
        lines: For the record: files that the sites come from → SHA-256.
        report: Called with the progress.
        overwrite: Whether an earlier folder of drawn images may be replaced.

    Raises:
        ArgumentError: If a setting is out of range, a defect is unknown, or `folder` is taken.
        DataError: If a file cannot be read, a mask is empty or not of its image's size, or a normal image is one
            that the bundle has learned a defect from.
        DeviceError: If the device fails.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    settings, report = settings or GenerateSettings(), report or (lambda stage, count, total: None)
    check_replaceable(folder, MARKER, overwrite=overwrite)
    batch = synthesizer.max_batch if settings.batch is None else settings.batch
    synthesizer.check_batch(batch)
    tasks = list(enumerate(_sites_of_records(sites, settings)))
    # Above every seed that the run can use: one out of range must be an error now, not in the last round.
    check_seed(settings.seed + len(tasks) * settings.rounds)
    hashes, fitted = _check_sites(synthesizer, [site for _, site in tasks], settings.texts, report)
    in_test = 0 if dataset is None else _support_in_test(dataset, synthesizer.head, report)
    with atomic_folder(folder, replace_if=MARKER, overwrite=overwrite) as unfinished:
        writer = _Writer(unfinished, synthesizer, settings, hashes)
        started = time.perf_counter()
        pending, total = tasks, len(tasks)
        bits = synthesizer.manifest.input.bits
        for turn in range(settings.rounds):
            rejected = []
            for first in range(0, len(pending), batch):
                chunk = pending[first : first + batch]
                # By the record's number and not by its position in the chunk: neither the batch nor which other
                # records were rejected may change an image. Rounds are len(tasks) apart, so no seed is used twice.
                seeds = [settings.seed + turn * len(tasks) + number for number, _ in chunk]
                # Images are read a batch at a time: those of a whole run would not fit in memory.
                orders = []
                for (_, site), seed in zip(chunk, seeds, strict=True):
                    text = _text(synthesizer, site, settings.texts)
                    image = read_image(site.good, bits)
                    orders.append(DrawOrder(image, site.read_mask(image.shape[:2]), site.key, text, seed))
                for task, drawn in zip(chunk, synthesizer.draw(orders, settings.options, batch=batch), strict=True):
                    writer.add(*task, turn + 1, drawn)
                    if not drawn.verdict.is_accepted:
                        rejected.append(task)
                report("drawing", len(writer.lines), total)
            if not rejected:
                break
            pending, total = rejected, total + len(rejected)
        resized = sum(site in fitted for _, site in tasks)
        record = writer.finish(tasks, time.perf_counter() - started, in_test, lines or {}, resized)
    return record


def _sites_of_records(sites: Sequence[Site], settings: GenerateSettings) -> list[Site]:
    """Return the site of every record: all of one defect type together, in the order of the lines."""
    # Dictionaries keep the order of the lines. A record's number, and so its seed, depends on that order.
    groups: dict[str, dict[str, list[Site]]] = {}
    for site in sites:
        groups.setdefault(site.category, {}).setdefault(site.defect, []).append(site)
    chosen: list[Site] = []
    for types in groups.values():
        counts = [settings.per_defect or len(group) for group in types.values()]
        if settings.number is not None:
            counts = shares(settings.number, len(types))
        for group, count in zip(types.values(), counts, strict=True):
            chosen += [group[index % len(group)] for index in range(count)]
    return chosen


def _text(synthesizer: Synthesizer, site: Site, texts: Texts) -> str | None:
    is_learned = synthesizer.find_defect(site.key).vectors is not None
    return None if texts == "bundle" or (texts == "auto" and is_learned) else site.text


def _check_sites(
    synthesizer: Synthesizer, sites: Sequence[Site], texts: Texts, report: Report
) -> tuple[dict[Path, str], set[Site]]:
    """Raise unless every site can be drawn on; return the hashes of the normal images, and sites with resized masks."""
    fitted: set[Site] = set()
    support = {image.sha256: f"{image.category}/{image.defect}" for image in synthesizer.head.support}
    hashes: dict[Path, str] = {}
    different = list(dict.fromkeys(sites))  # lines that are used several times are checked once
    for count, site in enumerate(different, 1):
        if (text := _text(synthesizer, site, texts)) is not None:
            synthesizer.check_text(site.key, text)
        if site.good not in hashes:
            hashes[site.good] = content_hash(site.good)
        # By content: the same image under another name would be a defect drawn on a defect.
        if hashes[site.good] in support:
            raise DataError(
                f"{site.good}: expected a normal image, got one that the bundle learned "
                f"{support[hashes[site.good]]} from. Take its line out."
            )
        size = read_image(site.good).shape[:2]
        site.read_mask(size)
        if site.is_fitted and read_mask(site.mask).shape != size:
            fitted.add(site)
        report("checking images", count, len(different))
    return hashes, fitted


def _support_in_test(dataset: Dataset, head: SynthHead, report: Report) -> int:
    """Return how many of the support images are in the test split, compared by content."""
    support = {image.sha256 for image in head.support}
    if not support:
        return 0
    hashes = hash_contents(
        (s.path for s in dataset.test), lambda count, total: report("reading test images", count, total)
    )
    return len(support & set(as_recorded(hashes, support).values()))


class _Writer:
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

    def add(self, number: int, site: Site, turn: int, drawn: Drawn) -> None:
        """Write one image, and keep its line and its thumbnails."""
        accepted, manifest = drawn.verdict.is_accepted, self._synthesizer.manifest
        # Accepted and rejected images are numbered apart, so that the accepted ones have no gaps.
        self._counts[site.key, accepted] += 1
        name = f"{site.defect}/{self._counts[site.key, accepted]:03d}.png"
        bbox, runs = runs_of(drawn.region)
        self.lines.append(
            GeneratedImage(
                number=number,
                round=turn,
                category=site.category,
                defect=site.defect,
                accepted=accepted,
                image=self._stored(f"{site.category}/{'gen_img' if accepted else 'rejected'}/{name}", drawn.image),
                mask=self._stored(f"{site.category}/prs_mask/{name}", drawn.mask) if accepted else None,
                box_mask=self._stored(f"{site.category}/box_mask/{name}", drawn.region) if accepted else None,
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
            )
        )
        self._show(site, name.rpartition("/")[2], drawn)

    def _stored(self, place: str, pixels: UInt8Array | BoolArray) -> StoredFile:
        path = self._folder / place
        if pixels.dtype == np.bool_:
            write_mask(path, pixels.astype(np.bool_, copy=False))  # astype narrows the type for mypy, without a copy
        else:
            write_image(path, pixels.astype(np.uint8, copy=False))
        return StoredFile(place, sha256_file(path))

    def _show(self, site: Site, name: str, drawn: Drawn) -> None:
        rows = self._tiles.setdefault(site.key, {"normal images": [], "drawn": [], "precise masks": [], "rejected": []})
        if not drawn.verdict.is_accepted:
            if len(rows["rejected"]) < COLUMNS:
                rows["rejected"].append(small_tile(drawn.verdict.reasons[0], drawn.image, drawn.region, CYAN))
        elif len(rows["drawn"]) < COLUMNS:
            bits = self._synthesizer.manifest.input.bits
            rows["normal images"].append(small_tile(site.good.name, read_image(site.good, bits), drawn.region, CYAN))
            rows["drawn"].append(small_tile(name, drawn.image))
            rows["precise masks"].append(small_tile(drawn.text, drawn.image, drawn.mask, MAGENTA))

    def finish(
        self, tasks: Sequence[tuple[int, Site]], seconds: float, in_test: int, lines: Mapping[str, str], resized: int
    ) -> GenerateRecord:
        """Write the lines, the sheet and the record."""
        verdicts: dict[str, list[Verdict]] = {}
        for line in self.lines:
            verdicts.setdefault(f"{line.category}/{line.defect}", []).append(line.verdict)
        # Counted over the tasks and not over the lines: a record that was drawn in three rounds was asked for once.
        asked_for = Counter(site.key for _, site in tasks)
        counts = {}
        for key, verdicts_of_defect in verdicts.items():
            summary = summarise(verdicts_of_defect)
            counts[key] = DefectCount(asked_for[key], summary.accepted, summary)
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
            seconds_per_accepted=seconds / summary.accepted if summary.accepted else None,
            peak_memory_kib=peak_kib(),
            versions={**package_versions(), "tokenizers": version("tokenizers")},
            support=tuple(dict.fromkeys(image.sha256 for image in synthesizer.head.support)),
            support_in_test=in_test,
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
