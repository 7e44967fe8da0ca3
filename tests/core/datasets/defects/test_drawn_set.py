"""Folders of drawn images of any source: what the common reader takes, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.datasets.defects import read_drawn, read_learned
from flawscope.datasets.defects.drawn_set import MARKERS, SOURCES, read_drawn_lines
from flawscope.datasets.defects.set_files import write_json, write_lines, write_mask
from flawscope.errors import DataError
from flawscope.files import sha256_file
from flawscope.imaging.masks import read_mask

GOOD = "a" * 64


def stored(folder, place):
    write_mask(folder / place, np.eye(8, dtype=np.bool_))
    return {"place": place, "sha256": sha256_file(folder / place)}


def line_of(folder, number, source="diffusion", *, accepted=True):
    kept = {name: stored(folder, f"part/{name}/hole/{number}.png") for name in ("image", "mask", "box_mask")}
    if not accepted:
        kept |= {"mask": None, "box_mask": None}
    line = {"number": number, "category": "part", "defect": "hole", "accepted": accepted, **kept}
    line |= {"good": "train/good/0.png", "good_sha256": GOOD}
    # As lines from before there were other sources.
    return line if source == "diffusion" else {**line, "source": source}


@given(sources=st.lists(st.tuples(st.sampled_from(SOURCES), st.booleans()), max_size=6))
def test_lines_of_all_sources_are_read_from_one_folder(tmp_path_factory, sources):
    folder = tmp_path_factory.mktemp("drawn")
    lines = [line_of(folder, number, source, accepted=kept) for number, (source, kept) in enumerate(sources)]
    write_lines(folder / "generated.jsonl", lines)
    drawn = read_drawn(folder, with_rejected=True)
    assert [(one.source, one.accepted) for one in drawn] == sources
    assert read_drawn(folder) == [one for one in drawn if one.accepted]
    assert [json.loads(bytes(text)) for _, text, _ in read_drawn_lines(folder)] == lines
    for one in drawn:
        assert sha256_file(one.path) == one.image.sha256
        if one.accepted:
            assert read_mask(one.mask_path).any()
            assert read_mask(one.box_mask_path).any()
        else:
            with pytest.raises(DataError, match="expected the masks of an accepted image, got none"):
                one.mask_path  # noqa: B018


@pytest.mark.parametrize("file", ["image", "mask", "box_mask"])
def test_a_file_that_was_changed_is_refused(tmp_path, file):
    line = line_of(tmp_path, 0, "paste")
    write_lines(tmp_path / "generated.jsonl", [line])
    assert len(read_drawn(tmp_path)) == 1
    write_mask(tmp_path / line[file]["place"], np.ones((8, 8), np.bool_))
    with pytest.raises(DataError, match=f"{file}/hole/0.png: expected the file that was drawn, got other content"):
        read_drawn(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "painter"}, "line 1: expected the record of a drawn image, got"),
        ({"image": {"place": "../../x.png", "sha256": GOOD}}, "line 1: expected a path below"),
        ({"defect": "../up"}, "line 1: defect type: expected a name that a folder can have"),
        ({"defect": "good"}, "line 1: defect type: expected a defect type, got 'good', which stands for normal"),
        ({"category": ".hidden"}, "line 1: category: expected a name that a folder can have"),
        ({"mask": None}, "line 1: expected both masks of an accepted image, got none"),
        ({"good_sha256": "A"}, "line 1: expected the record of a drawn image, got"),
        ({"accepted": 1}, "line 1: expected the record of a drawn image, got"),
    ],
)
def test_a_broken_line_is_named(tmp_path, change, message):
    write_lines(tmp_path / "generated.jsonl", [line_of(tmp_path, 0) | change])
    with pytest.raises(DataError, match=message):
        read_drawn(tmp_path)


def test_what_was_learned_is_in_the_records_of_all_sources(tmp_path):
    lines = [line_of(tmp_path, number, source) for number, source in enumerate(SOURCES)]
    write_lines(tmp_path / "generated.jsonl", lines)
    contents = ["b" * 64, "c" * 64, "d" * 64]
    for source, content in zip(SOURCES, contents, strict=True):
        with pytest.raises(DataError, match=f"{MARKERS[source]}: expected the record of drawn images"):
            read_learned(tmp_path)
        write_json(tmp_path / MARKERS[source], {"support": [content], "more": 1})
    assert read_learned(tmp_path) == set(contents)


def test_a_folder_without_any_record_is_no_folder_of_drawings(tmp_path):
    write_lines(tmp_path / "generated.jsonl", [])
    with pytest.raises(DataError, match="expected the record of drawn images"):
        read_learned(tmp_path)
