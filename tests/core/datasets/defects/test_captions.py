"""Words for a defect at a place, and the lines of `synth describe`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_dataset import CATEGORY, DEFECTS

from flawscope.datasets import open_dataset
from flawscope.datasets.defects.anomalous_samples import list_anomalous
from flawscope.datasets.defects.captions import FRAMES, Captions, check_frame, read_frames, read_phrases
from flawscope.datasets.defects.descriptions import write_descriptions
from flawscope.datasets.defects.seeded_choice import generator
from flawscope.diffusion.location_words import location_of
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.boxes import Rect
from flawscope.imaging.masks import read_mask


def test_every_frame_gives_another_sentence_that_ends_with_the_token():
    texts = Captions().all("metal_nut", "bent_wire", "in the center")
    assert len(texts) == len(FRAMES) == 8
    assert texts[0] == "There is a bent wire defect on the metal nut in the center of the image; metal_nut_bent_wire"
    for text in texts:
        assert text.endswith("; metal_nut_bent_wire")
        assert "a bent wire defect on the metal nut" in text.lower()
        assert "in the center" in text.lower()
        assert text[0].isupper()
        assert "{" not in text


def test_a_phrase_replaces_the_default_and_is_not_looked_through_for_fields():
    captions = Captions({"steel/dent": "a {location} dent"}, ("{description} {location} {token}",))
    assert captions.all("steel", "dent", "here") == ("A {location} dent here steel_dent",)


def test_one_sentence_is_drawn_from_all():
    captions = Captions()
    drawn = {captions.one("steel", "dent", "in the center", generator(seed)) for seed in range(100)}
    assert drawn == set(captions.all("steel", "dent", "in the center"))


@pytest.mark.parametrize(
    "frame",
    [
        "{description} {location}",
        "{description} {token}",
        "{location} {token}",
        "{description} {location} {token} {class}",
        "{description.__class__} {description} {location} {token}",
        "{description} {location} {token} }",
    ],
)
def test_a_frame_needs_the_three_fields_and_no_other_braces(frame):
    with pytest.raises(ArgumentError, match=r"here: expected a sentence with \{description\} \{location\} \{token\}"):
        check_frame(frame, "here")


def test_frames_are_read_a_line_each(tmp_path):
    path = tmp_path / "frames.txt"
    path.write_text("A {description} {location}: {token}\n\n B {description} {location}: {token}  \n")
    assert read_frames(path) == ("A {description} {location}: {token}", "B {description} {location}: {token}")
    path.write_text("\n")
    with pytest.raises(DataError, match="expected at least one sentence, got none"):
        read_frames(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="expected a text file with a sentence a line, got"):
        read_frames(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"steel/nope": "x"}, r"expected keys of steel/dent, got 'steel/nope'"),
        ({"steel/dent": " "}, r"steel/dent: expected words that can be printed, got ' '"),
        ({"steel/dent": 3}, "Expected `str`, got `int`"),
    ],
)
def test_a_wrong_table_of_phrases_is_refused(tmp_path, table, message):
    path = tmp_path / "phrases.json"
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match=message):
        read_phrases(path, {"steel/dent"})


# --- lines


@pytest.fixture
def steel(tiny_root):
    return open_dataset(tiny_root, CATEGORY)


def test_every_anomalous_image_gets_a_line(steel, tmp_path):
    out = tmp_path / "texts"
    record = write_descriptions(steel, list_anomalous(steel, "test"), out)
    lines = [json.loads(line) for line in (out / "steel" / "steel_train.jsonl").read_text().splitlines()]
    assert record.lines == {"steel": 6}
    assert len(lines) == 6
    good = {sample.path.relative_to(steel.root).as_posix() for sample in steel.train_good}
    for line in lines:
        assert set(line) == {"image", "fault", "mask", "text", "bbox", "defect", "split"}
        assert line["image"] in good
        mask = read_mask(out / line["mask"])
        box = Rect(*line["bbox"])
        np.testing.assert_array_equal(mask, box.to_mask(mask.shape))
        assert len(line["text"]) == 8
        assert all(location_of(box, mask.shape) in text.lower() for text in line["text"])
        assert (steel.root / line["fault"]).is_file()
        assert line["split"] == "test"
    assert (out / "contact_sheet.png").is_file()
    assert record.phrases == {f"steel/{name}": f"a {name} defect on the steel" for name in DEFECTS}


def test_the_same_seed_gives_the_same_bytes(steel, tmp_path):
    entries = list_anomalous(steel, "test")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_descriptions(steel, entries, tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name / "steel" / "steel_train.jsonl").read_bytes() for name in "abc")
    assert first == again
    assert first != other
    sheets = [(tmp_path / name / "contact_sheet.png").read_bytes() for name in "ab"]
    assert sheets[0] == sheets[1]
