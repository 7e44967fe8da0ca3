"""What the downstream benchmark is tested on: real images, without any that a training or a drawing has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawscope.arrays import BoolArray
from flawscope.calibration.evaluation.paired_differences import Truth
from flawscope.config import LabelledConfig
from flawscope.datasets import Dataset, Sample, as_recorded, content_hash, fingerprint, hash_contents
from flawscope.datasets.defects.anomalous_samples import AnomalousSample
from flawscope.datasets.defects.drawn_set import LINES, DrawnImage, read_drawn, read_learned, shown_by
from flawscope.datasets.defects.file_names import category_of, place_of
from flawscope.datasets.defects.support_set import SupportRecord, exclude_support, find_support
from flawscope.errors import DataError
from flawscope.imaging.images import Preprocessing, prepare_mask
from flawscope.progress import Progress


@dataclass(frozen=True)
class DefectImages:
    """Synthetic and support images of one defect type.

    Attributes:
        drawn: Files of the accepted synthetic images, in the order in which they were drawn.
        support: Path of every support image relative to the dataset's root -> its file.
    """

    drawn: tuple[Path, ...]
    support: dict[str, Path]


@dataclass(frozen=True)
class UtilityData:
    """Test images of a benchmark, and what its arms learn from.

    Attributes:
        samples: All test images, in the dataset's order.
        truth: Labels and masks of the test images.
        is_clean: Bool [N], test images that no drawing and no training has seen.
        is_taught: Bool [N], test images of a defect type that the support set or a drawn set has.
        types: Those types, as the dataset names them.
        left_out: Path of a test image relative to the dataset's root -> why it is not clean.
        entries: The images of the support set.
        drawn: The accepted drawn images of all arms, of the types that are to be learned.
        defects: Defect type of drawn images -> its images; with the category where the dataset has several.
        hashes: Content hash of every image of the dataset.
        counts: Numbers of images, for the record.
        notes: Limits of the result, a sentence each.
        dataset: Fingerprint of the dataset.
        support: SHA-256 over the content of the support images and their masks.
        folders: Folder of drawn images -> SHA-256 of its lines, which have the hash of every image.
    """

    samples: tuple[Sample, ...]
    truth: Truth
    is_clean: BoolArray
    is_taught: BoolArray
    types: tuple[str, ...]
    left_out: dict[str, str]
    entries: tuple[AnomalousSample, ...]
    drawn: tuple[DrawnImage, ...]
    defects: dict[str, DefectImages]
    hashes: dict[Path, str]
    counts: dict[str, int]
    notes: tuple[str, ...]
    dataset: str
    support: str
    folders: dict[Path, str]


def read_utility_data(
    config: LabelledConfig, dataset: Dataset, support: SupportRecord, folders: Sequence[Path], progress: Progress
) -> UtilityData:
    """Read all images of a benchmark.

    Test images that have been seen are not clean: support images, near duplicates of them, and normal images that
    defects were drawn on, by any of the folders, accepted or not.

    Args:
        config: Settings of the detector.
        dataset: The real dataset.
        support: The support set that all drawings were made from.
        folders: Folders of drawn images.
        progress: Called with what is being done.

    Raises:
        DataError: If images are missing or broken, or a folder was drawn from another support set.
    """
    names = {category_of(dataset, sample) for sample in dataset.samples}
    drawn = [line for folder in folders for line in _read_drawn(folder, support, names)]
    wanted = config.labelled.defects
    accepted = tuple(line for line in drawn if line.accepted and _is_learned(line.category, line.defect, wanted))
    hashes = hash_contents(
        (sample.path for sample in dataset.samples), lambda finished, total: progress("hashing images", finished, total)
    )
    left_out = _left_out(dataset, support, drawn, hashes)
    samples = dataset.test
    # Masks at the size of the network: figures are measured there, not on maps enlarged to every photograph.
    truth, lost_masks = _truth(samples, config.preprocessing)
    is_clean = np.array([place_of(dataset, sample.path) not in left_out for sample in samples], np.bool_)
    _check_test(dataset, truth.select(is_clean))
    entries = tuple(find_support(dataset, support))
    is_taught = _find_taught(dataset, support, accepted, wanted)
    untaught = Counter(
        sample.defect
        for sample, clean, known in zip(samples, is_clean, is_taught, strict=True)
        if clean and sample.is_anomalous and not known
    )
    return UtilityData(
        samples=samples,
        truth=truth,
        is_clean=is_clean,
        is_taught=is_taught,
        types=tuple(sorted({sample.defect for sample, known in zip(samples, is_taught, strict=True) if known})),
        left_out=left_out,
        entries=entries,
        drawn=accepted,
        defects=_by_defect(accepted, entries, is_only_category=len(names) == 1),
        hashes=hashes,
        counts={
            "support": len(entries),
            "synthetic": len(accepted),
            **_count_test(truth, is_clean),
            "test_taught": int((is_taught & is_clean).sum()),
            "left_out": len(left_out),
            "rejected": sum(not line.accepted for line in drawn),
        },
        notes=_limits(lost_masks, untaught),
        dataset=fingerprint(dataset, hashes),
        support=support.digest,
        folders={folder: content_hash(folder / LINES) for folder in folders},
    )


def _find_taught(
    dataset: Dataset, support: SupportRecord, accepted: Sequence[DrawnImage], wanted: Sequence[str]
) -> BoolArray:
    """Return which test images are of a defect type that some arm learns."""
    real = [image for image in support.pictures if _is_learned(image.category, image.defect, wanted)]
    taught = {f"{image.category}/{image.defect}" for image in real}
    taught |= {f"{line.category}/{line.defect}" for line in accepted}
    # A dataset of all categories names its types CATEGORY/DEFECT already, one of a single category does not.
    return np.array(
        [
            sample.is_anomalous and bool(taught & {sample.defect, f"{dataset.category}/{sample.defect}"})
            for sample in dataset.test
        ],
        np.bool_,
    )


def _is_learned(category: str, defect: str, wanted: Sequence[str]) -> bool:
    return not wanted or bool({defect, f"{category}/{defect}"} & set(wanted))


# ---- What is learned from --------------------------------------------------------------------------------------------


def _read_drawn(folder: Path, support: SupportRecord, names: Collection[str]) -> list[DrawnImage]:
    """Return the drawn images of these categories, rejected ones included, if they belong to the support set."""
    # With another support set, images the drawings were made from would stay in the test.
    made_from = read_learned(folder)
    if missing := made_from - support.contents:
        raise DataError(
            f"support set: expected the one that {folder} was drawn from, got one without {len(missing)} of its "
            f"{len(made_from)} images. Name the right one with --support."
        )
    drawn = [line for line in read_drawn(folder, with_rejected=True) if line.category in names]
    if not any(line.accepted for line in drawn):
        raise DataError(
            f"{folder}: expected accepted images of {', '.join(sorted(names))}, got none. Draw more, or name another "
            "folder."
        )
    return drawn


def _limits(lost_masks: int, untaught: Mapping[str, int]) -> tuple[str, ...]:
    """Return a sentence with a number for everything that limits the result."""
    numbers = {
        "test images without pixel truth, whose defect vanishes at this size": lost_masks,
        f"test images of defect types that no arm was taught ({', '.join(sorted(untaught))})": sum(untaught.values()),
    }
    return tuple(f"{text}: {number}" for text, number in numbers.items() if number)


def _left_out(
    dataset: Dataset, support: SupportRecord, drawn: Sequence[DrawnImage], hashes: dict[Path, str]
) -> dict[str, str]:
    """Return the contaminated test images, with the reason.

    They are matched by content: a copy under another name would be contaminated as well.
    """
    _, places = exclude_support(dataset, support)
    duplicates = {duplicate.content: f"probably the same part as {duplicate.like}" for duplicate in support.alike}
    # Rejected drawings count too: the generator was shown their normal images all the same.
    shown = shown_by(drawn)
    of_support, of_drawn = as_recorded(hashes, support.learned), as_recorded(hashes, shown)
    left_out = {}
    for sample in dataset.test:
        place, content = place_of(dataset, sample.path), of_support[sample.path]
        if place in places:
            left_out[place] = "a support image" if content in support.contents else duplicates[content]
        elif (content := of_drawn[sample.path]) in shown:
            left_out[place] = shown[content]
    return left_out


def _by_defect(
    drawn: Sequence[DrawnImage], entries: Sequence[AnomalousSample], *, is_only_category: bool
) -> dict[str, DefectImages]:
    """Return the images of every defect type that was drawn, by its name, without the category if there is only one."""
    files: dict[tuple[str, str], list[Path]] = {}
    for line in drawn:
        files.setdefault((line.category, line.defect), []).append(line.path)
    defects = {}
    for category, defect in sorted(files):
        support = {
            entry.place: entry.sample.path for entry in entries if (entry.category, entry.defect) == (category, defect)
        }
        name = defect if is_only_category else f"{category}/{defect}"
        defects[name] = DefectImages(tuple(files[category, defect]), support)
    return defects


# ---- What is tested on -----------------------------------------------------------------------------------------------


def _truth(samples: Sequence[Sample], spec: Preprocessing) -> tuple[Truth, int]:
    """Return labels and masks of the test images at the prepared size, and how many masks became empty by it."""
    # Empty for normal images and where there is no mask: `Truth.use` tells the two apart by the labels.
    masks = np.zeros((len(samples), *spec.size), np.bool_)
    lost_masks = 0
    for index, sample in enumerate(samples):
        mask = sample.read_mask() if sample.is_anomalous else None
        if mask is not None:
            masks[index] = prepare_mask(mask, spec)
            lost_masks += bool(mask.any() and not masks[index].any())
    return Truth(np.array([sample.is_anomalous for sample in samples], np.bool_), masks), lost_masks


def _count_test(truth: Truth, is_clean: BoolArray) -> dict[str, int]:
    return {
        "test": int(is_clean.sum()),
        "test_defective": int((truth.labels & is_clean).sum()),
        "test_without_mask": int((~truth.use & is_clean).sum()),
    }


def _check_test(dataset: Dataset, clean: Truth) -> None:
    normal, anomalous = int((~clean.labels).sum()), int((clean.labels & clean.use).sum())
    if not normal or not anomalous:
        raise DataError(
            f"{dataset.root}: expected normal and anomalous test images with masks, apart from the support set and the "
            f"images drawn on, got {normal} normal and {anomalous} anomalous ones. Add some."
        )
