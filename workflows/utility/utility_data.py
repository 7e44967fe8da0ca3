"""Training and test images of the downstream benchmark, without anything that the generator has seen in the test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawscope.arrays import BoolArray
from flawscope.calibration.evaluation.paired_differences import Truth
from flawscope.datasets import Dataset, Sample, as_recorded, fingerprint, hash_contents, split_held_out
from flawscope.datasets.defects.anomalous_samples import AnomalousSample
from flawscope.datasets.defects.drawn_set import DrawnImage, read_drawn, read_learned
from flawscope.datasets.defects.file_names import category_of, place_of
from flawscope.datasets.defects.support_set import SupportRecord, exclude_support, find_support
from flawscope.errors import DataError
from flawscope.imaging.images import Preprocessing, prepare_mask
from flawscope.imaging.masks import read_mask
from flawscope.progress import Progress
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.segmenter import Labelled, SegmenterConfig, SegmenterData

_LEAST_HELD_BACK = 2  # a validation error, and normal pixels for the threshold of the best F1


@dataclass(frozen=True)
class DefectImages:
    """Synthetic and support images of one defect type.

    Attributes:
        drawn: Files of the synthetic images that are learned from, in the order in which they were drawn.
        support: Path of every support image relative to the dataset's root -> its file.
    """

    drawn: tuple[Path, ...]
    support: dict[str, Path]


@dataclass(frozen=True)
class UtilityData:
    """Training images of both arms, and the test images.

    Attributes:
        learned: Training images, with the synthetic ones.
        test: All test images, in the dataset's order.
        samples: Samples of the test images.
        truth: Labels and masks of the test images.
        is_clean: Bool [N], test images that neither the generator nor a segmenter has seen.
        left_out: Path of a test image relative to the dataset's root -> why it is not clean.
        unseen: Defect types of the test that the support set does not have.
        defects: Defect type of synthetic images -> its images; with the category where the dataset has several.
        counts: Numbers of images, for the record.
        notes: Limits of the result, a sentence each.
        dataset: Fingerprint of the dataset.
        support: SHA-256 over the content of the support images and their masks.
        synthetic: SHA-256 over the content of the synthetic images and their labels.
    """

    learned: SegmenterData
    test: ImageReader
    samples: tuple[Sample, ...]
    truth: Truth
    is_clean: BoolArray
    left_out: dict[str, str]
    unseen: tuple[str, ...]
    defects: dict[str, DefectImages]
    counts: dict[str, int]
    notes: tuple[str, ...]
    dataset: str
    support: str
    synthetic: str


def read_utility_data(
    config: SegmenterConfig, dataset: Dataset, support: SupportRecord, generated: Path, progress: Progress
) -> UtilityData:
    """Read all images of a benchmark.

    Normal images of the training split are learned from, except a share (`validation`) that is held back; generated
    images whose normal image is held back are left out as well. Test images that the generator has seen are not clean:
    support images, near duplicates of them, and normal images that defects were drawn on.

    Args:
        config: Settings of the segmenter.
        dataset: The real dataset.
        support: The support set that the generator has learned from.
        generated: Folder of `synth generate`.
        progress: Called with what is being done.

    Raises:
        DataError: If images are missing or broken, or the support set is not that of the generator.
    """
    names = {category_of(dataset, sample) for sample in dataset.samples}
    drawn = _read_drawn(generated, support, names)
    hashes = hash_contents(
        (sample.path for sample in dataset.samples), lambda finished, total: progress("hashing images", finished, total)
    )
    left_out = _left_out(dataset, support, drawn, hashes)
    # Seed 0 whatever the seeds of the trainings: all of them learn from the same normal images.
    good, held_back = split_held_out(
        dataset.train_good, share=config.data.validation, minimum=_LEAST_HELD_BACK, seed=0, hashes=hashes
    )
    if not held_back:
        raise DataError(f"{dataset.root}: expected at least 2 different normal training images, got {len(good)}.")
    recorded = as_recorded(hashes, {line.good_sha256 for line in drawn})
    learned = _read_learned(config, dataset, support, generated, drawn, {recorded[sample.path] for sample in held_back})
    _check_learned(config, learned, names, dataset.root, generated)
    samples = dataset.test
    # Masks at the size of the network: figures are measured there, not on maps enlarged to every photograph.
    truth, lost_masks = _truth(samples, config.preprocessing)
    is_clean = np.array([place_of(dataset, sample.path) not in left_out for sample in samples], np.bool_)
    _check_test(dataset, truth.select(is_clean))
    unseen = _unseen_types(dataset, support, is_clean)
    # The readers are open at once, so each has a part of the budget.
    budget = config.data.memory_budget_mb // 4

    def images(paths: Sequence[Path]) -> ImageReader:
        return ImageReader(paths, config.preprocessing, config.data.num_workers, budget, progress)

    return UtilityData(
        learned=SegmenterData(
            good=images([sample.path for sample in good]),
            held_back=images([sample.path for sample in held_back]),
            real=Labelled(images(learned.real.paths), learned.real.labels),
            synthetic=Labelled(
                images(learned.synthetic.paths), learned.synthetic.labels, is_coarse=config.weak_tau is not None
            ),
        ),
        test=images([sample.path for sample in samples]),
        samples=samples,
        truth=truth,
        is_clean=is_clean,
        left_out=left_out,
        unseen=tuple(unseen),
        defects=_by_defect(learned, is_only_category=len(names) == 1),
        counts={
            "good": len(good),
            "held_back": len(held_back),
            "support": len(learned.real.paths),
            "synthetic": len(learned.synthetic.paths),
            **_count_test(truth, is_clean),
            "left_out": len(left_out),
            "rejected": sum(not line.accepted for line in drawn),
        },
        notes=_limits(learned, lost_masks, unseen),
        dataset=fingerprint(dataset, hashes),
        support=support.digest,
        synthetic=_digest(text for line in learned.usable for text in _contents(config, line)),
    )


# ---- What is learned from --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Images:
    """Images whose label still shows a defect at the prepared size.

    Attributes:
        paths: Their files.
        labels: Bool [N, H, W].
        vanished: How many were left out, because their label is empty at that size.
    """

    paths: list[Path]
    labels: BoolArray
    vanished: int


@dataclass(frozen=True)
class _Learned:
    """Anomalous images that segmenters learn from.

    Attributes:
        real: Images of the support set.
        synthetic: Accepted images, without those drawn on held-back normal images.
        entries: The whole support set.
        usable: Lines of `synthetic`, with those whose label is empty.
        on_held_back: Accepted images that were drawn on held-back normal images.
    """

    real: _Images
    synthetic: _Images
    entries: Sequence[AnomalousSample]
    usable: list[DrawnImage]
    on_held_back: int


def _read_drawn(generated: Path, support: SupportRecord, names: Collection[str]) -> list[DrawnImage]:
    """Return the generated images of these categories, rejected ones included, if they belong to the support set."""
    learned = read_learned(generated)
    # With another support set, images the generator has learned from would stay in the test.
    if missing := learned - support.contents:
        raise DataError(
            f"support set: expected the one that {generated} was drawn from, got one without {len(missing)} of its "
            f"{len(learned)} images. Name the right one with --support."
        )
    return [drawn for drawn in read_drawn(generated, with_rejected=True) if drawn.category in names]


def _read_learned(
    config: SegmenterConfig,
    dataset: Dataset,
    support: SupportRecord,
    generated: Path,
    drawn: Sequence[DrawnImage],
    held_back: Collection[str],
) -> _Learned:
    """Read real and synthetic anomalous images; `held_back` are hashes of normal images that are not learned from."""
    accepted = [line for line in drawn if line.accepted]
    # A drawing shows its normal image nearly whole, so the validation error would be of images that were learned from.
    usable = [line for line in accepted if line.good_sha256 not in held_back]
    entries = find_support(dataset, support)
    real = [(entry.sample.path, entry.read()[1]) for entry in entries]
    synthetic = [(line.path, _label(config, line)) for line in usable]
    return _Learned(
        real=_with_labels(real, config.preprocessing),
        synthetic=_with_labels(synthetic, config.preprocessing),
        entries=entries,
        usable=usable,
        on_held_back=len(accepted) - len(usable),
    )


def _check_learned(
    config: SegmenterConfig, learned: _Learned, names: Collection[str], root: Path, generated: Path
) -> None:
    height, width = config.preprocessing.size
    for kind, images, folder in (
        ("support images", learned.real, root),
        ("accepted images", learned.synthetic, generated),
    ):
        if not images.paths:
            raise DataError(
                f"{folder}: expected {kind} of {', '.join(sorted(names))} with a defect that is seen at "
                f"{width}x{height} pixels, got none. Take a larger --image-size, or other images."
            )


def _unseen_types(dataset: Dataset, support: SupportRecord, is_clean: BoolArray) -> dict[str, int]:
    """Return the defect types of the clean test that the support set does not have -> their clean test images."""
    clean_types = Counter(
        sample.defect for sample, clean in zip(dataset.test, is_clean, strict=True) if clean and sample.is_anomalous
    )
    # A dataset of all categories names its types CATEGORY/DEFECT already, one of a single category does not.
    learned_types = {f"{image.category}/{image.defect}" for image in support.pictures}
    return {
        defect: count
        for defect, count in sorted(clean_types.items())
        if not learned_types & {defect, f"{dataset.category}/{defect}"}
    }


def _limits(learned: _Learned, lost_masks: int, unseen: Mapping[str, int]) -> tuple[str, ...]:
    """Return a sentence with a number for everything that limits the result."""
    numbers = {
        "synthetic images not learned from, drawn on normal images that are held back": learned.on_held_back,
        "synthetic images not learned from, whose defect vanishes at this size": learned.synthetic.vanished,
        "support images not learned from, whose defect vanishes at this size": learned.real.vanished,
        "test images without pixel truth, whose defect vanishes at this size": lost_masks,
        f"test images of defect types that the support set does not have ({', '.join(unseen)})": sum(unseen.values()),
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
    drawn_on = {line.good_sha256 for line in drawn}
    of_support, of_drawn = as_recorded(hashes, support.learned), as_recorded(hashes, drawn_on)
    left_out = {}
    for sample in dataset.test:
        place, content = place_of(dataset, sample.path), of_support[sample.path]
        if place in places:
            left_out[place] = "a support image" if content in support.contents else duplicates[content]
        elif of_drawn[sample.path] in drawn_on:
            left_out[place] = "defects were drawn on it"
    return left_out


def _label(config: SegmenterConfig, drawn: DrawnImage) -> BoolArray:
    """Return the label of a drawn image: its box where labels are weak, else its precise mask."""
    return read_mask(drawn.mask_path if config.weak_tau is None else drawn.box_mask_path)


def _by_defect(learned: _Learned, *, is_only_category: bool) -> dict[str, DefectImages]:
    """Return the images of every defect type that was drawn, by its name, without the category if there is only one."""
    with_label = set(learned.synthetic.paths)
    drawn: dict[tuple[str, str], list[Path]] = {}
    for line in learned.usable:
        if line.path in with_label:
            drawn.setdefault((line.category, line.defect), []).append(line.path)
    defects = {}
    for category, defect in sorted(drawn):
        support = {
            entry.place: entry.sample.path
            for entry in learned.entries
            if (entry.category, entry.defect) == (category, defect)
        }
        name = defect if is_only_category else f"{category}/{defect}"
        defects[name] = DefectImages(tuple(drawn[category, defect]), support)
    return defects


def _contents(config: SegmenterConfig, line: DrawnImage) -> tuple[str, ...]:
    """Return what a training depends on of a generated image: the hashes of image and label, not their names."""
    file = line.mask if config.weak_tau is None else line.box_mask
    return (line.image.sha256, "" if file is None else file.sha256)


def _with_labels(entries: Sequence[tuple[Path, BoolArray]], spec: Preprocessing) -> _Images:
    """Return the images whose label still shows a defect at the prepared size.

    Masks are resized by nearest neighbour and cropped, so a small defect may vanish. Such an image is left out, and not
    learned as one without a defect.
    """
    prepared = [(path, prepare_mask(mask, spec)) for path, mask in entries]
    visible = [(path, mask) for path, mask in prepared if mask.any()]
    labels = np.zeros((len(visible), *spec.size), np.bool_)
    for index, (_, mask) in enumerate(visible):
        labels[index] = mask
    return _Images([path for path, _ in visible], labels, len(entries) - len(visible))


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


def _digest(texts: Iterable[str]) -> str:
    # In the order of the files: another order of the same images trains other batches, and is another set.
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()
