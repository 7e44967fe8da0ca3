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
from pathlib import Path

from flawscope.bundle import SynthHead
from flawscope.datasets import Dataset, as_recorded, hash_contents
from flawscope.datasets.defects.box_sets import shares
from flawscope.datasets.defects.seeded_choice import check_seed
from flawscope.datasets.fingerprints import content_hash
from flawscope.errors import ArgumentError, DataError
from flawscope.files import atomic_folder, check_replaceable
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.runtime.synthesis.candidates import Candidate, is_better, is_kept, score_of
from flawscope.runtime.synthesis.draw_options import DrawOrder, GenerateSettings, Texts
from flawscope.runtime.synthesis.generated_set import MARKER, GenerateRecord
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips
from flawscope.runtime.synthesis.set_writer import SetWriter
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
    if (distance is not None) != (settings.best_by == "lpips"):
        got, wanted = ("none", "weights of LPIPS") if distance is None else ("some", "no weights of LPIPS")
        raise ArgumentError(f"best_by: expected {wanted} with {settings.best_by}, got {got}.")
    check_replaceable(folder, MARKER, overwrite=overwrite)
    batch = synthesizer.max_batch if settings.batch is None else settings.batch
    synthesizer.check_batch(batch)
    tasks = list(enumerate(_sites_of_records(sites, settings)))
    # Above every seed that the run can use: one out of range must be an error now, not in the last round.
    check_seed(settings.seed + len(tasks) * settings.rounds * settings.best_of)
    hashes, fitted = _check_sites(synthesizer, [site for _, site in tasks], settings.texts, report)
    in_test = 0 if dataset is None else _support_in_test(dataset, synthesizer.head, report)
    with atomic_folder(folder, replace_if=MARKER, overwrite=overwrite) as unfinished:
        writer = SetWriter(unfinished, synthesizer, settings, hashes)
        started = time.perf_counter()
        pending, total = tasks, len(tasks) * settings.best_of
        for turn in range(settings.rounds):
            rejected: list[tuple[int, Site]] = []
            for first in range(0, len(pending), batch):
                chunk = pending[first : first + batch]
                for candidate in _best_of(synthesizer, chunk, turn, settings, len(tasks), batch, distance, writer):
                    accepted = is_kept(candidate.drawn.verdict, settings)
                    writer.add(candidate, accepted=accepted)
                    if not accepted:
                        rejected.append((candidate.number, candidate.site))
                report("drawing", len(writer.lines), total)
            if not rejected:
                break
            pending, total = rejected, total + len(rejected) * settings.best_of
        # Counted over the tasks and not over the drawings: a record that was drawn in three rounds was asked for once.
        asked_for = Counter(site.key for _, site in tasks)
        weights = {} if distance is None else distance.files
        resized = sum(site in fitted for _, site in tasks)
        record = writer.finish(asked_for, time.perf_counter() - started, in_test, lines or {}, weights, resized)
    return record


def _best_of(
    synthesizer: Synthesizer,
    chunk: Sequence[tuple[int, Site]],
    turn: int,
    settings: GenerateSettings,
    records: int,
    batch: int,
    distance: MaskedLpips | None,
    writer: SetWriter,
) -> list[Candidate]:
    """Draw the candidates of some records at once and return the best of each; the others are written as rejected."""
    bits = synthesizer.manifest.input.bits
    # Images are read a batch at a time: those of a whole run would not fit in memory.
    goods = [read_image(site.good, bits) for _, site in chunk]
    sources = [(good, site.read_mask(good.shape[:2])) for good, (_, site) in zip(goods, chunk, strict=True)]
    texts = [_text(synthesizer, site, settings.texts) for _, site in chunk]
    best: list[Candidate] = []
    for take in range(settings.best_of):
        drawing = turn * settings.best_of + take
        # By the record's number and not by its position in the chunk: neither the batch nor which other records were
        # rejected may change an image. Drawings of a record are `records` apart, so no seed is used twice.
        seeds = [settings.seed + drawing * records + number for number, _ in chunk]
        orders = [
            DrawOrder(good, mask, site.key, text, seed)
            for (good, mask), (_, site), text, seed in zip(sources, chunk, texts, seeds, strict=True)
        ]
        drawn = synthesizer.draw(orders, settings.options, batch=batch)
        found = [
            Candidate(number, site, drawing + 1, good, one, score_of(one, good, settings, distance))
            for (number, site), (good, _), one in zip(chunk, sources, drawn, strict=True)
        ]
        if not best:
            best = found
            continue
        for index, (old, new) in enumerate(zip(best, found, strict=True)):
            winner, loser = (new, old) if is_better(new, old, settings) else (old, new)
            best[index] = winner
            # At once, and not at the end: of large images only two of each record are in memory.
            writer.add(loser, accepted=False)
    return best


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
