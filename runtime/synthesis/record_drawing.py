"""Records of a run of `synth generate`: which site each has, and how the candidates of some of them are drawn.

All of a drawing is a function of the settings, the record's number and the round: its seed is
seed + drawing x records + number, whatever was drawn before it, and the images in its batch are the records beside it
in the round. That is why rounds can be drawn in shards, by several processes, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.bundle import SynthHead
from flawscope.datasets.defects.box_sets import shares
from flawscope.datasets.defects.seeded_choice import check_seed
from flawscope.datasets.fingerprints import content_hash
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.runtime.synthesis.candidates import Candidate, is_better, is_kept, score_of
from flawscope.runtime.synthesis.draw_options import DrawOrder, GenerateSettings, Texts
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips
from flawscope.runtime.synthesis.sites import Site
from flawscope.runtime.synthesis.synthesizer import Synthesizer


def check_distance(settings: GenerateSettings, *, is_given: bool) -> None:
    """Raise ArgumentError unless there are weights of LPIPS just where candidates are compared by it."""
    if is_given != (settings.best_by == "lpips"):
        got, wanted = ("some", "no weights of LPIPS") if is_given else ("none", "weights of LPIPS")
        raise ArgumentError(f"best_by: expected {wanted} with {settings.best_by}, got {got}.")


def check_seeds(settings: GenerateSettings, records: int) -> None:
    """Raise ArgumentError if a seed that the run may use is out of range: now, and not in the last round."""
    check_seed(settings.seed + records * settings.rounds * settings.best_of)


def sites_of_records(sites: Sequence[Site], settings: GenerateSettings) -> list[Site]:
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


class SiteChecks:
    """Checks sites before they are drawn on, each once.

    Attributes:
        hashes: Normal image -> SHA-256 of its bytes, of the sites that were checked.
        fitted: Sites whose masks are resized to their images.
    """

    def __init__(self, synthesizer: Synthesizer, texts: Texts) -> None:
        self.hashes: dict[Path, str] = {}
        self.fitted: set[Site] = set()
        self._synthesizer, self._texts = synthesizer, texts
        self._support = learned_images(synthesizer.head)

    def check(self, site: Site) -> None:
        """Check a site.

        Raises:
            ArgumentError: If the bundle does not draw its defect or cannot take its text.
            DataError: If a file cannot be read, the mask is empty or not of its image's size, or the normal image is
                one that the bundle has learned a defect from.
        """
        if (text := text_of(self._synthesizer, site, self._texts)) is not None:
            self._synthesizer.check_text(site.key, text)
        if site.good not in self.hashes:
            self.hashes[site.good] = content_hash(site.good)
        # By content: the same image under another name would be a defect drawn on a defect.
        if (content := self.hashes[site.good]) in self._support:
            raise DataError(
                f"{site.good}: expected a normal image, got one that the bundle learned {self._support[content]} from. "
                "Take its line out."
            )
        size = read_image(site.good).shape[:2]
        site.read_mask(size)
        if site.is_fitted and read_mask(site.mask).shape != size:
            self.fitted.add(site)


def learned_images(head: SynthHead) -> dict[str, str]:
    """Return the SHA-256 of each support image that a bundle learned from -> CATEGORY/DEFECT."""
    return {image.sha256: f"{image.category}/{image.defect}" for image in head.support}


def text_of(synthesizer: Synthesizer, site: Site, texts: Texts) -> str | None:
    """Return the text that a site is drawn with; None for one of the bundle's."""
    is_learned = synthesizer.find_defect(site.key).vectors is not None
    return None if texts == "bundle" or (texts == "auto" and is_learned) else site.text


class RecordDrawer:
    """Draws the records of a run.

    Args:
        synthesizer: The bundle.
        settings: Settings of the run.
        records: How many records the run has.
        distance: Compares candidates where `settings.best_by` is `lpips`.

    Attributes:
        batch: Records that are drawn at once; of a round, the first `batch` ones, then the next.

    Raises:
        ArgumentError: If the bundle cannot draw a batch of the settings' size.
    """

    def __init__(
        self, synthesizer: Synthesizer, settings: GenerateSettings, records: int, distance: MaskedLpips | None
    ) -> None:
        self.batch = synthesizer.max_batch if settings.batch is None else settings.batch
        synthesizer.check_batch(self.batch)
        self._synthesizer, self._settings, self._records, self._distance = synthesizer, settings, records, distance

    def draw(self, chunk: Sequence[tuple[int, Site]], turn: int) -> Iterator[tuple[Candidate, bool]]:
        """Draw a batch of records and yield all candidates, and whether each is kept, in the order they are written in.

        Args:
            chunk: Number and site of each record, at most `batch`.
            turn: Number of the round, from 0.
        """
        bits = self._synthesizer.manifest.input.bits
        # Images are read a batch at a time: those of a whole run would not fit in memory.
        goods = [read_image(site.good, bits) for _, site in chunk]
        sources = [(good, site.read_mask(good.shape[:2])) for good, (_, site) in zip(goods, chunk, strict=True)]
        best: list[Candidate] = []
        for take in range(self._settings.best_of):
            found = self._draw_once(chunk, sources, turn * self._settings.best_of + take)
            if not best:
                best = found
                continue
            for index, (old, new) in enumerate(zip(best, found, strict=True)):
                winner, loser = (new, old) if is_better(new, old, self._settings) else (old, new)
                best[index] = winner
                # At once, and not at the end: of large images only two of each record are in memory.
                yield loser, False
        for candidate in best:
            yield candidate, is_kept(candidate.drawn.verdict, self._settings)

    def _draw_once(
        self, chunk: Sequence[tuple[int, Site]], sources: Sequence[tuple[UInt8Array, BoolArray]], drawing: int
    ) -> list[Candidate]:
        settings = self._settings
        # By the record's number and not by its position in the chunk: neither the batch nor which other records were
        # rejected may change an image. Drawings of a record are `records` apart, so no seed is used twice.
        orders = [
            DrawOrder(
                good,
                mask,
                site.key,
                text_of(self._synthesizer, site, settings.texts),
                settings.seed + drawing * self._records + number,
            )
            for (good, mask), (number, site) in zip(sources, chunk, strict=True)
        ]
        drawn = self._synthesizer.draw(orders, settings.options, batch=self.batch)
        return [
            Candidate(number, site, drawing + 1, good, one, score_of(one, good, settings, self._distance))
            for (number, site), (good, _), one in zip(chunk, sources, drawn, strict=True)
        ]
