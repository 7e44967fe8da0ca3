"""Seeded choices among samples that stay the same when files are copied elsewhere or listed in another order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flawscope.datasets.samples import Sample, in_order
from flawscope.errors import ArgumentError


def in_seeded_order(samples: Iterable[Sample], seed: int) -> list[Sample]:
    """Return samples shuffled by the SHA-256 of the seed and their file names.

    Unlike a generator's shuffle this is the same in every version of every library, and a picture that is added to
    or taken from the set leaves the order of the others alone.
    """

    def key(sample: Sample) -> tuple[str, str]:
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
    """Set some samples apart, for the calibration of thresholds on pictures that training has not seen.

    Args:
        samples: The samples to split, in any order.
        share: The part of the samples to hold out, above 0 and below 1.
        minimum: Hold out at least so many, even where the share is fewer ...
        seed: Another seed chooses other samples.
        hashes: Content hashes; where they are given, samples of equal content stay on one side, and a few samples
            fewer than asked for may be held out.

    Returns:
        The samples to keep and those held out, each in the order of a dataset. Never more than half are held out,
        whatever `share` and `minimum` say.

    Raises:
        ArgumentError: If `share` or `minimum` is out of range, or a sample has no hash.
    """
    if not 0 < share < 1:
        raise ArgumentError(f"share: expected a fraction above 0 and below 1, got {share}.")
    if minimum < 0:
        raise ArgumentError(f"minimum: expected 0 samples or more, got {minimum}.")
    count = min(max(round(share * len(samples)), minimum), len(samples) // 2)
    held_out: set[Sample] = set()
    for group in _groups(in_seeded_order(samples, seed), hashes):
        if len(held_out) + len(group) <= count:
            held_out.update(group)
    return in_order(s for s in samples if s not in held_out), in_order(held_out)


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
