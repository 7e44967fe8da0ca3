"""What a path is, by names and first bytes."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_files import touch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import write_tiny_bundle

from flawscope.bundle import open_bundle, pack_bundle
from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, BundleError, DataError, RunError
from flawscope.path_kinds import is_bundle, kind_of_path, path_of
from flawscope.runs import read_run_record, read_synthesis_record


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of every kind."""
    root = tmp_path_factory.mktemp("things")
    write_tiny_bundle(root / "tiny.flaw")
    with open_bundle(root / "tiny.flaw") as bundle:
        pack_bundle(bundle, root / "packed.flaw")
    touch(root, "run/run.json", "empty/readme.txt", "other.bin")
    for place in ("set/good/0.png", "set/good/1.png", "loose/0.jpg", "image.tif"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / place), np.random.default_rng(len(place)).integers(0, 255, (9, 9), np.uint8))
    (root / "zip.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    return {path.name: path for path in root.iterdir()}


KINDS = {
    "tiny.flaw": "a bundle",
    "packed.flaw": "a bundle",
    "run": "a training run",
    "set": "a dataset",
    "loose": "a folder of images",
    "image.tif": "an image",
    "empty": None,
    "other.bin": None,
    "zip.zip": None,
}


def test_every_kind_is_told(things):
    assert {name: kind_of_path(path) for name, path in things.items()} == KINDS
    assert {name for name, path in things.items() if is_bundle(path)} == {"tiny.flaw", "packed.flaw"}


def test_what_is_absent_or_a_pipe_is_of_no_kind(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", "pipe"):
        assert kind_of_path(tmp_path / name) is None
        assert not is_bundle(tmp_path / name)


@settings(max_examples=40)
@given(data=st.binary(max_size=300), beginning=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06"]))
def test_any_bytes_are_looked_at_without_an_error(tmp_path_factory, data, beginning):
    path = tmp_path_factory.mktemp("any") / "x.flaw"
    path.write_bytes(beginning + data)
    assert not is_bundle(path)
    kind_of_path(path)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind not in (None, "a bundle")])
def test_opening_something_else_as_a_bundle_says_what_it_is(things, name):
    with pytest.raises(BundleError, match=rf"{name}: expected a bundle.*, got {KINDS[name]}\. (Name|Export it) "):
        open_bundle(things[name])


@pytest.mark.parametrize("name", ["tiny.flaw", "packed.flaw", "run", "image.tif"])
def test_opening_something_else_as_a_dataset_says_what_it_is(things, name):
    with pytest.raises(DataError, match=rf"{name}: expected a dataset's folder, got {KINDS[name]}\. Name the folder"):
        open_dataset(things[name])


@pytest.mark.parametrize("name", ["tiny.flaw", "packed.flaw", "set", "loose", "image.tif"])
def test_opening_something_else_as_a_run_says_what_it_is(things, name):
    for read in (read_run_record, read_synthesis_record):
        with pytest.raises(RunError, match=rf"{name}: expected a run with run\.json, got {KINDS[name]}\. Make one"):
            read(things[name])


@pytest.mark.parametrize("bundle", ["tiny.flaw", "packed.flaw"])
@pytest.mark.parametrize("other", ["image.tif", "loose", "set"])
def test_an_image_before_the_bundle_is_named(things, capsys, bundle, other):
    assert run(["score", str(things[other]), str(things[bundle])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error: {things[other]}: expected a bundle, got {KINDS[other]}, and the bundle {things[bundle]} behind it. "
        f"The bundle comes first: flawscope score {things[bundle]} {things[other]}\n"
    )


@pytest.mark.parametrize("verb", [["calibrate"], ["evaluate"], ["train", "padim", "--out", "x.run"]])
def test_a_dataset_as_an_argument_is_told_to_go_behind_data(things, capsys, verb):
    places = [str(things["set"])] if verb[0] == "train" else [str(things["set"]), str(things["tiny.flaw"])]
    assert run([*verb, *places]) == 2
    assert "The dataset goes behind --data." in capsys.readouterr().err


def test_another_mistake_gets_no_word_about_datasets(things, capsys):
    assert run(["bundle", "info", str(things["tiny.flaw"]), "more"]) == 2
    assert run(["calibrate", "--nonsense"]) == 2
    assert "--data" not in capsys.readouterr().err


@pytest.mark.parametrize(("value", "words"), [(5, "got int"), (b"x", "got bytes"), ("a\0b", "null character")])
def test_what_is_no_path_is_refused(value, words):
    with pytest.raises(ArgumentError, match=f"data: expected a path, {words}|{words}"):
        path_of(value, "data")


def test_an_empty_text_is_no_path():
    with pytest.raises(ArgumentError, match="data: expected a path, got an empty text"):
        path_of("", "data")
