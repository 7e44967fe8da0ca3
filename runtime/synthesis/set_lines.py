"""Lines of drawn images: a candidate becomes the bytes of its files and the line that describes them."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from flawscope.datasets.defects.drawn_set import StoredFile
from flawscope.imaging.png import encode_mask, encode_png
from flawscope.runtime.synthesis.candidates import Candidate
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.generated_set import GeneratedImage, RecordedOptions, runs_of
from flawscope.runtime.synthesis.synthesizer import Synthesizer


class Files(NamedTuple):
    """The files of a drawn image as PNG: the image, its precise mask, and where it was asked for."""

    image: bytes
    mask: bytes
    box_mask: bytes


class LineMaker:
    """Makes the lines of a run.

    Args:
        synthesizer: What drew.
        settings: Settings of the run.
    """

    def __init__(self, synthesizer: Synthesizer, settings: GenerateSettings) -> None:
        self._synthesizer = synthesizer
        # Resolved: a line must redraw its image even if the defaults of a later version differ.
        self._options = RecordedOptions.of(settings.options.resolved(synthesizer.head))

    def make(self, candidate: Candidate, good_sha256: str, *, accepted: bool) -> tuple[GeneratedImage, Files]:
        """Return the line of a candidate, whose files have no names yet, and those files.

        Args:
            candidate: The drawing.
            good_sha256: SHA-256 of the normal image's bytes.
            accepted: Whether it is kept.
        """
        site, drawn, manifest = candidate.site, candidate.drawn, self._synthesizer.manifest
        files = Files(encode_png(drawn.image), encode_mask(drawn.mask), encode_mask(drawn.region))
        image, mask, box_mask = (StoredFile("", hashlib.sha256(data).hexdigest()) for data in files)
        bbox, runs = runs_of(drawn.region)
        line = GeneratedImage(
            number=candidate.number,
            round=candidate.round,
            category=site.category,
            defect=site.defect,
            accepted=accepted,
            image=image,
            mask=mask,
            box_mask=box_mask,
            good=site.place,
            good_sha256=good_sha256,
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
        return line, files
