"""Records: train.json and test.json with one JSON object a line."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from dataset_files import index, touch, touch_recorded, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.cli import run
from flawscope.datasets import fingerprint, hash_contents, list_categories, open_dataset
from flawscope.errors import DataError


def record(filename: str, label: int = 0, clsname: str = "bottle", **keys: Any) -> dict[str, Any]:
    name = "defective" if label else "good"
    return {"filename": filename, "label": label, "label_name": name, "clsname": clsname} | keys


def defect(filename: str, clsname: str = "bottle", **keys: Any) -> dict[str, Any]:
    """Return a defect of the MVTec layout with its mask."""
    mask = filename.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
    return record(filename, 1, clsname, maskname=mask) | keys


TRAIN = (
    record("bottle/train/good/001.png"),
    record("bottle/train/good/000.png"),
    record("cable/train/good/000.png", clsname="cable"),
)
TEST = (
    defect("bottle/test/crack/000.png"),
    record("bottle/test/good/000.png"),
    defect("cable/test/cut/000.png", "cable"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_records(tmp_path / "train.json", *TRAIN)
    write_records(tmp_path / "test.json", *TEST)
    touch_recorded(tmp_path, *TRAIN, *TEST)
    return tmp_path


BOTTLE = [
    ("bottle/train/good/000.png", "train", "good", None),
    ("bottle/train/good/001.png", "train", "good", None),
    ("bottle/test/good/000.png", "test", "good", None),
    ("bottle/test/crack/000.png", "test", "crack", "bottle/ground_truth/crack/000_mask.png"),
]


# ---- what is read


def test_records_are_recognised_and_indexed_in_the_order_of_a_dataset(root):
    assert list_categories(root) == ("bottle", "cable")
    dataset = open_dataset(root, "bottle")
    assert (dataset.root, dataset.category, dataset.layout) == (root, "bottle", "records")
    assert index(dataset) == BOTTLE
    assert dataset.orphan_masks == dataset.ignored == ()
    assert {s.category for s in dataset.samples} == {""}
    assert {s.is_mask_indexed for s in dataset.samples} == {False}


def test_the_only_category_is_taken(tmp_path):
    write_records(tmp_path / "train.json", *TRAIN[:2])
    touch_recorded(tmp_path, *TRAIN[:2])
    dataset = open_dataset(tmp_path)
    assert (dataset.category, dataset.test, len(dataset.train_good)) == ("bottle", (), 2)


def test_two_categories_where_one_was_meant_and_an_unknown_one_name_those_that_exist(root):
    with pytest.raises(DataError, match=r"expected one category, got 2: bottle, cable\. Name one with --category, or"):
        open_dataset(root)
    with pytest.raises(DataError, match=r"categories bottle, cable; got 'pill'\. Choose one of them, or all\."):
        open_dataset(root, "pill")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_both_endings_a_byte_order_mark_blank_lines_and_other_keys_are_fine(tmp_path, suffix):
    lines = [json.dumps(record(f"a/{i}.png") | {"id": i, "maskname": None, "deep": [{}]}) for i in range(2)]
    (tmp_path / f"train{suffix}").write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(lines).encode())
    touch(tmp_path, "a/0.png", "a/1.png")
    assert [s.path.name for s in open_dataset(tmp_path).train_good] == ["0.png", "1.png"]


def test_images_are_found_in_the_one_folder_that_holds_them(root):
    (root / "mvtec_anomaly_detection").mkdir()
    for name in ("bottle", "cable"):
        (root / name).rename(root / "mvtec_anomaly_detection" / name)
    touch(root, "papers/readme.txt")
    below = [tuple(f"mvtec_anomaly_detection/{x}" if x and "/" in x else x for x in row) for row in BOTTLE]
    assert index(open_dataset(root, "bottle")) == below


def test_one_category_suffices_of_a_set_that_is_not_there_as_a_whole(root):
    for path in (root / "bottle").rglob("*.png"):
        path.unlink()
    assert len(open_dataset(root, "cable").samples) == 2
    with pytest.raises(DataError, match=r"train\.json, line 1: filename: expected a file below"):
        open_dataset(root, "bottle")


def test_two_folders_that_hold_the_images_are_refused(root):
    for name in ("one", "two"):
        touch_recorded(root / name, *TRAIN, *TEST)
    assert index(open_dataset(root, "bottle")) == BOTTLE  # the root itself comes first
    for path in (root / "bottle").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"line 1: filename: expected 'bottle/train/good/001\.png' in one folder of .*"):
        open_dataset(root, "bottle")


@pytest.mark.parametrize(
    ("filename", "name", "expected"),
    [
        ("b/test/crack/0.png", "defective", "crack"),
        ("b/train/crack/0.png", "defective", "crack"),
        ("test/crack/0.png", "Defective", "crack"),
        ("b/test/crack/0.png", None, "crack"),
        ("b/test/crack/0.png", "", "crack"),
        ("b/test/crack/0.png", "hole", "hole"),
        ("b/test/good/0.png", "defective", "defective"),
        ("b/test/Normal/0.png", "defective", "defective"),
        ("b/crack/0.png", "defective", "defective"),
        ("test/0.png", "defective", "defective"),
        ("0.png", None, "defective"),
    ],
)
def test_the_defect_type_is_the_label_name_or_the_folder(tmp_path, filename, name, expected):
    records = (record("g.png"), record(filename, 1, label_name=name, maskname="m.png"))
    write_records(tmp_path / "test.json", *records[1:])
    write_records(tmp_path / "train.json", records[0])
    touch_recorded(tmp_path, *records)
    assert open_dataset(tmp_path).defects == (expected,)


@pytest.mark.parametrize("name", ["good", "Good", "normal", "OK", None])
def test_good_has_several_names(tmp_path, name):
    write_records(tmp_path / "train.json", record("g.png", label_name=name, maskname="zeros.png"))
    [sample] = open_dataset(touch(tmp_path, "g.png")).samples
    assert (sample.defect, sample.mask, sample.split) == ("good", None, "train")


def test_a_defect_among_the_training_records_is_no_normal_image(tmp_path):
    records = (record("0.png"), record("1.png", 1, maskname="m.png"))
    write_records(tmp_path / "train.json", *records)
    touch_recorded(tmp_path, *records)
    dataset = open_dataset(tmp_path)
    assert [(s.split, s.defect) for s in dataset.samples] == [("train", "good"), ("train", "defective")]
    assert len(dataset.train_good) == 1


@given(order=st.randoms(use_true_random=False), data=st.sets(st.tuples(*[st.integers(0, 3)] * 3), min_size=1))
@settings(max_examples=25, deadline=None)
def test_index_and_fingerprint_do_not_depend_on_the_order_of_the_lines(order: random.Random, data):
    train = [record(f"c{c}/train/good/{i}.png", clsname=f"c{c}") for c, _, i in data | {(0, 0, 9)}]
    test = [defect(f"c{c}/test/d{d}/{i}.png", f"c{c}") for c, d, i in data]
    train = list({r["filename"]: r for r in train}.values())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        touch_recorded(root, *train, *test)
        seen = []
        for _ in range(2):
            write_records(root / "train.json", *train)
            write_records(root / "test.json", *test)
            order.shuffle(train)
            order.shuffle(test)
            dataset = open_dataset(root, "c0")
            seen.append((dataset, fingerprint(dataset, hash_contents(s.path for s in dataset.samples))))
    assert seen[0] == seen[1]
    assert sorted(p for p, *_ in index(seen[0][0])) == sorted(
        r["filename"] for r in (*train, *test) if r["clsname"] == "c0"
    )


# ---- what is not a file of records


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n" + json.dumps(record("0.png")),
        "[" + json.dumps(record("0.png")) + "]",
        json.dumps({"filename": "0.png", "label": 0}),
        json.dumps(["filename", "label", "clsname"]),
        "{",
        pytest.param("[" * 60_000, id="deep"),
        pytest.param(json.dumps(record("0.png", note="x" * 70_000)), id="long"),
    ],
)
def test_json_of_another_kind_does_not_make_records(tmp_path, text):
    touch(tmp_path, "good/0.png", "dent/0.png")
    (tmp_path / "train.json").write_text(text)
    assert open_dataset(tmp_path).layout == "folders"
    assert list_categories(tmp_path) == ()


def test_a_folder_called_train_json_does_not_make_records(tmp_path):
    touch(tmp_path, "good/0.png", "train.json/0.png")
    assert open_dataset(tmp_path).layout == "folders"


def test_a_category_folder_beside_records_is_still_one_of_its_own(root):
    assert (open_dataset(root / "bottle").layout, open_dataset(root / "bottle").category) == ("mvtec", "bottle")


def test_two_files_of_one_split_are_refused_unless_one_is_of_another_kind(root):
    write_records(root / "test.jsonl", *TEST)
    with pytest.raises(DataError, match=r"expected one file of test records, got test\.json, test\.jsonl\. Keep one"):
        open_dataset(root, "bottle")
    (root / "test.jsonl").write_text("[]")
    assert index(open_dataset(root, "bottle")) == BOTTLE


def test_a_file_of_another_kind_beside_records_is_not_passed_over(root):
    (root / "test.json").write_text("[]\n")
    with pytest.raises(
        DataError, match=r"test\.json, line 1: expected a JSON object with clsname, filename, label, got"
    ):
        open_dataset(root, "bottle")


def test_records_beside_a_table_of_visa_are_refused(root):
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("object,split,label,image,mask\n")
    with pytest.raises(
        DataError, match=r"expected one table, .* got split_csv/1cls\.csv, train\.json, test\.json\. Keep"
    ):
        open_dataset(root, "bottle")


def test_records_of_defects_alone_are_refused(tmp_path):
    write_records(tmp_path / "test.json", TEST[0])
    touch_recorded(tmp_path, TEST[0])
    with pytest.raises(DataError, match=r"bottle: .* got no normal training image among 1"):
        open_dataset(tmp_path)


# ---- wrong lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected a JSON object with clsname, filename, label, got: Input data was truncated"),
        ("[1]", "expected a JSON object .*, got: Expected `object`, got `array`"),
        (b"\xff", "expected a JSON object .*, got: JSON is malformed"),
        (b'{"filename": "\xff.png", "label": 0, "clsname": "a"}', "expected a JSON object .*, got: .*"),
        pytest.param(
            '{"filename": "x.png", "label": 0, "clsname": "a", "deep": ' + "[" * 50_000,
            "expected a JSON object .*, got:",
            id="deep",
        ),
        ({"filename": "x.png", "label": 0}, "got: Object missing required field `clsname`"),
        ({"filename": "x.png", "clsname": "a"}, "got: Object missing required field `label`"),
        ({"label": 0, "clsname": "a"}, "got: Object missing required field `filename`"),
        (record("x.png", label_name=3), r"got: Expected `str \| null`, got `int` - at `\$\.label_name`"),
        (record("x.png") | {"label": True}, r"got: Expected `int`, got `bool` - at `\$\.label`"),
        (record("x.png") | {"label": "0"}, r"got: Expected `int`, got `str` - at `\$\.label`"),
        (record("x.png") | {"label": 0.5}, r"got: Expected `int`, got `float` - at `\$\.label`"),
        (record("x.png") | {"label": 2}, r"label: expected 0 \(normal\) or 1 \(anomalous\), got 2\."),
        (record("x.png") | {"label": -1}, r"label: expected 0 \(normal\) or 1 \(anomalous\), got -1\."),
        (
            record("x.png", label_name="dent"),
            "label_name: expected one of bon, good, .* for label 0, got 'dent'",
        ),
        (record("x.png", 1, label_name="Good"), "label_name: expected the name of a defect for label 1, got 'Good'"),
        (record("x.png", label_name="a\nb"), r"label_name: expected a name that can be printed, got 'a\\nb'"),
        (record("x.png", clsname=""), "clsname: expected a name that can be printed, got ''"),
        (record("x.png", clsname="a\nb"), r"clsname: expected a name that can be printed, got 'a\\nb'"),
        (record("../x.png"), r"expected a path below .*, got '\.\./x\.png'"),
        (record("a/../../x.png"), r"expected a path below .*, got 'a/\.\./\.\./x\.png'"),
        (record("/etc/x.png"), r"expected a path below .*, got '/etc/x\.png'"),
        (record(""), "expected a path below .*, got ''"),
        (record("."), r"expected a path below .*, got '\.'"),
        (record("x.png", 1), "maskname: expected the mask of an anomalous image, got none"),
        (record("x.png", 1, maskname=None), "maskname: expected the mask of an anomalous image, got none"),
        (record("x.png", 1, maskname=""), "maskname: expected the mask of an anomalous image, got none"),
        (record("x.png", 1, maskname="../m.png"), r"expected a path below .*, got '\.\./m\.png'"),
        (record("x.png", 1, maskname="m.png"), r"maskname: expected a file below .*, got 'm\.png': No such file"),
        (record("no.png"), r"filename: expected a file below .*, got 'no\.png': No such file or directory\. Add the"),
        (record("folder"), r"filename: expected a file below .*, got 'folder': Not a file\. Add the file"),
        (record("x.png/y.png"), r"filename: expected a file below .*, got 'x\.png/y\.png': Not a directory"),
        (record("n" * 300), r"filename: expected a file below .*: File name too long"),
        (record("a\0b"), r"expected a path below .*, got 'a\\x00b'"),
        (record("./0.png"), r"got '0\.png' again after .*train\.json, line 1\. Take one of the lines out"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    text = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    (tmp_path / "train.json").write_bytes(json.dumps(record("0.png")).encode() + b"\n\n" + text + b"\n")
    touch(tmp_path, "0.png", "x.png", "folder/0.png")
    with pytest.raises(DataError, match=rf"train\.json, line 3: .*{message}") as caught:
        open_dataset(tmp_path, json.loads(text)["clsname"] if b"a\\nb" in text else "bottle")
    assert "\n" not in str(caught.value)


def test_the_wrong_line_of_another_category_is_an_error_too(root):
    with (root / "test.json").open("a") as file:
        file.write('{"filename": "cable/x.png", "label": 7, "clsname": "cable"}\n')
    with pytest.raises(DataError, match=r"test\.json, line 4: label: expected 0"):
        open_dataset(root, "bottle")


def test_an_image_in_both_files_is_refused(root):
    with (root / "test.json").open("a") as file:
        file.write(json.dumps(TRAIN[0]) + "\n")
    with pytest.raises(DataError, match=r"test\.json, line 4: .*'bottle/train/good/001\.png' again after .*line 1"):
        open_dataset(root, "bottle")


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers())


@given(changed=st.dictionaries(st.sampled_from(["filename", "label", "label_name", "clsname", "maskname"]), VALUES))
@settings(max_examples=150, deadline=None)
def test_a_record_is_read_as_it_says_or_refused_and_never_taken_as_good_against_its_label(changed):
    first, second = record("0.png"), defect("a/test/x/0.png") | changed
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "train.json").write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n", "utf-8")
        touch_recorded(root, first, defect("a/test/x/0.png"))
        try:
            dataset = open_dataset(root, "bottle")
        except DataError as err:
            refused: str | None = str(err)
        else:
            refused = None
    if refused is not None:
        assert "train.json, line 2: " in refused
        return
    read = [s for s in dataset.samples if s.path.name != "0.png" or s.path.parent != root]
    assert [s.is_anomalous for s in read] == ([second["label"] == 1] if second["clsname"] == "bottle" else [])
    assert all(s.mask is not None for s in read if s.is_anomalous)
    assert all(s.path.is_relative_to(root) and ".." not in s.path.parts for s in read)


@given(line=st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_blank_or_refused(line):
    line = line.replace(b"\n", b" ")
    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder), "0.png")
        (root / "train.json").write_bytes(json.dumps(record("0.png")).encode() + b"\n" + line)
        if line.strip():
            with pytest.raises(DataError, match=r"train\.json, line 2: expected a JSON object"):
                open_dataset(root)
        else:
            assert len(open_dataset(root).samples) == 1


# ---- the command


def test_the_command_shows_every_category_of_records_and_a_wrong_line_is_one_line(root, capsys):
    assert run(["data", "inspect", str(root), "--category", "bottle"]) == 2  # these images are only bytes
    assert f"bottle (JSON lines, {root})" in capsys.readouterr().out
    (root / "cable/test/cut/000.png").unlink()
    assert run(["data", "inspect", str(root)]) == 2
    out, err = capsys.readouterr()
    assert "bottle (JSON lines" in out
    assert "cable (JSON lines" not in out
    assert err.count("\n") == 1
    assert err.startswith(
        f"error: {root}/test.json, line 3: filename: expected a file below {root}, got 'cable/test/cut/"
    )


def test_backslashes_of_windows_are_slashes_and_are_noted(tmp_path):
    good = {"filename": "a\\good\\0.png", "label": 0, "clsname": "a"}
    bad = {"filename": "a\\bad/0.png", "label": 1, "clsname": "a", "maskname": "a\\truth\\0.png"}
    touch(tmp_path, "a/good/0.png", "a/bad/0.png", "a/truth/0.png")
    write_records(tmp_path / "train.json", good)
    write_records(tmp_path / "test.json", bad)
    dataset = open_dataset(tmp_path)
    assert [row[0] for row in index(dataset)] == ["a/good/0.png", "a/bad/0.png"]
    assert {remark.path.name: remark.message[:11] for remark in dataset.remarks} == {
        "train.json": "has 1 paths",
        "test.json": "has 2 paths",
    }
