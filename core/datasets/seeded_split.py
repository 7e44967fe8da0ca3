"""Seeded splits of samples that do not depend on where the files are or in which order they are listed."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flawscope.datasets.samples import Sample, in_order
from flawscope.errors import ArgumentError, DataError


def in_seeded_order(samples: Iterable[Sample], seed: int) -> list[Sample]:
    """Return samples shuffled by the SHA-256 of the seed and their file names.

    Unlike the shuffle of a random generator it is the same in every version of every library, and an image that is
    added or removed leaves the order of the others alone.
    """

    def key(sample: Sample) -> tuple[str, str]:
        # The name alone, not the path, so that the choice survives a move of the dataset. Not every name is UTF-8.
        name = sample.path.name.encode(errors="surrogateescape")
        return hashlib.sha256(b"%d/%s" % (seed, name)).hexdigest(), sample.path.as_posix()

    return sorted(samples, key=key)


def split_held_out(
    samples: Sequence[Sample],
    share: float = 0.1,
    minimum: int = 20,
    seed: int = 0,
    hashes: Mapping[Path, str] | None = None,
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Hold out some samples, so that thresholds are calibrated on images that training has not seen.

    In a dataset of all categories each gives its share, and at least one image if it has two and at least as many are
    held out as there are categories.

    Args:
        samples: The samples to split, in any order.
        share: Share of the samples to hold out, above 0 and below 1.
        minimum: Hold out at least this many, even if the share is fewer.
        seed: Seed of the choice.
        hashes: Content hashes. If given, samples of equal content stay on one side, so slightly fewer than requested
            may be held out.

    Returns:
        The samples to train on and those held out, each in the order of a dataset. Never more than half are held out,
        nor more than half of a category, whatever `share` and `minimum` say.

    Raises:
        ArgumentError: If `share` or `minimum` is out of range, or a sample has no hash.
    """
    if not 0 < share < 1:
        raise ArgumentError(f"share: expected a fraction above 0 and below 1, got {share}.")
    if minimum < 0:
        raise ArgumentError(f"minimum: expected 0 samples or more, got {minimum}.")
    count = min(max(round(share * len(samples)), minimum), len(samples) // 2)
    # At most half of each category, or a rare one could not be learned.
    room = {category: number // 2 for category, number in Counter(s.category for s in samples).items()}
    held_out: set[Sample] = set()
    for group in _groups(_spread(in_seeded_order(samples, seed)), hashes):
        needed = Counter(sample.category for sample in group)
        # A group that does not fit is skipped and later ones are tried; none is ever split.
        if len(held_out) + len(group) <= count and all(room[name] >= number for name, number in needed.items()):
            held_out.update(group)
            room = {name: left - needed[name] for name, left in room.items()}
    return in_order(s for s in samples if s not in held_out), in_order(held_out)


def split_folds(
    samples: Sequence[Sample], folds: int, seed: int, hashes: Mapping[Path, str]
) -> tuple[tuple[Sample, ...], ...]:
    """Deal samples to folds, so that each can be scored by a fit on the others.

    Samples of equal content are in one fold. Folds differ by at most one content, in each category as in all.

    Args:
        samples: The samples, in any order.
        folds: Number of folds; -1 for as many as there are contents.
        seed: Seed of the choice.
        hashes: Content hash of every sample.

    Returns:
        The folds, each in the order of a dataset.

    Raises:
        DataError: If there are too few contents for every fit to have two others to learn from.
        ArgumentError: If there are more folds than contents, or a sample has no hash.
    """
    groups = _groups(in_seeded_order(samples, seed), hashes)
    if len(groups) < 3:
        raise DataError(
            f"cross_fit: expected at least 3 different normal images, since each is scored by a fit on at least 2 "
            f"others, got {len(groups)}. Add images, or set cross_fit=0 and held_out=0."
        )
    count = len(groups) if folds == -1 else folds
    if not 2 <= count <= len(groups):
        raise ArgumentError(
            f"cross_fit: expected 2 to {len(groups)} folds, as there are {len(groups)} different normal images, got "
            f"{folds}. Set cross_fit=-1 for each image its own."
        )
    if len(groups) - -(-len(groups) // count) < 2:  # -(-a // b) rounds up
        raise DataError(
            f"cross_fit: expected folds that leave at least 2 different images to learn from, got {count} folds of "
            f"{len(groups)} images. Set cross_fit=-1 for each image its own, or add images."
        )
    # Category after category, in turn: dealt in another order, two categories and two folds could give a fold that has
    # all of one of them.
    groups.sort(key=lambda group: group[0].category)
    return tuple(in_order(itertools.chain.from_iterable(groups[place::count])) for place in range(count))


def _spread(samples: list[Sample]) -> list[Sample]:
    """Interleave categories, so that every prefix of the list has about the same share of each.

    The k-th of the n samples of a category is placed at (k-1)/n of the way. With one category nothing moves.
    """
    total, seen = Counter(sample.category for sample in samples), Counter[str]()
    places = []
    for sample in samples:
        places.append((seen[sample.category] / total[sample.category], sample.category))
        seen[sample.category] += 1
    return [samples[index] for index in sorted(range(len(samples)), key=places.__getitem__)]


def _groups(samples: list[Sample], hashes: Mapping[Path, str] | None) -> list[list[Sample]]:
    """Return samples of equal content together, in the order in which each content first appears."""
    if hashes is None:
        return [[sample] for sample in samples]
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.path not in hashes:
            raise ArgumentError(f"hashes: expected one for every sample, got none for {sample.path}.")
        groups.setdefault(hashes[sample.path], []).append(sample)
    return list(groups.values())
