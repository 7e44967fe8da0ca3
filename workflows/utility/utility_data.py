"""Training and test data of the downstream benchmark, kept disjoint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawscope.arrays import BoolArray
from flawscope.calibration.evaluation.paired_differences import Truth
from flawscope.datasets import Dataset, Sample, fingerprint, hash_contents, split_held_out
from flawscope.datasets.defects.anomalous_samples import AnomalousSample
from flawscope.datasets.defects.file_names import category_of, place_of
from flawscope.datasets.defects.set_files import read_json
from flawscope.datasets.defects.support_set import SupportRecord, exclude_support, find_support
from flawscope.errors import DataError
from flawscope.imaging.images import Preprocessing, prepare_mask, read_mask
from flawscope.progress import Progress
from flawscope.runtime.synthesis.generated_set import MARKER, GeneratedImage, GenerateRecord, read_generated
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.segmenter import Labelled, SegmenterConfig, SegmenterData

_LEAST_HELD_BACK = 2


@dataclass(frozen=True)
class DefectImages:
    """The images of one defect type.

    Attributes:
        drawn: Files of the synthetic images that are learned from, in the order in which they were drawn.
        support: Place of every support image below the dataset's root -> its file.
    """

    drawn: tuple[Path, ...]
    support: dict[str, Path]


@dataclass(frozen=True)
class UtilityData:
    """Images of both arms and of the test.

    Attributes:
        learned: What is learned from, with the synthetic images.
        test: All test images, in the dataset's order.
        samples: Their samples.
        truth: What they show.
        is_clean: Bool [N], test images that neither the generator nor a segmenter has seen anything of.
        left_out: Test image below the dataset's root -> why it is not clean.
        unseen: Defect types of the test that the support set does not have.
        defects: Defect type of synthetic images -> its images; with the category where the dataset has several.
        counts: What there is, for the record.
        notes: What limits the result.
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

    The normal images of the training split are learned from, but for a share (`validation`) that is held back; what
    was drawn on those is not learned from either. Of the test split, what the generator has seen is not clean: support
    images, images that look like the same parts, and normal images that defects were drawn on.

    Args:
        config: Settings of the segmenter.
        dataset: The real dataset.
        support: The support set that the generator has learned from.
        generated: Folder of `synth generate`.
        progress: Told what is being done.

    Raises:
        DataError: If images are missing, broken, or are not of each other.
    """
    record = read_json(generated / MARKER, GenerateRecord, "the record of drawn images")
    if missing := set(record.support) - support.contents:
        raise DataError(
            f"support set: expected the one that {record.bundle} learned from, got one without {len(missing)} of its "
            f"{len(record.support)} images. Name the right one with --support."
        )
    names = {category_of(dataset, sample) for sample in dataset.samples}
    drawn = [line for line in read_generated(generated) if line.category in names]
    hashes = hash_contents(
        (sample.path for sample in dataset.samples), lambda done, total: progress("hashing images", done, total)
    )
    left_out = _left_out(dataset, support, drawn, hashes)
    good, held_back = split_held_out(
        dataset.train_good, share=config.data.validation, minimum=_LEAST_HELD_BACK, seed=0, hashes=hashes
    )
    if not held_back:
        raise DataError(f"{dataset.root}: expected at least 2 different normal training images, got {len(good)}.")
    apart = {hashes[sample.path] for sample in held_back}
    accepted = [line for line in drawn if line.accepted]
    usable = [line for line in accepted if line.good_sha256 not in apart]
    spec = config.preprocessing
    entries = find_support(dataset, support)
    real = [(entry.sample.path, entry.read()[1]) for entry in entries]
    synthetic = [(generated / line.image.place, _label(config, generated, line)) for line in usable]
    real_kept, real_labels = _with_labels(real, spec)
    kept, labels = _with_labels(synthetic, spec)
    for what, found, where in (("support images", real_kept, dataset.root), ("accepted images", kept, generated)):
        if not found:
            raise DataError(
                f"{where}: expected {what} of {', '.join(sorted(names))} with a defect that is seen at "
                f"{spec.size[1]}x{spec.size[0]} pixels, got none. Take a larger --image-size, or other images."
            )
    samples = dataset.test
    truth, lost = _truth(samples, spec)
    is_clean = np.array([place_of(dataset, sample.path) not in left_out for sample in samples], np.bool_)
    _check_test(dataset, truth.select(is_clean))
    budget = config.data.memory_budget_mb // 4

    def images(paths: Sequence[Path]) -> ImageReader:
        return ImageReader(paths, spec, config.data.num_workers, budget, progress)

    counts = {
        "good": len(good),
        "held_back": len(held_back),
        "support": len(real_kept),
        "synthetic": len(kept),
        "test": int(is_clean.sum()),
        "test_defective": int((truth.labels & is_clean).sum()),
        "test_without_mask": int((~truth.use & is_clean).sum()),
        "left_out": len(left_out),
        "rejected": len(drawn) - len(accepted),
    }
    learned_types = {(image.category, image.defect) for image in support.pictures}
    clean_types = Counter(s.defect for s, clean in zip(samples, is_clean, strict=True) if clean and s.is_anomalous)
    known = {f"{category}/{defect}" for category, defect in learned_types}
    unseen = tuple(d for d in sorted(clean_types) if not known & {d, f"{dataset.category}/{d}"})
    notes = {
        "synthetic images not learned from, drawn on normal images that are held back": len(accepted) - len(usable),
        "synthetic images not learned from, whose defect vanishes at this size": len(usable) - len(kept),
        "support images not learned from, whose defect vanishes at this size": len(real) - len(real_kept),
        "test images without pixel truth, whose defect vanishes at this size": lost,
        f"test images of defect types that the support set does not have ({', '.join(unseen)})": (
            sum(clean_types[name] for name in unseen)
        ),
    }
    return UtilityData(
        learned=SegmenterData(
            good=images([sample.path for sample in good]),
            held_back=images([sample.path for sample in held_back]),
            real=Labelled(images(real_kept), real_labels),
            synthetic=Labelled(images(kept), labels, is_coarse=config.weak_tau is not None),
        ),
        test=images([sample.path for sample in samples]),
        samples=samples,
        truth=truth,
        is_clean=is_clean,
        left_out=left_out,
        unseen=unseen,
        defects=_by_defect(generated, usable, set(kept), entries, is_alone=len(names) == 1),
        counts=counts,
        notes=tuple(f"{text}: {number}" for text, number in notes.items() if number),
        dataset=fingerprint(dataset, hashes),
        support=support.digest,
        synthetic=_digest(text for line in usable for text in _contents(config, line)),
    )


def _left_out(
    dataset: Dataset, support: SupportRecord, drawn: Sequence[GeneratedImage], hashes: dict[Path, str]
) -> dict[str, str]:
    """Return the contaminated test images, matched by content, with the reason."""
    _, places = exclude_support(dataset, support)
    like = {one.content: f"probably the same part as {one.like}" for one in support.alike}
    under = {line.good_sha256 for line in drawn}
    found = {}
    for sample in dataset.test:
        place, content = place_of(dataset, sample.path), hashes[sample.path]
        if place in places:
            found[place] = "a support image" if content in support.contents else like[content]
        elif content in under:
            found[place] = "defects were drawn on it"
    return found


def _label(config: SegmenterConfig, folder: Path, line: GeneratedImage) -> BoolArray:
    """Return the label of a drawn image: its box where labels are weak, else its precise mask."""
    file = line.mask if config.weak_tau is None else line.box_mask
    if file is None:
        raise DataError(f"{line.image.place}: expected the masks of an accepted image, got none. Generate again.")
    return read_mask(folder / file.place)


def _by_defect(
    generated: Path,
    usable: Sequence[GeneratedImage],
    kept: Collection[Path],
    entries: Sequence[AnomalousSample],
    *,
    is_alone: bool,
) -> dict[str, DefectImages]:
    """Return the images of every defect type that was drawn, by its name, which has no category if that is alone."""
    drawn: dict[tuple[str, str], list[Path]] = {}
    for line in usable:
        if (path := generated / line.image.place) in kept:
            drawn.setdefault((line.category, line.defect), []).append(path)
    found = {}
    for category, defect in sorted(drawn):
        support = {one.place: one.sample.path for one in entries if (one.category, one.defect) == (category, defect)}
        name = defect if is_alone else f"{category}/{defect}"
        found[name] = DefectImages(tuple(drawn[category, defect]), support)
    return found


def _contents(config: SegmenterConfig, line: GeneratedImage) -> tuple[str, ...]:
    file = line.mask if config.weak_tau is None else line.box_mask
    return (line.image.sha256, "" if file is None else file.sha256)


def _with_labels(entries: Sequence[tuple[Path, BoolArray]], spec: Preprocessing) -> tuple[list[Path], BoolArray]:
    """Return images whose label still shows something at the prepared size, and the labels, bool [N, H, W]."""
    prepared = [(path, prepare_mask(mask, spec)) for path, mask in entries]
    kept = [(path, mask) for path, mask in prepared if mask.any()]
    labels = np.zeros((len(kept), *spec.size), np.bool_)
    for index, (_, mask) in enumerate(kept):
        labels[index] = mask
    return [path for path, _ in kept], labels


def _truth(samples: Sequence[Sample], spec: Preprocessing) -> tuple[Truth, int]:
    """Return what the test images show at the prepared size, and how many lost their mask by it."""
    masks = np.zeros((len(samples), *spec.size), np.bool_)
    lost = 0
    for index, sample in enumerate(samples):
        mask = sample.read_mask() if sample.is_anomalous else None
        if mask is not None:
            masks[index] = prepare_mask(mask, spec)
            lost += bool(mask.any() and not masks[index].any())
    return Truth(np.array([sample.is_anomalous for sample in samples], np.bool_), masks), lost


def _check_test(dataset: Dataset, clean: Truth) -> None:
    good, defective = int((~clean.labels).sum()), int((clean.labels & clean.use).sum())
    if not good or not defective:
        raise DataError(
            f"{dataset.root}: expected normal and anomalous test images with masks beside the support set and what was "
            f"drawn on, got {good} normal and {defective} anomalous ones. Add some."
        )


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()
