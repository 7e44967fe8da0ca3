"""Support sets as a training reads them: images, cuts, boxes, sentences, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from error_lines import reason
from tiny_dataset import CATEGORY, DEFECTS

from flawscope.datasets import Dataset, content_hash, open_dataset
from flawscope.datasets.defects import captions
from flawscope.datasets.defects.descriptions import write_descriptions
from flawscope.datasets.defects.support_set import find_support, write_support
from flawscope.diffusion.location_words import LOCATIONS, location_of, mirrored_words, without_location
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.boxes import bounds_of, boxes_of
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.imaging.masks import read_mask
from flawscope.training.synthesis import prompt_templates
from flawscope.training.synthesis.support_examples import SupportExamples, describe, read_support_examples


@pytest.fixture(scope="module")
def dataset(tiny_root: Path) -> Dataset:
    return open_dataset(tiny_root, CATEGORY)


@pytest.fixture(scope="module")
def written(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A support set, and descriptions of it."""
    folder = tmp_path_factory.mktemp("support")
    record = write_support(dataset, folder / "support", shots=2, split="test")
    write_descriptions(dataset, find_support(dataset, record), folder / "described")
    return folder / "support", folder / "described"


@pytest.fixture
def copies(written: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be spoilt."""
    return tuple(shutil.copytree(folder, tmp_path / folder.name) for folder in written)  # type: ignore[return-value]


def changed(folder: Path, index: int = 0, **fields: Any) -> Path:
    """Change an entry of the record."""
    path = folder / "support.json"
    record = json.loads(path.read_text())
    record["pictures"][index] |= fields
    path.write_text(json.dumps(record))
    return folder


# ---- What is read ----------------------------------------------------------------------------------------------------


def test_images_are_those_of_the_record_with_the_originals_hashes(written: tuple[Path, Path], dataset: Dataset) -> None:
    support = read_support_examples(written[0])
    assert support.types == tuple((CATEGORY, defect) for defect in DEFECTS)
    assert len(support.examples) == 4
    assert [example.type for example in support.of(CATEGORY, DEFECTS[1])] == [f"{CATEGORY}/{DEFECTS[1]}"] * 2
    samples = {str(example.path.relative_to(dataset.root)): example for example in dataset.samples}
    for example in support.examples:
        original = samples[example.record.source]
        assert original.mask is not None
        assert example.record.content == content_hash(original.path)
        assert (example.image == read_image(original.path)).all()
        assert (example.mask == read_mask(original.mask)).all()
        assert example.image_file.stem == example.name
        assert example.image_file.is_file()
        assert example.mask_file.is_file()


@pytest.mark.parametrize("name", [DEFECTS[1], f"{CATEGORY}/{DEFECTS[1]}"])
def test_defect_types_can_be_chosen_with_and_without_their_category(written: tuple[Path, Path], name: str) -> None:
    assert read_support_examples(written[0], [name]).types == ((CATEGORY, DEFECTS[1]),)


def test_an_unknown_defect_type_is_answered_with_the_known_ones(written: tuple[Path, Path]) -> None:
    with pytest.raises(ArgumentError) as raised:
        read_support_examples(written[0], [DEFECTS[0], "crack"])
    assert "expected some of steel/pitting, steel/stain" in reason(raised)
    assert "got 'crack'" in reason(raised)


@pytest.mark.parametrize("place", ["../elsewhere.png", "/etc/passwd", ""])
@pytest.mark.parametrize("field", ["picture", "mask"])
def test_a_place_outside_the_folder_is_refused(copies: tuple[Path, Path], field: str, place: str) -> None:
    with pytest.raises(DataError, match=r"support\.json: expected"):
        read_support_examples(changed(copies[0], **{field: place}))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"defect": "../up"}, "defect type: expected a name that a folder can have, got '../up'"),
        ({"category": ".hidden"}, "category: expected a name that a folder can have"),
        ({"content": "abc"}, "expected the record of a support set"),
        ({"source": ""}, "expected the record of a support set"),
        ({"defect": 3}, "expected the record of a support set"),
        ({"colour": "red"}, "unknown field `colour`"),
    ],
)
def test_a_broken_record_is_one_sentence(copies: tuple[Path, Path], fields: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match) as raised:
        read_support_examples(changed(copies[0], **fields))
    assert "support.json" in reason(raised)


def test_an_image_that_is_named_twice_is_refused(copies: tuple[Path, Path]) -> None:
    record = json.loads((copies[0] / "support.json").read_text())
    with pytest.raises(DataError, match="every image once"):
        read_support_examples(changed(copies[0], 1, **record["pictures"][0]))


def test_what_lacks_or_does_not_fit_is_one_sentence(copies: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the record of a support set") as raised:
        read_support_examples(tmp_path / "nowhere")
    assert "flawscope synth support" in reason(raised)
    example = read_support_examples(copies[0]).examples[0]
    cv2.imwrite(str(example.mask_file), np.zeros(example.mask.shape, np.uint8))
    with pytest.raises(DataError, match="expected white pixels"):
        read_support_examples(copies[0])
    cv2.imwrite(str(example.mask_file), np.full((32, 48), 255, np.uint8))
    with pytest.raises(DataError, match=r"expected a mask of 64x64 pixels .* got 48x32"):
        read_support_examples(copies[0])
    example.image_file.unlink()
    with pytest.raises(DataError, match="could not be read"):
        read_support_examples(copies[0])


# ---- How images are cut --------------------------------------------------------------------------------------------


def test_a_cut_shows_the_defect_larger_and_the_whole_image_does_not(written: tuple[Path, Path]) -> None:
    for example in read_support_examples(written[0]).examples:
        image, mask = example.cut((32, 32), None)
        assert (image == prepare(example.image, Preprocessing(resize=(32, 32)))).all()
        assert (mask == example.mask.reshape(32, 2, 32, 2).any(axis=(1, 3))).all()
        near, near_mask = example.cut((32, 32), 0.5)
        assert near.shape == (32, 32, 3)
        assert near_mask.sum() >= mask.sum()
        (rectangle,) = boxes_of(example.mask)
        box = rectangle.to_mask(example.mask.shape)
        assert example.cut((32, 32), 0.5, box)[1].sum() >= near_mask.sum()


# ---- Sentences -------------------------------------------------------------------------------------------------------


def test_descriptions_of_the_same_support_set_are_found(written: tuple[Path, Path]) -> None:
    support = read_support_examples(written[0])
    described = describe(support, written[1])
    built_in = describe(support)
    assert len(described) == len(built_in) == 4
    for example, description, sentences in zip(support.examples, described, built_in, strict=True):
        assert (description.box == sentences.box).all()
        assert not (example.mask & ~description.box).any()
        assert len(description.texts) == len(captions.FRAMES)
        assert all(text.endswith(f"{CATEGORY}_{example.defect}") for text in (*description.texts, *sentences.texts))
        place = location_of(bounds_of(description.box), description.box.shape)
        assert all(place in text.lower() for text in (*description.texts, *sentences.texts))


def spoilt(support: SupportExamples, folder: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as raised:
        describe(support, folder)
    assert "\n" not in str(raised.value)


def test_descriptions_that_do_not_fit_are_one_sentence(copies: tuple[Path, Path], tmp_path: Path) -> None:
    support, folder = read_support_examples(copies[0]), copies[1]
    spoilt(
        support, tmp_path / "nowhere", r"expected descriptions, which flawscope synth describe makes, got: No such file"
    )
    path = folder / CATEGORY / f"{CATEGORY}_train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    def write(**fields: Any) -> None:
        path.write_text("".join(json.dumps(line | fields) + "\n" for line in lines))

    first = support.examples[0]
    write(text=[])
    spoilt(support, folder, r"_train\.jsonl: line 1: expected image, fault, mask, text")
    write(mask="../mask.png")
    spoilt(support, folder, r"_train\.jsonl: line 1: expected a path below")
    write(mask="steel/bbox/none.png")
    spoilt(support, folder, "could not be read")
    write(defect="crack")
    spoilt(support, folder, rf"expected a line for the support image {first.record.source} .* synth describe --support")
    write()
    box = folder / next(line["mask"] for line in lines if line["fault"] == first.record.source)
    cv2.imwrite(str(box), np.full((32, 32), 255, np.uint8))
    spoilt(support, folder, "expected a mask of 64x64")
    elsewhere = (~boxes_of(first.mask)[0].to_mask(first.mask.shape)).astype(np.uint8) * 255
    cv2.imwrite(str(box), elsewhere)
    spoilt(support, folder, "expected a box that contains the defect")


def test_texts_of_a_learned_word_all_differ_and_all_have_it() -> None:
    texts = prompt_templates.photo_texts("*")
    assert len(set(texts)) == 80
    assert all(text.split().count("*") == 1 for text in texts)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_a_place_can_be_left_open_and_is_exchanged_in_a_mirror(row: int, column: int) -> None:
    place = LOCATIONS[row][column]
    for text in (
        *prompt_templates.defect_sentences("metal_nut", "bent", place),
        f"{place.capitalize()} of it lies dirt",
    ):
        assert without_location(text).count("{location}") == 1
        assert place not in without_location(text).lower()
        assert mirrored_words(text, left_right=False, top_bottom=False) == text
        turned = mirrored_words(text, left_right=True, top_bottom=True)
        assert LOCATIONS[2 - row][2 - column] in turned.lower()
        assert mirrored_words(turned, left_right=True, top_bottom=True) == text
        sideways = mirrored_words(text, left_right=True, top_bottom=False)
        assert LOCATIONS[row][2 - column] in sideways.lower()
        assert without_location(sideways) == without_location(text)
