"""Generation of a folder of drawn defects from the lines of a box set.

    DIR/CATEGORY/gen_img/DEFECT/NNN.png      accepted images
    DIR/CATEGORY/prs_mask/DEFECT/NNN.png     their precise masks
    DIR/CATEGORY/box_mask/DEFECT/NNN.png     where the defects were asked for
    DIR/CATEGORY/rejected/DEFECT/NNN.png     rejected images, which no dataset takes; their masks are in
                                             rejected_prs_mask and rejected_box_mask
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
from functools import partial
from pathlib import Path

from flawscope.bundle import SynthHead
from flawscope.datasets import Dataset, as_recorded, hash_contents
from flawscope.files import atomic_folder, check_replaceable
from flawscope.resident_memory import peak_kib
from flawscope.runtime.synthesis.candidates import Candidate
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.generated_set import MARKER, GenerateRecord
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips
from flawscope.runtime.synthesis.record_drawing import (
    RecordDrawer,
    SiteChecks,
    check_distance,
    check_seeds,
    sites_of_records,
)
from flawscope.runtime.synthesis.set_lines import LineMaker
from flawscope.runtime.synthesis.set_writer import DrawnBy, SetFacts, SetWriter, Shown
from flawscope.runtime.synthesis.sites import Site
from flawscope.runtime.synthesis.synthesizer import Synthesizer

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
    distance: MaskedLpips | None = None,
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
        distance: Compares candidates where `settings.best_by` is `lpips`.
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
    check_distance(settings, is_given=distance is not None)
    check_replaceable(folder, MARKER, overwrite=overwrite)
    tasks = list(enumerate(sites_of_records(sites, settings)))
    drawer = RecordDrawer(synthesizer, settings, len(tasks), distance)
    check_seeds(settings, len(tasks))
    checks = _check_sites(synthesizer, [site for _, site in tasks], settings, report)
    in_test = 0 if dataset is None else support_in_test(dataset, synthesizer.head, report)
    with (
        atomic_folder(folder, replace_if=MARKER, overwrite=overwrite) as unfinished,
        SetWriter(unfinished) as writer,
    ):
        started = time.perf_counter()
        _draw_rounds(drawer, tasks, settings, LineMaker(synthesizer, settings), checks.hashes, writer, report)
        facts = SetFacts(
            # Over the tasks and not over the drawings: a record that was drawn in three rounds was asked for once.
            wanted=Counter(site.key for _, site in tasks),
            seconds=time.perf_counter() - started,
            peak_kib=peak_kib(),
            in_test=in_test,
            lines=lines or {},
            weights={} if distance is None else distance.files,
            resized=sum(site in checks.fitted for _, site in tasks),
        )
        record = writer.finish(drawn_by(synthesizer, settings), facts)
    return record


def _draw_rounds(
    drawer: RecordDrawer,
    tasks: Sequence[tuple[int, Site]],
    settings: GenerateSettings,
    maker: LineMaker,
    hashes: Mapping[Path, str],
    writer: SetWriter,
    report: Report,
) -> None:
    pending, total = tasks, len(tasks) * settings.best_of
    for turn in range(settings.rounds):
        rejected: list[tuple[int, Site]] = []
        for first in range(0, len(pending), drawer.batch):
            chunk = pending[first : first + drawer.batch]
            kept: set[int] = set()
            for candidate, accepted in drawer.draw(chunk, turn):
                line, files = maker.make(candidate, hashes[candidate.site.good], accepted=accepted)
                writer.add(line, files, partial(_shown, candidate))
                if accepted:
                    kept.add(candidate.number)
            rejected += [(number, site) for number, site in chunk if number not in kept]
            report("drawing", writer.written, total)
        if not rejected:
            break
        pending, total = rejected, total + len(rejected) * settings.best_of


def _shown(candidate: Candidate) -> Shown:
    drawn = candidate.drawn
    return Shown(candidate.site.good.name, candidate.good, drawn.image, drawn.mask, drawn.region)


def drawn_by(synthesizer: Synthesizer, settings: GenerateSettings) -> DrawnBy:
    """Return what draws, for the record of a set."""
    return DrawnBy(
        synthesizer.manifest,
        synthesizer.head,
        synthesizer.backend,
        synthesizer.backend_reason,
        synthesizer.precision,
        settings,
    )


def _check_sites(
    synthesizer: Synthesizer, sites: Sequence[Site], settings: GenerateSettings, report: Report
) -> SiteChecks:
    """Raise unless every site can be drawn on."""
    checks = SiteChecks(synthesizer, settings.texts)
    different = list(dict.fromkeys(sites))  # lines that are used several times are checked once
    for count, site in enumerate(different, 1):
        checks.check(site)
        report("checking images", count, len(different))
    return checks


def support_in_test(dataset: Dataset, head: SynthHead, report: Report) -> int:
    """Return how many of the support images are in the test split, compared by content."""
    support = {image.sha256 for image in head.support}
    if not support:
        return 0
    hashes = hash_contents(
        (s.path for s in dataset.test), lambda count, total: report("reading test images", count, total)
    )
    return len(support & set(as_recorded(hashes, support).values()))
