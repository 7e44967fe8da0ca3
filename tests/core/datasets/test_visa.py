"""VisA: its table, as published and as spreadsheets save it."""

from __future__ import annotations

import pytest
from dataset_files import below, index, touch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_files import refuse_listing

from flawscope.datasets import list_categories, open_dataset
from flawscope.datasets.visa import find_table
from flawscope.errors import DataError

HEADER = "object,split,label,image,mask\n"
ROWS = (
    "candle,train,normal,candle/Data/Images/Normal/1.JPG,\n"
    "candle,train,normal,candle/Data/Images/Normal/0.JPG,\n"
    "candle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png\n"
    "candle,test,anomaly,candle/Data/Images/Anomaly/1.JPG,\n"
    "candle,test,normal,candle/Data/Images/Normal/2.JPG,\n"
    "pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,\n"
)


@pytest.mark.parametrize("place", ["split_csv/1cls.csv", "visa.csv"])
def test_visa_is_read_from_its_table(tmp_path, place):
    touch(tmp_path, place)
    (tmp_path / place).write_text("\ufeff" + HEADER + ROWS, "utf-8")
    assert list_categories(tmp_path) == ("candle", "pcb1")
    dataset = open_dataset(tmp_path, "candle")
    assert (dataset.layout, dataset.category, dataset.root) == ("visa", "candle", tmp_path)
    assert index(dataset) == [
        ("candle/Data/Images/Normal/0.JPG", "train", "good", None),
        ("candle/Data/Images/Normal/1.JPG", "train", "good", None),
        ("candle/Data/Images/Normal/2.JPG", "test", "good", None),
        ("candle/Data/Images/Anomaly/0.JPG", "test", "bad", "candle/Data/Masks/Anomaly/0.png"),
        ("candle/Data/Images/Anomaly/1.JPG", "test", "bad", None),
    ]
    assert [s.is_mask_indexed for s in dataset.test] == [False, True, False]


def test_a_folder_that_cannot_be_listed_leaves_no_table_of_visa_unseen(tmp_path, monkeypatch):
    touch(tmp_path, "visa.csv", "good/0.png", "good/1.png")
    (tmp_path / "visa.csv").write_text(HEADER + ROWS)
    assert list_categories(tmp_path) == ("candle", "pcb1")
    refuse_listing(monkeypatch, tmp_path)
    with pytest.raises(DataError, match="expected a folder that can be listed, got: Permission denied"):
        find_table(tmp_path)


def test_one_object_of_visa_finds_the_table_beside_it(tmp_path):
    touch(tmp_path, "split_csv/1cls.csv", "candle/Data/Images/Normal/0.JPG", "candle/image_anno.csv")
    (tmp_path / "split_csv/1cls.csv").write_text(HEADER + ROWS)
    dataset = open_dataset(tmp_path / "candle")
    assert (dataset.layout, dataset.category, len(dataset.samples)) == ("visa", "candle", 5)


CANDLE = (
    "candle/Data/Images/Normal/0.JPG",
    "candle/Data/Images/Normal/1.JPG",
    "candle/Data/Images/Normal/2.JPG",
    "candle/Data/Images/Anomaly/0.JPG",
    "candle/Data/Images/Anomaly/1.JPG",
    "candle/Data/Masks/Anomaly/0.png",
)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        *((place, named) for place in ("visa.csv", "split_csv/1cls.csv") for named in (".", "visa", "visa/candle")),
        *(
            (f"visa/{place}", named)
            for place in ("visa.csv", "split_csv/1cls.csv")
            for named in ("visa", "visa/candle")
        ),
    ],
)
def test_the_table_may_lie_beside_the_folder_of_the_images_or_in_it(tmp_path, place, named):
    touch(tmp_path, place, *(f"visa/{path}" for path in CANDLE), "visa/pcb1/Data/Images/Normal/0.JPG")
    (tmp_path / place).write_text(HEADER + ROWS)
    root = tmp_path / named
    if named != "visa/candle":
        assert list_categories(root) == ("candle", "pcb1")
    dataset = open_dataset(root, None if named == "visa/candle" else "candle")
    assert (dataset.layout, dataset.category, len(dataset.samples)) == ("visa", "candle", 5)
    files = [path for sample in dataset.samples for path in (sample.path, *sample.masks)]
    assert sorted(path.relative_to(tmp_path / "visa").as_posix() for path in files) == sorted(CANDLE)
    assert all(path.is_file() for path in files)
    # Records name files below the root.
    assert all(sample.path.is_relative_to(dataset.root) for sample in dataset.samples)


def test_a_table_above_names_only_what_is_in_the_folder(tmp_path):
    touch(tmp_path, "visa.csv", *(f"visa/{path}" for path in CANDLE))
    (tmp_path / "visa.csv").write_text(HEADER + ROWS)
    assert list_categories(tmp_path / "visa") == ("candle",)
    assert len(open_dataset(tmp_path / "visa").samples) == 5


def test_two_folders_that_hold_the_images_of_a_table_are_refused(tmp_path):
    touch(tmp_path, "visa.csv", *(f"{folder}/{path}" for folder in ("visa", "copy") for path in CANDLE))
    (tmp_path / "visa.csv").write_text(HEADER + ROWS)
    with pytest.raises(
        DataError, match=r"visa\.csv, line 2: image: expected 'candle.*' in one folder of .* copy, visa"
    ):
        open_dataset(tmp_path, "candle")


def test_a_csv_of_another_kind_does_not_make_visa(tmp_path):
    touch(tmp_path, "good/0.png")
    (tmp_path / "list.csv").write_text("image,label\n0.png,1\n")
    assert open_dataset(tmp_path).layout == "folders"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,train,normal,x.png", r"line 2: expected 5 columns, got 4"),
        ("a,dev,normal,x.png,", r"line 2: split: expected train or test, got 'dev'"),
        ("a,train,fine,x.png,", r"line 2: label: expected normal or anomaly, got 'fine'"),
        ("a,train,normal,../x.png,", r"line 2: expected a path below .*, got '\.\./x\.png'"),
        ("a,train,normal,/etc/x.png,", r"line 2: expected a path below .*, got '/etc/x\.png'"),
        ("a,test,anomaly,,m.png", r"line 2: expected a path below .*, got ''"),
        ('a,train,normal,"x.png,', r"visa\.csv: expected a CSV table in UTF-8, got: unexpected end of data"),
    ],
)
def test_a_wrong_line_of_the_visa_table_is_named(tmp_path, row, message):
    (tmp_path / "visa.csv").write_text(HEADER + row + "\n")
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path, "a")


def test_two_visa_tables_need_a_choice_unless_one_is_called_as_published(tmp_path):
    for name in ("2cls_fewshot.csv", "2cls_highshot.csv"):
        (tmp_path / name).write_text(HEADER + ROWS)
    with pytest.raises(DataError, match=r"expected one VisA table, got 2cls_fewshot\.csv, 2cls_highshot\.csv"):
        open_dataset(tmp_path, "candle")
    (tmp_path / "1cls.csv").write_text(HEADER + ROWS)
    assert len(open_dataset(tmp_path, "candle").samples) == 5


def test_an_unknown_visa_category_names_those_that_exist(tmp_path):
    (tmp_path / "visa.csv").write_text(HEADER + ROWS)
    with pytest.raises(DataError, match="expected one of the categories candle, pcb1; got 'pcb2'"):
        open_dataset(tmp_path, "pcb2")
    with pytest.raises(DataError, match="expected one category, got 2: candle, pcb1"):
        open_dataset(tmp_path)


@settings(max_examples=60)
@given(
    separator=st.sampled_from([",", ";", "\t"]),
    slash=st.sampled_from(["/", "\\"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    name=st.sampled_from(["pcb", "Gehäuse", "Ölpumpe 1"]),
    first=st.sampled_from(["", "sep={}\n"]),
    capital=st.booleans(),
    empty=st.integers(0, 2),
)
def test_tables_as_spreadsheets_save_them_are_read(
    tmp_path_factory, separator, slash, encoding, line_end, name, first, capital, empty
):
    root = tmp_path_factory.mktemp("visa")
    rows = [["Object" if capital else "object", "split", "label", "image", "mask"]]
    rows += [[name, "Train" if capital else "train", "normal", f"{name}/N/{i}.jpg", ""] for i in range(2)]
    rows += [[name, "test", "Anomaly" if capital else "anomaly", f"{name}/A/ä.jpg", f"{name}/M/ä.png"]]
    rows += [[""] * 5] * empty
    lines = (separator.join(row).replace("/", slash) + separator * empty for row in rows)
    text = first.format(separator) + "\n".join(lines)
    (root / "split.csv").write_bytes(text.replace("\n", line_end).encode(encoding))
    dataset = open_dataset(root)
    assert index(dataset) == [
        (f"{name}/N/0.jpg", "train", "good", None),
        (f"{name}/N/1.jpg", "train", "good", None),
        (f"{name}/A/ä.jpg", "test", "bad", f"{name}/M/ä.png"),
    ]
    kinds = [remark.kind for remark in dataset.remarks]
    is_usual = separator == "," and encoding.startswith("utf-8")
    assert kinds == ([] if is_usual else ["table_form"]) + (["backslashes"] if slash == "\\" else [])


@pytest.mark.parametrize("path", ["..\\x.png", "a\\..\\..\\x.png", "C:\\x.png", "\\\\server\\x.png", "\\x.png"])
def test_paths_of_windows_do_not_leave_the_root(tmp_path, path):
    (tmp_path / "visa.csv").write_text(f"{HEADER}a,train,normal,{path},\n")
    with pytest.raises(DataError, match="line 2: expected a path below"):
        open_dataset(tmp_path, "a")


def test_a_file_that_really_has_a_backslash_in_its_name_is_found(tmp_path):
    touch(tmp_path, "a\\b.png")
    (tmp_path / "visa.csv").write_text(f"{HEADER}a,train,normal,a\\b.png,\na,train,normal,a\\c.png,\n")
    dataset = open_dataset(tmp_path)
    assert below(dataset, [s.path for s in dataset.samples]) == ["a/c.png", "a\\b.png"]
    [remark] = dataset.remarks
    assert remark.message == "has 1 paths with backslashes, which were taken as slashes"
