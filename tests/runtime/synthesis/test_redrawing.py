"""Drawings come back from their lines to the bit, and what was changed is noticed."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
from drawn_folders import lines_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_dataset import CATEGORY
from tiny_synth_bundle import write_tiny_synth

from flawscope.cli import run
from flawscope.errors import ArgumentError, BundleError, DataError
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.runtime.synthesis import (
    GeneratedImage,
    GenerateRecord,
    read_generated,
    redraw,
)
from flawscope.runtime.synthesis.generated_set import region_of, runs_of


@pytest.mark.parametrize("which", [0, 6])
def test_an_image_is_drawn_again_from_its_line_to_the_bit(place, drawn, tiny_root, which):
    line = lines_of(drawn)[which]
    again = redraw(place / "drawer.flaw", line, tiny_root / CATEGORY)
    assert np.array_equal(again.image, read_image(drawn / line.image.place))
    assert np.array_equal(again.mask, read_mask(drawn / line.mask.place))
    assert (again.verdict, again.text, again.crop) == (line.verdict, line.text, line.crop)


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory):
    path = tmp_path_factory.mktemp("inpainter") / "inpainter.flaw"
    write_tiny_synth(path, "inpaint", share=0.9)
    return path


def without_tone(path, kind):
    """Return the JSON of a record as it was written before there was a tone."""
    data = json.loads(path)
    options = data["options"] if kind == "line" else data["settings"]["options"]
    assert options.pop("tone", "missing") != "missing"
    return json.dumps(data)


@pytest.mark.parametrize("tone", ["restore", "match", "none"])
def test_each_tone_is_recorded_and_redrawn_and_a_record_without_one_means_none(
    inpainter, arguments, tiny_root, tmp_path, tone
):
    arguments[2] = str(inpainter)
    assert run([*arguments, "--num", "2", "--tone", tone, "--out", str(tmp_path / "out")]) in (0, 1)
    images = {}
    for line in lines_of(tmp_path / "out"):
        assert line.options.tone == tone
        images[line.number] = read_image(tmp_path / "out" / line.image.place)
        assert np.array_equal(redraw(inpainter, line, tiny_root / CATEGORY).image, images[line.number])
    texts = (tmp_path / "out" / "generated.jsonl").read_text().splitlines()
    for text in texts:
        line = msgspec.json.decode(without_tone(text, "line"), type=GeneratedImage)
        assert line.options.tone == "none"
        is_same = np.array_equal(redraw(inpainter, line, tiny_root / CATEGORY).image, images[line.number])
        assert is_same == (tone == "none")
    record = (tmp_path / "out" / "generate.json").read_text()
    assert msgspec.json.decode(record, type=GenerateRecord).settings.options.tone == tone
    assert msgspec.json.decode(without_tone(record, "record"), type=GenerateRecord).settings.options.tone == "none"


def test_another_bundle_or_another_image_is_not_taken_for_the_recorded_one(place, drawn, tiny_root, tmp_path):
    line = lines_of(drawn)[0]
    write_tiny_synth(tmp_path / "other.flaw", share=0.8)
    with pytest.raises(BundleError, match=r"expected the bundle drawer .* Take the one that drew the image"):
        redraw(tmp_path / "other.flaw", line, tiny_root / CATEGORY)
    image = tmp_path / line.good
    image.parent.mkdir(parents=True)
    shutil.copy(tiny_root / CATEGORY / "test" / "good" / "000.png", image)
    with pytest.raises(DataError, match="expected the normal image that was drawn on, got other content"):
        redraw(place / "drawer.flaw", line, tmp_path)
    with pytest.raises(DataError, match="expected a region inside 8x8 pixels"):
        region_of(line, (8, 8))
    for batch in (0, -1, 2**62):
        with pytest.raises(ArgumentError, match="batch: expected 1 to"):
            redraw(place / "drawer.flaw", msgspec.structs.replace(line, batch=batch), tiny_root / CATEGORY)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.5, 1.1]))
def test_a_region_comes_back_from_its_runs(drawn, height, width, seed, density):
    region = np.random.default_rng(seed).random((height, width)) < density
    region[seed % height, seed % width] = True
    bbox, runs = runs_of(region)
    line = msgspec.structs.replace(lines_of(drawn)[0], bbox=bbox, runs=runs)
    assert np.array_equal(region_of(line, (height, width)), region)
    assert bool(runs) != bool(region[bbox[1] : bbox[1] + bbox[3], bbox[0] : bbox[0] + bbox[2]].all())


def test_a_changed_image_is_noticed(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "drawn")
    assert len(read_generated(folder)) == 7
    (folder / CATEGORY / "prs_mask" / "stain" / "002.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"stain/002.png: expected the file that was drawn, got other content"):
        read_generated(folder)
