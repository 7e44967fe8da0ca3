"""Sites of a mask set: every normal image with a few of its masks, for each defect type.

Source: AnoGen (ECCV 2024), `generate.sh`. Departures: the masks of an image are different ones, where the reference may
draw the same mask twice; the choice depends on the seed and names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flawscope.datasets import Dataset, Sample
from flawscope.datasets.defects.file_names import category_of, place_of
from flawscope.datasets.defects.mask_set_reading import MaskSet, SetMask, read_mask_set
from flawscope.datasets.defects.seeded_choice import check_count, generator
from flawscope.errors import ArgumentError, DataError
from flawscope.runtime.synthesis.sites import Site

MASKS_PER_IMAGE = 2
"""Masks per normal image and defect type, AnoGen's."""


class MaskSites:
    """The sites that a mask set and a dataset make.

    Args:
        folder: The mask set; see `flawscope.datasets.defects.mask_set_reading`.
        dataset: Its normal training images are drawn on.

    Attributes:
        hashes: SHA-256 of the set's record, by its name.

    Raises:
        DataError: If the folder has no masks of the dataset's categories.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._folder, self._dataset = folder, dataset
        self._goods: dict[str, list[Sample]] = {}
        for sample in dataset.train_good:
            self._goods.setdefault(category_of(dataset, sample), []).append(sample)
        stems = {name: {sample.path.stem for sample in samples} for name, samples in self._goods.items()}
        masks: MaskSet = read_mask_set(folder, stems)
        self._masks, self.hashes = masks.masks, masks.hashes

    def choose(
        self,
        learned: Sequence[str],
        draws: Callable[[str], bool],
        defects: Sequence[str] = (),
        per_image: int = MASKS_PER_IMAGE,
        seed: int = 0,
    ) -> tuple[list[Site], dict[str, str]]:
        """Return the sites, and CATEGORY/DEFECT -> why nothing is drawn of it.

        Args:
            learned: What the bundle has learned to draw, as CATEGORY/DEFECT: the types of masks that are for any type.
            draws: Whether the bundle draws CATEGORY/DEFECT.
            defects: Defect types to draw; empty for all that the set has masks of and the bundle draws.
            per_image: Masks of each image for each type; used again where there are fewer.
            seed: Seed of the choice.

        Raises:
            ArgumentError: If a defect type has no masks, or the number is out of range.
            DataError: If the bundle draws none of the set's types.
        """
        check_count(per_image, "per_image", 1, 100_000)
        passed_over: dict[str, str] = {}
        sites: list[Site] = []
        types = {category: self._types(category, learned, defects) for category in self._goods}
        every = sorted({name for names in types.values() for name in names})
        if unknown := [name for name in defects if name not in every]:
            raise ArgumentError(
                f"defect: expected defect types of the masks ({', '.join(every) or 'none'}), got {unknown[0]!r}."
            )
        for category, names in types.items():
            for name in names:
                key = f"{category}/{name}"
                if defects and name not in defects:
                    continue
                # Who names a type gets it, or the bundle's own error.
                if not defects and not draws(key):
                    passed_over[key] = "the bundle does not draw it"
                    continue
                made = self._sites(category, name, per_image, seed)
                if not made:
                    passed_over[key] = "no normal image has a mask"
                sites += made
        if not sites:
            got = ", ".join(passed_over) or ", ".join(every) or "none"
            drawn = f" of {', '.join(sorted(learned))}" if learned else ""
            raise DataError(
                f"{self._folder}: expected masks for images of the dataset{drawn}, which the bundle draws, got those "
                f"of {got}. Name the mask set, or the bundle, of this product."
            )
        return sites, passed_over

    def _types(self, category: str, learned: Sequence[str], defects: Sequence[str]) -> list[str]:
        of_category = [mask for mask in self._masks if mask.category == category]
        names = {mask.defect for mask in of_category if mask.defect is not None}
        if any(mask.defect is None for mask in of_category):
            names |= {key.partition("/")[2] for key in learned if key.startswith(f"{category}/")} | set(defects)
        return sorted(names)

    def _sites(self, category: str, defect: str, per_image: int, seed: int) -> list[Site]:
        by_stem: dict[str | None, list[SetMask]] = {}
        for mask in self._masks:
            if mask.category == category and mask.defect in (None, defect):
                by_stem.setdefault(mask.stem, []).append(mask)
        sites = []
        for sample in self._goods[category]:
            place = place_of(self._dataset, sample.path)
            masks = [*by_stem.get(sample.path.stem, ()), *by_stem.get(None, ())]
            # One generator per image, by names: another image or type changes no other choice.
            order = generator(seed, "masks of", category, defect, place).permutation(len(masks)).tolist()
            for number in range(per_image if masks else 0):
                mask = masks[order[number % len(masks)]]
                file = self._folder / mask.place
                sites.append(Site(category, defect, sample.path, place, file, mask.place, is_fitted=True))
        return sites
