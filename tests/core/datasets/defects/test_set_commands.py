"""`flawscope synth support|boxes|masks|describe` as typed: output, files, and one line for every mistake."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from file_contents import files_of
from tiny_dataset import CATEGORY, DEFECTS

from flawscope.cli import run


@pytest.fixture
def data(tiny_root):
    return ["--data", str(tiny_root), "--category", CATEGORY]


def test_from_a_support_set_to_masks_and_descriptions(data, tmp_path, capsys):
    out = {name: str(tmp_path / name) for name in ("support", "boxes", "masks", "texts")}
    assert run(["synth", "support", *data, "--k", "2", "--split", "test", "--out", out["support"]]) == 0
    assert run(["synth", "boxes", *data, "--support", out["support"], "--num", "5", "--out", out["boxes"]]) == 0
    ranges = str(tmp_path / "boxes" / "ranges.json")
    assert run(["synth", "masks", *data, "--ranges", ranges, "--num", "3", "--size", "64", "--out", out["masks"]]) == 0
    assert run(["synth", "describe", *data, "--support", out["support"], "--out", out["texts"]]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        f"support set: {out['support']}, 4 images of 2 defect types",
        "taken from the test split: 4, to be left out of the evaluation (support.json)",
        f"overview: {out['support']}/contact_sheet.png",
        f"boxes: {out['boxes']}, around 4 defects, and 5 random ones",
        f"overview: {out['boxes']}/contact_sheet.png",
        f"masks: {out['masks']}, 6 of 2 defect types",
        f"overview: {out['masks']}/contact_sheet.png",
        f"descriptions: {out['texts']}, 4 lines of 8 sentences",
        f"overview: {out['texts']}/contact_sheet.png",
    ]
    for name in out:
        sheet = cv2.imread(str(tmp_path / name / "contact_sheet.png"))
        assert len(np.unique(sheet)) > 50, "a sheet shows images"


def test_the_spellings_of_the_published_scripts_are_taken_too(tiny_root, tmp_path):
    for index, (data, category) in enumerate((("--dataset", "--classname"), ("--dataset_dir", "--class_name"))):
        out = str(tmp_path / str(index))
        arguments = [data, str(tiny_root), category, CATEGORY, "--k_shot", "1", "--split", "test", "--outdir", out]
        assert run(["synth", "support", *arguments]) == 0
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1")


def test_words_can_be_given(data, tmp_path, capsys):
    (tmp_path / "phrases.json").write_text(json.dumps({f"{CATEGORY}/{DEFECTS[0]}": "small dark pits"}))
    (tmp_path / "frames.txt").write_text("{token}: {description} {location}\n")
    options = ["--phrases", str(tmp_path / "phrases.json"), "--frames", str(tmp_path / "frames.txt")]
    arguments = [*data, "--split", "test", "--defect", DEFECTS[0], *options, "--out", str(tmp_path / "texts")]
    assert run(["synth", "describe", *arguments]) == 0
    lines = (tmp_path / "texts" / CATEGORY / f"{CATEGORY}_train.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert all(json.loads(line)["text"][0].startswith(f"Steel_{DEFECTS[0]}: small dark pits in the") for line in lines)


def test_an_earlier_set_is_replaced_only_where_that_is_asked_for(data, tmp_path, capsys):
    arguments = ["synth", "support", *data, "--split", "test", "--out", str(tmp_path / "set")]
    assert run([*arguments, "--shots", "3"]) == 0
    assert run([*arguments, "--shots", "1"]) == 2
    assert "expected a new name, got an earlier output with support.json" in capsys.readouterr().err
    assert len(list((tmp_path / "set").rglob("*_mask.png"))) == 6
    assert run([*arguments, "--shots", "1", "--overwrite"]) == 0
    assert len(list((tmp_path / "set").rglob("*_mask.png"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["support", "DATA"], "expected anomalous images with masks in the train split, got none, and 3 in test"),
        (["support", "DATA", "--split", "test", "--shots", "9"], "expected 9 different images with a mask"),
        (["support", "DATA", "--split", "test", "--shots", "0"], "shots: expected a whole number from 1"),
        (["support", "DATA", "--split", "test", "--defect", "rust"], "expected defect types of"),
        (["support", "DATA", "--split", "test", "--seed", "-1"], "seed: expected a whole number from 0"),
        (["support", "DATA", "--split", "both"], "--split: expected one of"),
        (["boxes", "DATA", "--support", "NONE"], "expected the record of a support set"),
        (["boxes", "DATA", "--support", "NONE", "--split", "test"], "Expected --support, or --split and --defect"),
        (["boxes", "DATA", "--split", "test", "--num", "-1"], "number: expected a whole number from 0"),
        (["boxes", "DATA", "--split", "test", "--overlap", "nan"], "overlap: expected a number from 0 to 0.99"),
        (["boxes", "DATA", "--split", "test", "--margin", "2"], "margin: expected a number from 0 to 1"),
        *(
            (
                ["boxes", "DATA", "--split", "test", *typed],
                f"{typed[0]} is for random boxes, of which --num 0 draws none",
            )
            for typed in (
                ["--places", "near"],
                ["--places", "anywhere", "--num", "0"],
                ["--solid"],
                ["--overlap", "0.75"],
                ["--tries", "9"],
                ["--phrases", "RANGES"],
                ["--frames", "RANGES"],
            )
        ),
        (["masks", "--ranges", "NONE"], "expected a range file"),
        (["masks", "--ranges", "STRINGS"], "Expected `bool`, got `str`"),
        (["masks", "--ranges", "RANGES", "--category", "brass"], "expected an entry for the category brass"),
        (["masks", "--ranges", "RANGES"], "expected --data with normal images for masks in their foreground"),
        (["masks", "--ranges", "RANGES", "--within", "template"], "expected --templates"),
        (["masks", "--ranges", "RANGES", "--size", "4"], "size: expected a whole number from 16"),
        (["describe", "DATA", "--split", "test", "--phrases", "RANGES"], "expected a table of phrases"),
        (["describe", "DATA", "--split", "test", "--frames", "RANGES"], "expected a sentence with"),
        (["describe", "DATA", "--split", "test", "--margin", "-1"], "margin: expected a share of the box's side"),
        (["describe", "--data", "NONE"], "expected a dataset's folder"),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_nothing(data, tmp_path, capsys, arguments, message):
    sides = {"width": [0.1, 0.2], "height": [0.1, 0.2]}
    for name, rotate in (("RANGES", True), ("STRINGS", "True")):
        ranges = {"steel": {"within": "foreground", "defects": {"dent": {**sides, "rotate": rotate}}}}
        (tmp_path / name).write_text(json.dumps(ranges))
    places = {name: [str(tmp_path / name)] for name in ("NONE", "RANGES", "STRINGS")} | {"DATA": data}
    before = {path.name for path in tmp_path.iterdir()}
    typed = [part for argument in arguments for part in places.get(argument, [argument])]
    assert run(["synth", *typed, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path.name for path in tmp_path.iterdir()} == before
