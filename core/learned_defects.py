"""What a detector has learned of labelled defects: for the record of its run, its bundle, and whoever evaluates it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from flawscope.ranges import Count

Fraction = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]


class DefectSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One source of labelled defects.

    Attributes:
        name: `support`, `drawn`, `train` or `procedural`.
        share: Its share of the anomalous images in a batch.
        types: CATEGORY/DEFECT -> images of that defect type; empty for procedural anomalies, which are of none.
        drawn_by: What drew the images (`diffusion`, `paste`, `perlin`) -> how many; empty for real ones.
        digest: SHA-256 over the content of images and labels; empty for procedural anomalies.
    """

    name: str
    share: Fraction
    types: dict[str, Count]
    drawn_by: dict[str, Count] = {}
    digest: str = ""

    @property
    def images(self) -> int:
        """Number of images; 0 for anomalies that are drawn anew."""
        return sum(self.types.values())


class LearnedDefects(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The labelled defects of a training.

    Attributes:
        sources: Where they come from.
        in_test: Images of the dataset's test split that were learned from, probably show the same part as one, or that
            defects were drawn on: figures on them say nothing of new parts.
    """

    sources: tuple[DefectSource, ...]
    in_test: Count = 0

    @property
    def types(self) -> dict[str, int]:
        """CATEGORY/DEFECT -> images of that defect type, of all sources."""
        counts: dict[str, int] = {}
        for source in self.sources:
            for name, count in source.types.items():
                counts[name] = counts.get(name, 0) + count
        return counts


def describe_defects(defects: LearnedDefects) -> str:
    """Return a line that says what was learned from, and that test images were among it if they were."""
    parts = [
        f"{source.images} {source.name} ({', '.join(f'{name} {count}' for name, count in source.types.items())})"
        if source.types
        else "anomalies drawn anew for each batch"
        for source in defects.sources
    ]
    leak = (
        f"; {defects.in_test} images of the test split were seen, and are left out of figures"
        if defects.in_test
        else ""
    )
    return f"{'; '.join(parts)}{leak}"
