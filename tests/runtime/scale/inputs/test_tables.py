from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from flawscope.errors import ArgumentError, DataError, FlawscopeError, ImageError
from flawscope.runtime.scale.inputs import Item, Reader, list_items
from flawscope.runtime.scale.inputs.tables import TableReader

pa = pytest.importorskip("pyarrow", reason="tables need pyarrow (extra parquet)")
pq = pytest.importorskip("pyarrow.parquet", reason="tables need pyarrow (extra parquet)")


def table(file: Path, /, rows: int = 1 << 20, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), file, row_group_size=rows)
    return file


def struct(values: list[bytes | None]) -> Any:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": value, "path": f"{n}.png"} for n, value in enumerate(values)], kind)


IMAGES = [f"image {number}".encode() * (1 + number % 7) for number in range(75)]


@pytest.mark.parametrize(
    "column",
    [pa.array(IMAGES), pa.array(IMAGES, pa.large_binary()), struct(IMAGES), pa.array(IMAGES).dictionary_encode()],
    ids=["binary", "large", "datasets", "dictionary"],
)
def test_bytes_are_read_row_by_row(tmp_path: Path, column: Any) -> None:
    path = table(tmp_path / "train-0.parquet", rows=40, label=list(range(75)), image=column)
    items = list(list_items([path]))
    assert [item.name for item in items[:2]] == [f"{path}::0", f"{path}::1"]
    assert [item.place for item in (items[7], items[74])] == ["train-0/07", "train-0/74"]
    with Reader() as reader:
        assert [reader.read(item) for item in items] == IMAGES
        assert [reader.read(item) for item in reversed(items)] == IMAGES[::-1]


def test_several_threads_read_one_table(tmp_path: Path) -> None:
    items = list(list_items([table(tmp_path / "a.parquet", rows=30, image=IMAGES)]))
    failed: list[object] = []
    with Reader() as reader:

        def read(first: int) -> None:
            failed.extend(n for n in range(first, len(items), 3) if reader.read(items[n]) != IMAGES[n])

        threads = [threading.Thread(target=read, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_more_tables_than_are_kept_open_are_read(tmp_path: Path) -> None:
    paths = [table(tmp_path / f"{number}.parquet", image=[IMAGES[number]]) for number in range(7)]
    items = list(list_items([f"{tmp_path}/*.parquet"]))
    assert [item.name for item in items] == [f"{path}::0" for path in paths]
    with Reader() as reader:
        assert [reader.read(item) for item in (*items, *items)] == IMAGES[:7] * 2


def test_paths_are_below_the_folder_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"123")
    path = table(
        tmp_path / "set" / "index.parquet",
        label=["good", "bad", "good", "good"],
        path=["a.png", "/data/b.png", "s3://bucket/c.png", None],
    )
    *items, last = list_items([path])
    assert items == [
        Item(f"{tmp_path}/set/a.png", f"{tmp_path}/set/a".lstrip("/"), 3),
        Item("/data/b.png", "data/b"),
        Item("s3://bucket/c.png", "bucket/c", source="fsspec"),
    ]
    assert (last.name, "expected a path or URL in the column path, got none" in last.fault) == (f"{path}::3", True)


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"label": ["x"], "blob": [b"1"]}, "blob"),
        ({"image": [b"1"], "mask": [b"2"]}, "image"),
        ({"IMG": [b"1"], "thumb": [b"2"], "path": ["a"]}, "IMG"),
    ],
)
def test_the_column_of_bytes_is_guessed(tmp_path: Path, columns: dict[str, list[Any]], chosen: str) -> None:
    (item,) = list_items([table(tmp_path / "a.parquet", **columns)])
    assert item.where[3] == chosen


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"label": ["good"], "file_name": ["a.png"]}, "a.png"),
        ({"image": ["a.png"], "split": ["b"]}, "a.png"),
        ({"path": ["a.png"], "image_url": ["s3://b"]}, "a.png"),
    ],
)
def test_the_column_of_paths_is_guessed(tmp_path: Path, columns: dict[str, list[Any]], chosen: str) -> None:
    (item,) = list_items([table(tmp_path / "a.parquet", **columns)])
    assert item.name == f"{tmp_path}/{chosen}"


@pytest.mark.parametrize(
    ("columns", "asked", "told"),
    [
        ({"label": ["good"], "size": [3]}, None, r"expected a column of images.*label \(string\), size \(int64\)"),
        ({"image": [b"1"], "png": [b"2"]}, None, "expected one column of images, got image, png"),
        ({"a": [b"1"], "b": [b"2"]}, None, "expected one column of images, got a, b"),
        ({"image": [b"1"], "size": [3]}, "size", "expected a column size of bytes, of paths or of URLs"),
        ({"image": [b"1"]}, "img", "expected a column img of bytes"),
    ],
)
def test_a_column_that_nobody_can_tell_is_asked_for(
    tmp_path: Path, columns: dict[str, list[Any]], asked: str | None, told: str
) -> None:
    with pytest.raises(ArgumentError, match=told) as caught:
        list(list_items([table(tmp_path / "a.parquet", **columns)], column=asked))
    assert "--column" in str(caught.value)


def test_the_column_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    (item,) = list_items([table(tmp_path / "a.parquet", image=[b"1"], other=[b"2"])], column="other")
    with Reader() as reader:
        assert reader.read(item) == b"2"


def test_a_row_without_bytes_is_a_fault_and_the_others_are_read(tmp_path: Path) -> None:
    for name, column in (("null", pa.array([b"1", None, b"3"])), ("struct", struct([b"1", None, b"3"]))):
        first, second, third = list_items([table(tmp_path / f"{name}.parquet", image=column)])
        with Reader() as reader:
            with pytest.raises(ImageError, match=r"::1: expected the bytes of an image in the column image, got none"):
                reader.read(second)
            assert (reader.read(first), reader.read(third)) == (b"1", b"3")


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    whole = table(tmp_path / "a.parquet", image=IMAGES).read_bytes()
    for data in (b"", b"PAR1", b"x" * 500, whole[:-5], whole[:200]):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.parquet: expected a Parquet table that can be read"):
            list(list_items([tmp_path / "a.parquet"]))
    with pytest.raises(FlawscopeError, match="expected images in it, got none"):
        list(list_items([table(tmp_path / "none.parquet", image=pa.array([], pa.binary()))]))


def test_damage_of_pixels_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"a" * 5000, b"b" * 5000]}), path, write_page_checksum=True, compression="none")
    items = list(list_items([path]))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"a" * 5000, b"a" * 2500 + b"c" + b"a" * 2499))
    assert path.read_bytes() != data
    with Reader() as reader, pytest.raises(DataError, match="::0: expected a Parquet table that can be read"):
        reader.read(items[0])


def test_a_table_that_was_changed_is_a_fault(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", image=IMAGES)
    item, *_ = list_items([path])
    table(path, image=IMAGES[:3])
    with Reader() as reader, pytest.raises(ImageError, match="as when it was listed"):
        reader.read(item)
    path.unlink()
    with Reader() as reader, pytest.raises(DataError, match="could not be opened: No such file"):
        reader.read(item)


def test_rows_behind_damage_say_what_it_is_and_other_groups_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    images = [bytes([65 + number]) * 5000 for number in range(40)]
    options: dict[str, Any] = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"image": images}), path, row_group_size=20, **options)
    items = list(list_items([path]))
    path.write_bytes(path.read_bytes().replace(images[2], images[2][:-1] + b"z"))
    with Reader() as reader:
        for item in items[2:20]:
            with pytest.raises(DataError, match=f"::{item.where[2]}: expected a Parquet table .*CRC checksum"):
                reader.read(item)
        assert [reader.read(item) for item in items[20:]] == images[20:]


def test_a_table_is_read_on_after_a_failure_that_goes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(list_items([table(tmp_path / "a.parquet", image=IMAGES)]))
    iterate = pq.ParquetFile.iter_batches
    failures = [OSError("reset by peer")]

    def flaky(self: Any, *args: Any, **options: Any) -> Any:
        for number, batch in enumerate(iterate(self, *args, **options)):
            if number == 1 and failures:
                raise failures.pop()
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", flaky)
    with Reader() as reader:
        assert reader.read(items[0]) == IMAGES[0]
        with pytest.raises(DataError, match="reset by peer"):
            reader.read(items[20])
        assert [reader.read(item) for item in items] == IMAGES


def test_damage_is_not_sought_from_the_first_row_for_each_row_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(list_items([table(tmp_path / "a.parquet", image=IMAGES)]))
    begun: list[int] = []

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        begun.append(1)
        raise OSError("CRC")
        yield

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", broken)
    with Reader() as reader:
        for item in items:
            with pytest.raises(DataError, match="CRC"):
                reader.read(item)
    assert len(begun) < 5


def test_a_row_that_is_there_no_more_is_a_fault(tmp_path: Path) -> None:
    (item,) = list_items([table(tmp_path / "a.parquet", image=[b"1"])])
    name, group, _, column, size = item.where
    with (
        Reader() as reader,
        pytest.raises(DataError, match="got: 1 rows in its group, and not the one"),
    ):
        reader.read(Item(item.name, item.place, -1, "parquet", (name, group, 7, column, size)))


def test_large_rows_are_not_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawscope.runtime.scale.inputs.tables._KEPT_BYTES", 1000)
    items = list(list_items([table(tmp_path / "a.parquet", image=[b"x" * 500] * 75)]))
    reader = TableReader()
    for item in items:
        assert len(reader.read(item)) == 500
    (opened,) = reader._tables.values()
    assert [rows.first for rows in opened._recent] == [48, 64]
    reader.close()


def test_a_table_that_names_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    path = table(tmp_path / "a.parquet", path=["a.parquet", "./a.parquet", "a.png"])
    first, second, image = list_items([path])
    assert "expected an image, a folder or a tar archive in a row, got a table" in first.fault
    assert (second.name, image.name, image.fault) == (f"{tmp_path}/./a.parquet", f"{tmp_path}/a.png", "")


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([b"1"]), pa.array([b"2"])], names=["image"] * 2), tmp_path / "a.pq")
    with pytest.raises(ArgumentError, match="got image twice"):
        list(list_items([tmp_path / "a.pq"]))


def test_bytes_deep_in_a_column_are_none_of_an_image(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))])
    path = table(tmp_path / "a.parquet", image=pa.array([{"bytes": {"bytes": b"1"}}], kind))
    with pytest.raises(ArgumentError, match="expected a column of images"):
        list(list_items([path]))


def test_a_column_with_a_point_is_not_a_part_of_another(tmp_path: Path) -> None:
    (item,) = list_items([table(tmp_path / "a.parquet", **{"a": [{"b": b"other"}], "a.b": [b"1"]})])
    with Reader() as reader:
        assert reader.read(item) == b"1"


def test_a_column_without_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    with pytest.raises(ArgumentError, match="column: expected a table that has image, got none"):
        list(list_items([tmp_path], column="image"))
