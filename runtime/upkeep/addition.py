"""`bundle bank add`: new normal images become rows of the memory bank of an exported bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from flawscope.bundle import Additions, ImageHashes, Manifest, making, open_bundle, trusted_bundle
from flawscope.datasets import as_recorded, hash_contents
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable
from flawscope.imaging.learned_images import (
    LearnedImages,
    extend_learned,
    look_of,
    summarize_differences,
    summarize_looks,
)
from flawscope.imaging.patch_foreground import foreground_weights
from flawscope.progress import Progress, no_progress
from flawscope.runtime.image_sources import read_source_image
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.upkeep.bank_rows import NewRows
from flawscope.runtime.upkeep.changed_bundle import Change, Source, states, write_changed
from flawscope.runtime.upkeep.farthest_rows import Candidates
from flawscope.runtime.upkeep.image_patches import patches_of

_NAMED = 5
"""Images named in a message; there may be hundreds."""


@dataclass(frozen=True)
class Scored:
    """Scores of some images.

    Attributes:
        scores: float64 [N].
        threshold: The image threshold; None before calibration, and with zones, which have one each.
        notes: In what images are unlike those that the bundle has learned from.
        rejected: Which images the bundle rejects, each with the score and the threshold that decided; none before
            calibration.
        is_judged: Whether it has thresholds to reject by.
    """

    scores: tuple[float, ...]
    threshold: float | None
    notes: tuple[str, ...] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    is_judged: bool = False

    @property
    def above(self) -> int:
        """How many are above the threshold; 0 without one."""
        return 0 if self.threshold is None else sum(score > self.threshold for score in self.scores)


@dataclass(frozen=True)
class Addition:
    """What an addition did.

    Attributes:
        manifest: The manifest as written.
        number: Number of the addition, by which it is taken out again.
        images: Images that were added.
        known: Images that were left out: the bundle had learned them before, or they were given twice.
        rows: Rows that were added to each bank.
        asked: Rows that were wanted for each.
        before: Their scores by the bundle as it was.
        after: Their scores by the new one, which has learned them.
        notes: What the user has to know, a sentence each.
    """

    manifest: Manifest
    number: int
    images: int
    known: int
    rows: tuple[int, ...]
    asked: tuple[int, ...]
    before: Scored
    after: Scored
    notes: tuple[str, ...]

    @property
    def room(self) -> tuple[int, ...]:
        """Rows that each bank still has room for."""
        return () if self.manifest.upkeep is None else self.manifest.upkeep.room


@making()
def add_images(
    path: Path,
    images: Sequence[Path],
    out: Path,
    *,
    rows: int | None = None,
    all_good: bool = False,
    product: str | None = None,
    use_overlay: bool = True,
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> Addition:
    """Add normal images to the memory bank of a bundle; the bundle itself stays as it is.

    The patches farthest from the bank become rows, as in the coreset of the training. Thresholds and accuracy are of
    other scores, so the new bundle has none.

    Args:
        path: The bundle.
        images: Files of normal images.
        out: Bundle folder to write.
        rows: Most rows to add to each bank; None for as many an image as the training has kept.
        all_good: Whether all images are known to be good: also what the bundle rejects, or cannot judge, is added.
        product: Product whose own thresholds say what is rejected; None for the common ones.
        use_overlay: Whether a threshold overlay beside the bundle says what is rejected.
        command: The command line, for the record.
        progress: Receives progress.
        overwrite: Whether an earlier bundle at `out` may be replaced.

    Raises:
        ArgumentError: If there is nothing to add or no room for it, or an image is rejected that must not be.
        BundleError: If the bundle has no memory bank of rows, is broken, or the changed one does not reproduce itself.
        DataError: If an image cannot be scored.
        StorageError: If the new bundle cannot be written.
    """
    if rows is not None and rows < 1:
        raise ArgumentError(f"--rows: expected at least 1, got {rows}.")
    check_replaceable(out, "manifest.json", overwrite=overwrite)
    with trusted_bundle(path) as bundle:
        source = Source.of(bundle)
        if min(source.room) < 1:
            raise ArgumentError(
                f"{path}: expected a bundle with room for rows, got one without. Make room with flawscope bundle bank "
                "prune, or export the run again with --bank-room ROWS."
            )
        new = _unknown(images, source.hashes, progress)
        names = list(new)
        asked = _rows_of(source, len(new)) if rows is None else (rows,) * len(source.rows.counts)
        inspector = Inspector(bundle, "cpu", "kernel", use_overlay=use_overlay, product=product)
        # Not the inspector: it would close the bundle too.
        with contextlib.closing(inspector.scorer):
            before = _scored(inspector, names, progress)
            if not all_good:
                _check_accepted(path, names, before)
            chosen = _chosen(
                source, inspector, names, [min(*pair) for pair in zip(asked, source.room, strict=True)], progress
            )
        if not any(len(part.rows) for part in chosen):
            raise ArgumentError(
                f"{images[0]}: expected images with something that the bank does not have, got {len(new)} whose every "
                "patch is a row already. Nothing was written."
            )
        change = _change(source, chosen, new, command)
        manifest = write_changed(source, change, out, overwrite=overwrite)
    added = tuple(len(part.rows) for part in chosen)
    with Inspector(open_bundle(out), "cpu", "kernel", use_overlay=False) as changed:
        after = Scored(_scored(changed, names, progress).scores, before.threshold)
    known = len(images) - len(new)
    return Addition(manifest, change.number, len(new), known, added, asked, before, after, before.notes)


def _rows_of(source: Source, images: int) -> tuple[int, ...]:
    """Return the rows that so many images bring to each bank, at as many an image as the training has kept."""
    learned = len(source.hashes.training) - len(source.additions.images) - len(source.additions.pruned)
    trained = [int((origin < 0).sum()) for origin in source.rows.origins]
    return tuple(max(1, round(count / max(1, learned) * images)) for count in trained)


def _unknown(images: Sequence[Path], hashes: ImageHashes, progress: Progress) -> dict[Path, str]:
    """Return the images that the bundle has not learned, each once, with their content hashes."""
    if not images:
        raise ArgumentError("bank add: expected images, got none.")
    pixels = hash_contents(images, lambda done, total: progress("comparing images", done, total))
    recorded = as_recorded(pixels, hashes.training)
    learned, new = set(hashes.training), dict[str, Path]()
    for image in images:
        if recorded[image] not in learned:
            new.setdefault(pixels[image], image)
    if not new:
        raise ArgumentError(
            f"{images[0]}: expected images that the bundle has not learned, got {len(images)} that it has. Nothing was "
            "written."
        )
    return {path: content for content, path in new.items()}


def _scored(inspector: Inspector, images: Sequence[Path], progress: Progress) -> Scored:
    """Return the scores of images."""
    scores, notes, rejected = [], [], {}
    for number, result in enumerate(inspector.stream(images), 1):
        # A fault for want of thresholds has its score all the same.
        if result.score is None:
            reason = (result.reason or "").rstrip(".")
            raise DataError(f"{result.image}: expected an image that can be scored, got: {reason}. Remove it.")
        scores.append(result.score)
        notes.append(result.notes)
        # The decision and not the score: with zones each has its own threshold, and there is no common one.
        if result.decision == "reject":
            zone = "" if result.zone is None else f" in the zone {result.zone}"
            rejected[number - 1] = f"{result.score:.4g} > {result.threshold or 0:.4g}{zone}"
        progress("scoring images", number, len(images))
    thresholds = inspector.thresholds
    threshold = None if thresholds is None or thresholds.of_zones else thresholds.image.value
    said = (*summarize_differences(notes), *_common_notes(inspector))
    return Scored(tuple(scores), threshold, said, rejected, thresholds is not None)


def _common_notes(inspector: Inspector) -> tuple[str, ...]:
    """Return that the common thresholds judge, of a bundle that has others for the products."""
    thresholds = inspector.thresholds
    if inspector.product is not None or thresholds is None or not thresholds.by_product:
        return ()
    names = ", ".join(row.name for row in thresholds.by_product)
    return (f"The common thresholds said what is rejected; those of a product ({names}) do with --product.",)


def _check_accepted(bundle: Path, images: Sequence[Path], scored: Scored) -> None:
    """Refuse images that the bundle does not accept: one with a defect would teach it that the defect is normal."""
    if not scored.is_judged:
        raise ArgumentError(
            f"{bundle}: expected a bundle with thresholds, which says whether a defect is among the images, got one "
            "without. Set them with flawscope calibrate, or, if all images are known to be good, add --all-good."
        )
    if not scored.rejected:
        return
    worst = sorted(scored.rejected, key=lambda index: -scored.scores[index])[:_NAMED]
    named = ", ".join(f"{images[index]} ({scored.rejected[index]})" for index in worst)
    raise ArgumentError(
        f"bank add: expected images that the bundle accepts, got {len(scored.rejected)} of {len(images)} that it "
        f"rejects: {named}. A defect among them would become normal: look at them. If all are good, add them with "
        "--all-good."
    )


def _chosen(
    source: Source, inspector: Inspector, images: Sequence[Path], counts: Sequence[int], progress: Progress
) -> list[NewRows]:
    """Return the new rows of each bank; their images are indices into `images`."""
    head, tensors = source.head, source.rows.tensors
    candidates = [Candidates(head, tensors, number) for number in range(head.banks)]
    for number, image in enumerate(images):
        for patches, shown in patches_of(inspector, image, head.grid):
            if head.foreground:
                limits = tensors["foreground_limits"]
                shown = shown & (foreground_weights(patches[None], tensors["foreground"], limits, head.grid)[0] > 0)
            start = 0
            for candidate in candidates:
                stop = start + candidate.channels
                candidate.add(patches[:, start:stop], number, shown)
                start = stop
        progress("reading patches", number + 1, len(images))
    return [candidate.choose(count, progress) for candidate, count in zip(candidates, counts, strict=True)]


def _change(source: Source, chosen: Sequence[NewRows], new: Mapping[Path, str], command: str) -> Change:
    """Return what becomes of the bundle."""
    manifest, additions, hashes = source.bundle.manifest, source.additions, source.hashes
    offset = len(additions.images)
    rows = source.rows.with_added([NewRows(part.rows, part.positions, part.images + offset) for part in chosen])
    contents = tuple(new.values())
    # What had been learned before the first of the additions that can be taken out.
    first = additions.learned if additions.images else manifest.learned
    looks: tuple[LearnedImages, ...] = ()
    if first is not None:
        seen = (read_source_image(image, str(image), "rgb", manifest.input.bits) for image in new)
        looks = (*additions.looks, *(summarize_looks([look_of(*image)]) for image in seen))
    change = Change(
        what="added",
        command=command,
        images=len(contents),
        rows=rows,
        additions=additions,
        # What was held out and is learned now is held out no more; scores of cross-fitting are of other banks.
        hashes=ImageHashes(
            (*hashes.training, *contents), tuple(held for held in hashes.held_out if held not in contents)
        ),
        kept=states(source.bundle),
        manifest=msgspec.structs.replace(manifest, learned=extend_learned(first, looks)),
    )
    recorded = Additions(
        (*additions.images, *contents),
        (*additions.numbers, *(change.number for _ in contents)),
        rows.added_rows(),
        additions.pruned,
        first,
        looks,
    )
    return replace(change, additions=recorded)
