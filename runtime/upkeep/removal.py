"""`bundle bank remove` and `prune`: rows are taken out of the memory bank of an exported bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawscope.arrays import BoolArray, Int64Array
from flawscope.bank_names import bank_names, place_names
from flawscope.bundle import AddedRows, Additions, ImageHashes, Manifest, making, trusted_bundle
from flawscope.cpp_ext import kcenter_greedy
from flawscope.cpp_ext.window_coreset import PLACE_COLUMNS, select_for_window
from flawscope.datasets import as_recorded, hash_contents
from flawscope.errors import ArgumentError
from flawscope.files import check_replaceable
from flawscope.progress import Progress, no_progress
from flawscope.runtime.upkeep.bank_rows import TRAINED, BankRows
from flawscope.runtime.upkeep.changed_bundle import Change, Source, state_with, states, write_changed, write_state


@dataclass(frozen=True)
class Removal:
    """What a removal or a pruning did.

    Attributes:
        manifest: The manifest as written.
        images: Images whose rows were taken out.
        before: Rows of each bank before.
        after: Rows of each bank afterwards.
        restored: Whether it is the bundle of before the addition, every file as it was.
    """

    manifest: Manifest
    images: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    restored: bool = False


@making()
def remove_images(
    path: Path,
    out: Path,
    *,
    number: int | None = None,
    images: Sequence[Path] = (),
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> Removal:
    """Take images that were added out of the memory bank of a bundle; the bundle itself stays as it is.

    Where what is left is what the bundle had before some addition, the result is that earlier bundle: every file and
    the thresholds as they were. Else it is a bank that has never had them, without thresholds.

    Args:
        path: The bundle.
        out: Bundle folder to write.
        number: Number of the addition to take out.
        images: Or single images that were added, as files.
        command: The command line, for the record.
        progress: Receives progress.
        overwrite: Whether an earlier bundle at `out` may be replaced.

    Raises:
        ArgumentError: If there is no such addition, or an image was not added.
        BundleError: If the bundle has no memory bank of rows, is broken, or the changed one does not reproduce itself.
        StorageError: If the new bundle cannot be written.
    """
    if (number is None) == (not images):
        raise ArgumentError("bank remove: expected the number of an addition or images, got both or neither.")
    check_replaceable(out, "manifest.json", overwrite=overwrite)
    with trusted_bundle(path) as bundle:
        source = Source.of(bundle)
        additions = source.additions
        if number is None:
            gone = _named(path, source, images, progress)
        else:
            gone = [index for index, added in enumerate(additions.numbers) if added == number]
            if not gone:
                has = ", ".join(map(str, sorted(set(additions.numbers)))) or "none"
                raise ArgumentError(
                    f"{path}: expected the number of an addition that can be taken out ({has}), got {number}. See "
                    "flawscope bundle info."
                )
        rows = source.rows.only([~np.isin(origin, gone) for origin in source.rows.origins])
        first = min(additions.numbers[index] for index in gone)
        stays = [index for index in range(len(additions.images)) if index not in set(gone)]
        state = state_with(source, [additions.images[index] for index in stays])
        if state is not None:
            manifest = write_state(source, state, rows, out, overwrite=overwrite)
            return Removal(manifest, len(gone), source.rows.counts, rows.counts, restored=True)
        change = _change(source, rows, stays, gone, first, command)
        manifest = write_changed(source, change, out, overwrite=overwrite)
        return Removal(manifest, len(gone), source.rows.counts, rows.counts)


def _named(path: Path, source: Source, images: Sequence[Path], progress: Progress) -> list[int]:
    """Return the indices of added images by their files."""
    pixels = hash_contents(images, lambda done, total: progress("comparing images", done, total))
    index = {content: at for at, content in enumerate(source.additions.images)}
    learned = as_recorded(pixels, source.hashes.training)
    for image in images:
        if pixels[image] in index:
            continue
        if pixels[image] in source.additions.pruned:
            why = "was added before the bank was pruned: which rows came from it is not known any more"
        elif learned[image] in source.hashes.training:
            why = "was learned in training: train again without it"
        else:
            why = "is none of them"
        raise ArgumentError(f"{path}: expected images that were added to its bank, got {image}, which {why}.")
    return sorted({index[pixels[image]] for image in images})


def _change(
    source: Source, rows: BankRows, stays: Sequence[int], gone: Sequence[int], first: int, command: str
) -> Change:
    """Return what becomes of a bundle without some of its added images."""
    additions = source.additions
    # Images get new indices: those that stay move together.
    index = np.full(len(additions.images) + 1, TRAINED, np.int64)  # the last entry is for TRAINED itself
    index[list(stays)] = np.arange(len(stays))
    rows = rows.with_origins([index[origin] for origin in rows.origins])
    left = {additions.images[at] for at in gone}
    return Change(
        what="removed",
        command=command,
        images=len(gone),
        rows=rows,
        additions=Additions(
            tuple(additions.images[at] for at in stays),
            tuple(additions.numbers[at] for at in stays),
            rows.added_rows(),
            additions.pruned,
        ),
        hashes=ImageHashes(
            tuple(content for content in source.hashes.training if content not in left), source.hashes.held_out
        ),
        # One can go back behind additions that are whole, and behind the first that is not.
        kept=frozenset(number for number in states(source.bundle) if number <= first),
        manifest=source.bundle.manifest,
    )


@making()
def prune_bank(
    path: Path,
    out: Path,
    rows: int,
    *,
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> Removal:
    """Keep fewer rows in each memory bank of a bundle, those that cover all of them best; what is free becomes room.

    They are a greedy k-centre selection of the rows. Which images they came from is not known any more, so what was
    added before cannot be taken out afterwards.

    Args:
        path: The bundle.
        out: Bundle folder to write.
        rows: Rows to keep in each bank.
        command: The command line, for the record.
        progress: Receives progress.
        overwrite: Whether an earlier bundle at `out` may be replaced.

    Raises:
        ArgumentError: If no bank has so many rows, or the graph needs more.
        BundleError: If the bundle has no memory bank of rows, is broken, or the changed one does not reproduce itself.
        StorageError: If the new bundle cannot be written.
    """
    if rows < 1:
        raise ArgumentError(f"--rows: expected at least 1, got {rows}.")
    check_replaceable(out, "manifest.json", overwrite=overwrite)
    with trusted_bundle(path) as bundle:
        source = Source.of(bundle)
        counts, neighbors = source.rows.counts, source.head.neighbors
        if source.head.reweights and rows < neighbors:
            raise ArgumentError(
                f"--rows: expected at least {neighbors}, as many as the neighbours that re-weight a score, got {rows}."
            )
        if rows >= max(counts):
            raise ArgumentError(f"--rows: expected fewer than the {max(counts)} rows of the bank, got {rows}.")
        kept = [_spread(source, number, min(rows, count), progress) for number, count in enumerate(counts)]
        less = source.rows.only(kept)
        less = less.with_origins([np.full(count, TRAINED, np.int64) for count in less.counts])
        change = Change(
            what="pruned",
            command=command,
            images=0,
            rows=less,
            additions=Additions(
                banks=tuple(AddedRows((), ()) for _ in counts),
                pruned=(*source.additions.pruned, *source.additions.images),
            ),
            hashes=ImageHashes(source.hashes.training, source.hashes.held_out),
            kept=frozenset(),
            manifest=bundle.manifest,
        )
        manifest = write_changed(source, change, out, overwrite=overwrite)
        return Removal(manifest, 0, counts, less.counts)


def _spread(source: Source, number: int, count: int, progress: Progress) -> BoolArray:
    """Return which rows of a bank stay, bool [M]."""
    head, tensors = source.head, source.rows.tensors
    matrix = np.ascontiguousarray(tensors[bank_names(head.banks)[number]])

    def selecting(done: int, total: int) -> None:
        progress("choosing rows", done, total)

    kept: BoolArray = np.zeros(len(matrix), bool)
    chosen: Int64Array
    if head.window is None:
        chosen = kcenter_greedy(matrix, count, 0, selecting)
    else:
        places = tensors[place_names(head.banks)[number]]
        roomy = np.concatenate([matrix, np.zeros((len(matrix), PLACE_COLUMNS), np.float32)], axis=1)
        positions = places[:, 0] * head.grid[1] + places[:, 1]
        chosen = select_for_window(roomy, positions, head.grid, head.window, count, 0, selecting)
    kept[chosen] = True
    return kept
