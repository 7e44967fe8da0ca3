"""What the image files of a dataset say together: sizes, aspect ratios, bits, pages, orientation, alpha."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from flawscope.datasets.problems import Problem
from flawscope.imaging.aspect_ratios import aspect_remark, stretch_of
from flawscope.imaging.image_facts import ImageFacts

_ALIKE = 1.05
"""Aspect ratios that differ by less are the same: a row more or less is no other view."""
_USUAL_BITS = (8, 10, 12, 14)


def image_remarks(place: Path, of_what: str, facts: Sequence[tuple[Path, ImageFacts]]) -> Iterator[Problem]:
    """Yield what to know about the images of one category, none of which any single file tells.

    Args:
        place: The folder that problems of all images are put down to.
        of_what: " of CATEGORY" where the dataset has several, else empty.
        facts: Path and facts of every image that can be read.
    """
    for path, fact in facts:
        if fact.pages > 1:
            yield Problem("several_pages", path, f"has {fact.pages} pages, of which the first is used", "note")
    if not facts:
        return
    yield from _orientations(place, of_what, facts)
    if alpha := [path for path, fact in facts if fact.has_alpha]:
        text = f"has {len(alpha)} images{of_what} with alpha, such as {alpha[0].name}, which is left out"
        yield Problem("alpha", place, text, "note")
    yield from _shapes(place, of_what, Counter((fact.height, fact.width) for _, fact in facts))
    yield from _depths(place, of_what, [fact for _, fact in facts])


def _orientations(place: Path, of_what: str, facts: Sequence[tuple[Path, ImageFacts]]) -> Iterator[Problem]:
    numbers = Counter(fact.orientation for _, fact in facts)
    turned = [path for path, fact in facts if fact.orientation != 1]
    if not turned:
        return
    listed = ", ".join(f"{orientation} ({count})" for orientation, count in sorted(numbers.items()))
    text = (
        f"has {len(turned)} images{of_what}, such as {turned[0].name}, whose EXIF orientation asks to turn them; they "
        "are used as stored"
    )
    if len(numbers) == 1:
        yield Problem("exif_orientation", place, text, "note")
        return
    mixed = f", and lie otherwise than the rest: orientations {listed}. Turn the pixels and save them without the tag"
    yield Problem("mixed_orientation", place, text + mixed)


def _shapes(place: Path, of_what: str, sizes: Counter[tuple[int, int]]) -> Iterator[Problem]:
    if text := aspect_remark(sizes):
        yield Problem("aspect_ratio", place, text.replace(" images ", f" images{of_what} ", 1), "note")
    if len(sizes) < 2:
        return
    ratios = sorted(sizes, key=lambda size: size[1] / size[0])
    (tallest, widest) = (f"{width}x{height}" for height, width in (ratios[0], ratios[-1]))
    text = f"has images{of_what} of {len(sizes)} sizes"
    if stretch_of(ratios[0], ratios[-1]) > _ALIKE:
        text += f" and different aspect ratios, {tallest} to {widest}: each is stretched differently"
        yield Problem("mixed_aspect_ratios", place, text, "note")
    else:
        yield Problem("mixed_sizes", place, f"{text}: the same detail is larger in some of them", "note")


def _depths(place: Path, of_what: str, facts: Sequence[ImageFacts]) -> Iterator[Problem]:
    for kind, counts in (
        ("mixed_channels", Counter(fact.channels for fact in facts)),
        ("mixed_bits", Counter(f"{fact.bits_stored} bit" for fact in facts)),
    ):
        if len(counts) > 1:
            listed = ", ".join(f"{count} in {name}" for name, count in sorted(counts.items()))
            yield Problem(kind, place, f"has images{of_what} that are stored differently: {listed}", "note")
    deep = [fact for fact in facts if fact.bits_stored == 16]
    if not deep:
        return
    largest = max(fact.largest_value for fact in deep)
    needed = next((bits for bits in _USUAL_BITS if largest < 1 << bits), 16)
    if needed < 16:
        levels = (largest + 128) // 257 + 1
        todo = "Save them in 8 bit" if needed == 8 else f"Train with --set bits={needed}"
        text = (
            f"has {len(deep)} images{of_what} of 16 bit whose largest value is {largest}, which suggests {needed} bit "
            f"in a file of 16: {levels} of 256 levels are left. {todo}"
        )
        yield Problem("few_levels", place, text)
