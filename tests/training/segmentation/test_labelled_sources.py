"""Sources of labelled defects: mixtures by shares, what is left out, what is recorded, and errors in one line."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_judged import SIDE, Drawing, Image, Mask, Place, part, with_textures, write_generated, write_place

from flawscope.config import LabelledSettings
from flawscope.datasets import Dataset, Sample, hash_contents, open_dataset
from flawscope.datasets.defects.support_set import read_support
from flawscope.errors import ArgumentError, DataError, FlawscopeError
from flawscope.files import sha256_file
from flawscope.imaging.images import Preprocessing, read_image
from flawscope.imaging.masks import read_mask
from flawscope.imaging.tiles import Tiling
from flawscope.learned_defects import describe_defects
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.labelled_sources import LabelledSources, open_sources
from flawscope.training.segmentation.source_reading import sources_identity

SPEC = Preprocessing((SIDE, SIDE))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_place(tmp_path_factory.mktemp("sources"))


def anomaly(image: Image, chance: np.random.Generator) -> tuple[Image, Mask]:
    """Turn a corner white: what is procedural can be told by its mask."""
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[:3, : int(chance.integers(2, 6))] = True
    image[mask] = 255
    return image, mask


def opened(place: Place, settings: dict[str, Any], held: int = 0, validated: int = 0, **more: Any) -> LabelledSources:
    """Open sources with the last `held` normal images held out, and `validated` before them for validation."""
    dataset = open_dataset(place.root)
    goods = dataset.train_good
    learned, validation = goods[: len(goods) - held - validated], goods[len(goods) - held - validated :][:validated]
    hashes = hash_contents([sample.path for sample in dataset.samples])
    spec = more.pop("spec", SPEC)
    return open_sources(LabelledSettings(**settings), spec, dataset, learned, validation, hashes, **more)


def goods_of(place: Place) -> ImageReader:
    return ImageReader([sample.path for sample in open_dataset(place.root).train_good], SPEC, 1, 64)


def pictures(place: Place, samples: Sequence[Sample]) -> set[bytes]:
    return {read_image(sample.path).tobytes() for sample in samples}


def with_training_defects(place: Place, folder: Path) -> Place:
    """Copy the dataset, with two of its anomalous test images moved to the train split."""
    root = folder / "data" / "part"
    shutil.copytree(place.root, root)
    for number in (4, 5):
        (root / "train" / "tint").mkdir(exist_ok=True)
        shutil.move(root / "test" / "tint" / f"{number:03d}.png", root / "train" / "tint" / f"{number:03d}.png")
    return place._replace(root=root)


def test_every_source_has_its_share_of_a_batch(place: Place, tmp_path: Path) -> None:
    moved = with_training_defects(place, tmp_path)
    settings = {
        "support": str(place.support),
        "drawn": (str(place.helpful), str(place.noise)),
        "train_defects": True,
        "procedural": True,
        "drawn_share": 4.0,
        "procedural_share": 2.0,
    }
    sources = opened(moved, settings, procedural=anomaly, with_originals=True)
    batch = sources.draw(2000, np.random.default_rng(0), goods_of(moved))
    counts = Counter(batch.sources)
    shares = {"support": 1 / 8, "drawn": 4 / 8, "train": 1 / 8, "procedural": 2 / 8}
    for name, share in shares.items():
        assert abs(counts[name] / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5, name  # four deviations
    assert {source.name: source.share for source in sources.record.sources} == pytest.approx(shares)
    assert batch.labels.any(axis=(1, 2)).all()
    assert not batch.is_coarse.any()
    # Real images have no original, drawn and procedural ones that of the normal image.
    named = np.array(batch.sources)
    assert (batch.has_original == np.isin(named, ("drawn", "procedural"))).all()
    normal = pictures(moved, open_dataset(moved.root).train_good)
    assert {image.tobytes() for image in batch.originals[batch.has_original]} <= normal
    assert not {image.tobytes() for image in batch.images} & normal
    # The white corner of the procedural ones is the whole of their difference.
    rows = np.flatnonzero(named == "procedural")
    for row in rows[:20]:
        assert (batch.images[row] == np.where(batch.labels[row][..., None], 255, batch.originals[row])).all()
    again = sources.draw(2000, np.random.default_rng(0), goods_of(moved))
    assert (again.images == batch.images).all()
    assert again.sources == batch.sources


def test_labels_are_those_of_the_images(place: Place) -> None:
    sources = opened(place, {"support": str(place.support), "drawn": (str(place.helpful),)})
    masks = {one.image.tobytes(): one.mask for one in place.drawings}
    masks[read_image(place.root / place.spot).tobytes()] = read_mask(
        place.root / place.spot.replace("test", "ground_truth").replace(".png", "_mask.png")
    )
    batch = sources.draw(100, np.random.default_rng(1), goods_of(place))
    for image, label in zip(batch.images, batch.labels, strict=True):
        assert (masks[image.tobytes()] == label).all()


def test_a_support_set_without_a_record_teaches_the_same(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.support, tmp_path / "train_images")
    (tmp_path / "train_images" / "support.json").unlink()
    drawn = [
        opened(place, {"support": str(folder)}).draw(20, np.random.default_rng(1), goods_of(place))
        for folder in (place.support, tmp_path / "train_images")
    ]
    assert np.array_equal(drawn[0].images, drawn[1].images)
    assert np.array_equal(drawn[0].labels, drawn[1].labels)


def test_boxes_are_labels_of_drawn_images_alone(place: Place) -> None:
    settings = {"support": str(place.support), "drawn": (str(place.helpful),), "weak_tau": 0.1}
    coarse, precise = opened(place, settings), opened(place, {**settings, "weak_tau": None})
    for with_boxes, with_masks in zip(coarse.stored, precise.stored, strict=True):
        assert with_boxes.is_coarse == (with_boxes.name == "drawn")
        grown = with_boxes.labels & ~with_masks.labels
        assert grown.any() == with_boxes.is_coarse
        assert not (with_masks.labels & ~with_boxes.labels).any()
    batch = coarse.draw(60, np.random.default_rng(2), goods_of(place))
    assert (batch.is_coarse == (np.array(batch.sources) == "drawn")).all()
    # Those that choose the best state have precise ones: it is not to fill the boxes.
    first, second = (opened(place, {**settings, "weak_tau": tau}, 0, 4).held_back for tau in (0.1, None))
    assert first is not None
    assert second is not None
    assert (first.labels == second.labels).all()
    assert not first.is_coarse


@pytest.mark.parametrize(("held", "validated"), [(0, 0), (3, 0), (0, 4), (2, 3)])
def test_nothing_that_was_drawn_on_a_held_out_image_is_learned(place: Place, held: int, validated: int) -> None:
    goods = open_dataset(place.root).train_good
    sources = opened(place, {"drawn": (str(place.helpful),)}, held, validated)
    # Two drawings lie on each normal image.
    assert len(sources.stored[0].images) == 2 * (len(goods) - held - validated)
    assert (0 if sources.held_back is None else len(sources.held_back.images)) == 2 * validated
    assert bool(held) == any(f"held-out normal images: {2 * held}" in note for note in sources.notes)
    unseen = {sample.path for sample in goods[len(goods) - held - validated :]}
    drawn_on_unseen = {one.image.tobytes() for one in place.drawings if one.good in unseen}
    batch = sources.draw(300, np.random.default_rng(0), goods_of(place))
    assert not {image.tobytes() for image in batch.images} & drawn_on_unseen


def stored_otherwise(path: Path, copy: Path) -> Path:
    """Write an image's pixels to a file of other bytes."""
    cv2.imwrite(str(copy), cv2.imread(str(path)), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    assert copy.read_bytes() != path.read_bytes()
    return copy


@pytest.mark.parametrize("validated", [0, 2])
def test_every_copy_of_a_held_out_image_is_held_out(place: Place, tmp_path: Path, validated: int) -> None:
    root = shutil.copytree(place.root, tmp_path / "data" / "part")
    goods = open_dataset(root).train_good
    # Last by its name, so that the copy is held out beside its image, as `split_held_out` keeps the two together.
    copy = stored_otherwise(goods[-1].path, goods[-1].path.with_name("zzz.png"))
    files = (goods[-1].path, copy) if validated else (copy, goods[-1].path)
    drawings = [
        Drawing("spot", *part(700 + number, "spot"), good) for number, good in enumerate((goods[0].path, *files))
    ]
    folder = write_generated(tmp_path / "drawn", root, drawings, place.seen)
    sources = opened(place._replace(root=root), {"drawn": (str(folder),)}, 0 if validated else 2, validated)
    assert len(sources.stored[0].images) == 1
    assert (0 if sources.held_back is None else len(sources.held_back.images)) == validated


def test_what_was_seen_is_known_in_files_of_other_bytes_too(place: Place, tmp_path: Path) -> None:
    dataset = open_dataset(place.root)
    of_test = next(sample for sample in dataset.test if not sample.is_anomalous)
    folder = write_generated(
        tmp_path / "drawn", place.root, [Drawing("spot", *part(900, "spot"), of_test.path)], place.seen
    )
    contents = opened(place, {"drawn": (str(folder),), "support": str(place.support)}).contents
    for seen in (of_test.path, place.root / place.spot):
        other = stored_otherwise(seen, tmp_path / "other.png")
        assert set(hash_contents([other]).values()) & contents.keys()


@pytest.mark.parametrize("tiling", [None, Tiling((16, 16), 0.0)])
def test_a_mask_of_another_size_than_its_image_is_refused(place: Place, tmp_path: Path, tiling: Tiling | None) -> None:
    support = shutil.copytree(place.support, tmp_path / "support")
    (mask,) = support.rglob("*_mask.png")
    cv2.imwrite(str(mask), cv2.resize(cv2.imread(str(mask)), (SIDE // 2, SIDE // 2)))
    with pytest.raises(DataError, match=f"expected a mask of {SIDE}x{SIDE} pixels as it has, got 16x16"):
        opened(place, {"support": str(support)}, tiling=tiling)


def test_everything_seen_that_may_be_tested_on_is_recorded(place: Place, tmp_path: Path) -> None:
    dataset = open_dataset(place.root)
    of_test = next(sample for sample in dataset.test if not sample.is_anomalous)
    drawings = [*place.drawings[:4], Drawing("spot", *part(900, "spot"), of_test.path)]
    folder = write_generated(tmp_path / "drawn", place.root, drawings, place.seen)
    sources = opened(place, {"drawn": (str(folder),)})
    assert set(sources.contents.values()) == {"a support image of drawn defects", "defects were drawn on it"}
    # The support image and the normal image: both lie in the test split.
    assert sources.record.in_test == 2
    assert "2 images of the test split were seen" in describe_defects(sources.record)
    alone = opened(place, {"support": str(place.support)})
    assert alone.contents[place.seen[0]] == "a support image"
    assert alone.record.in_test == 1
    assert alone.record.types == {"part/spot": 1}
    assert opened(place, {"procedural": True}, procedural=anomaly).record.in_test == 0


def test_a_test_image_whose_texture_was_drawn_is_recorded_and_a_training_image_is_not(
    place: Place, tmp_path: Path
) -> None:
    dataset = open_dataset(place.root)
    textures = [dataset.test[0].path, dataset.train_good[0].path, dataset.train_good[-1].path]
    folder = with_textures(place.helpful, tmp_path / "drawn", textures)
    sources = opened(place, {"drawn": (str(folder),)}, held=1)
    of_texture = {content for content, why in sources.contents.items() if why == "it is a texture of drawn defects"}
    # By its pixels as well, as an evaluation compares images.
    assert of_texture == {sha256_file(textures[0]), *hash_contents([textures[0]]).values()}
    # The texture, and the support image that the folder was drawn from.
    assert sources.record.in_test == 2


def test_rejected_drawings_are_not_learned(place: Place, tmp_path: Path) -> None:
    drawings = [place.drawings[0], place.drawings[1]._replace(accepted=False)]
    folder = write_generated(tmp_path / "drawn", place.root, drawings, place.seen)
    assert len(opened(place, {"drawn": (str(folder),)}).stored[0].images) == 1


def test_only_the_types_that_are_named_are_learned(place: Place) -> None:
    for name in ("tint", "part/tint"):
        sources = opened(place, {"drawn": (str(place.helpful),), "defects": (name,)})
        assert set(sources.stored[0].types) == {"part/tint"}
        assert sources.record.types == {"part/tint": 12}
        assert sources.record.sources[0].drawn_by == {"diffusion": 12}


@pytest.mark.parametrize(("number", "counts"), [(1, (1, 0)), (5, (3, 2)), (100, (12, 12))])
def test_of_a_number_of_drawn_images_every_type_has_its_turn(
    place: Place, tmp_path: Path, number: int, counts: tuple[int, int]
) -> None:
    spots = [one for one in place.drawings if one.defect == "spot"]
    tints = [one for one in place.drawings if one.defect == "tint"]
    # Unequal and one type after the other: in their order the first five would all be spots.
    drawn = write_generated(tmp_path / "drawn", place.root, [*spots[:6], *tints, *spots[6:]], place.seen)
    sources = opened(place, {"drawn": (str(drawn),), "drawn_number": number})
    types = sources.record.types
    assert sum(types.values()) == min(number, 24)
    assert (types["part/spot"], types.get("part/tint", 0)) == counts


def test_of_a_tiled_image_the_tiles_with_the_defect_are_learned(place: Place) -> None:
    tiling = Tiling((16, 16), 0.25)
    sources = opened(place, {"drawn": (str(place.helpful),)}, spec=Preprocessing((16, 16)), tiling=tiling)
    batch = sources.draw(200, np.random.default_rng(0), ImageReader([], Preprocessing((16, 16)), 1, 1))
    tiles = {}
    for one in place.drawings:
        for top, left in Tiling((16, 16), 0.0).corners(SIDE, SIDE):
            window = (slice(top, top + 16), slice(left, left + 16))
            tiles[one.image[window].tobytes()] = one.mask[window]
    for image, label in zip(batch.images, batch.labels, strict=True):
        assert (tiles[image.tobytes()] == label).all()
        assert label.any()
    # An image counts once, however many of its tiles show the defect.
    assert sources.record.types == {"part/spot": 12, "part/tint": 12}
    assert len(sources.stored[0].images) > 24


def test_the_types_of_training_images_are_named_too(place: Place, tmp_path: Path) -> None:
    moved = with_training_defects(place, tmp_path)
    with pytest.raises(DataError, match=r"expected types that .*\(train\) has \(part/tint\), got spot, ghost\. Name"):
        opened(moved, {"train_defects": True, "defects": ("spot", "ghost")})


def test_a_defect_that_vanishes_is_left_out_and_counted(place: Place, tmp_path: Path) -> None:
    image, _ = part(1)
    tiny = np.zeros((SIDE, SIDE), np.bool_)
    tiny[2, 2] = True  # not where one of the 16 x 16 pixels is taken from
    drawings = [place.drawings[0], Drawing("spot", image, tiny, place.drawings[0].good)]
    folder = write_generated(tmp_path / "drawn", place.root, drawings, place.seen)
    sources = opened(place, {"drawn": (str(folder),)}, spec=Preprocessing((16, 16)))
    assert len(sources.stored[0].images) == 1
    assert any("vanishes at this size: 1" in note for note in sources.notes)


def test_an_identity_follows_the_content_of_the_folders(place: Place, tmp_path: Path) -> None:
    first = sources_identity(LabelledSettings(support=str(place.support), drawn=(str(place.helpful),)))
    copy = shutil.copytree(place.helpful, tmp_path / "copy")
    assert sources_identity(LabelledSettings(support=str(place.support), drawn=(str(copy),))) == first
    assert sources_identity(LabelledSettings(support=str(place.support), drawn=(str(place.noise),))) != first
    assert sources_identity(LabelledSettings(procedural=True)) == ""
    # The record has the hashes of the originals: what is learned from are the copies.
    (image,) = read_support(place.support).pictures
    for name in (image.picture, image.mask):
        changed = shutil.copytree(place.support, tmp_path / Path(name).stem)
        (changed / name).write_bytes((place.root / place.spot).with_name("005.png").read_bytes())
        identity = sources_identity(LabelledSettings(support=str(changed), drawn=(str(place.helpful),)))
        assert identity != first


# ---- What is refused -------------------------------------------------------------------------------------------------


@given(shares=st.dictionaries(st.sampled_from(["support", "drawn", "train", "procedural"]), st.floats(1e-3, 1e3)))
def test_shares_are_parts_of_a_whole(shares: dict[str, float]) -> None:
    named = {"support": "here", "drawn": ("there",), "train_defects": True, "procedural": True}
    settings = LabelledSettings(**named, **{f"{name}_share": share for name, share in shares.items()})  # type: ignore[arg-type]
    assert sum(settings.shares.values()) == pytest.approx(1.0)
    for name, share in shares.items():
        assert settings.shares[name] / settings.shares["support"] == pytest.approx(share / shares.get("support", 1.0))  # type: ignore[index]


@pytest.mark.parametrize("name", ["support", "drawn", "train", "procedural"])
@pytest.mark.parametrize("share", [0.0, -1.0, float("nan"), float("inf")])
def test_a_share_of_nothing_is_refused(name: str, share: float) -> None:
    named = {"support": "here", "drawn": ("there",), "train_defects": True, "procedural": True}
    with pytest.raises(ArgumentError, match=f"{name}_share: expected"):
        LabelledSettings(**named, **{f"{name}_share": share})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=f"{name}_share: expected none without"):
        LabelledSettings(**{f"{name}_share": 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected at least one source, got none"),
        ({"support": "nowhere"}, "support: expected a folder of synth support"),
        ({"drawn": ("nowhere",)}, "drawn: expected a folder of synth generate"),
        ({"drawn": ("SUPPORT",)}, "drawn: expected a folder of synth generate"),
        ({"support": "HELPFUL"}, "support: expected a folder of synth support"),
        ({"train_defects": True}, "expected labelled defects of part"),
        ({"support": "SUPPORT", "defects": ("tint",)}, r"defects: expected types that .*support has \(part/spot\)"),
        ({"drawn": ("HELPFUL",), "defects": ("ghost",)}, r"has \(part/spot, part/tint\), got ghost\. Name one of"),
        ({"drawn": ("HELPFUL",), "defects": ("spot", "hole")}, "defects: expected types that a source has"),
        ({"procedural": True}, "procedural: expected a source that this method can draw"),
    ],
)
def test_a_source_without_defects_is_refused_in_one_line(place: Place, settings: dict[str, Any], message: str) -> None:
    folders = {"SUPPORT": str(place.support), "HELPFUL": str(place.helpful)}
    named = {
        name: tuple(folders.get(one, one) for one in value) if isinstance(value, tuple) else folders.get(value, value)
        for name, value in settings.items()
    }
    with pytest.raises(FlawscopeError, match=message) as caught:
        opened(place, named)
    assert "\n" not in str(caught.value)


def test_sources_of_another_product_are_refused(place: Place) -> None:
    dataset: Dataset = msgspec.structs.replace(open_dataset(place.root), category="other")
    hashes = hash_contents([sample.path for sample in dataset.samples])
    for settings in ({"support": str(place.support)}, {"drawn": (str(place.helpful),)}):
        with pytest.raises(DataError, match="expected labelled defects of other"):
            open_sources(LabelledSettings(**settings), SPEC, dataset, dataset.train_good, (), hashes)  # type: ignore[arg-type]
