from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.runtime.scale.inputs import Item, Reader, list_items


def written(folder: Path, data: bytes) -> str:
    path = folder / "list.txt"
    path.write_bytes(data)
    return f"@{path}"


def names(named: str) -> list[str]:
    return [item.name for item in list_items([named])]


def test_a_list_keeps_its_order_and_gives_each_image_once(tmp_path: Path) -> None:
    named = written(tmp_path, b"b.png\n/data/a.png\n./b.png\ns3://bucket/c.png\nb.png\n")
    assert list(list_items([named])) == [
        Item("b.png", "b"),
        Item("/data/a.png", "data/a"),
        Item("s3://bucket/c.png", "bucket/c", source="fsspec"),
    ]


def test_a_list_of_windows_is_read_as_one_of_linux(tmp_path: Path) -> None:
    named = written(tmp_path, b"\xef\xbb\xbfa.png\r\n\r\n   \r\nb c.png\r\n\xc3\xa9.png")
    assert names(named) == ["a.png", "b c.png", "é.png"]


def test_names_that_are_not_utf8_are_those_of_the_files(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(path)).write_bytes(b"1234")
    (item,) = list_items([written(tmp_path, path + b"\n")])
    assert item.size == 4
    with Reader() as reader:
        assert reader.read(item) == Path(os.fsdecode(path))


def test_a_list_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("-", "@-"):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"a.png\nb.png\n")))
        assert names(name) == ["a.png", "b.png"]


def test_a_line_may_be_a_folder_and_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "a.png").touch()
    (tmp_path / "one" / "a[1].png").touch()
    named = written(tmp_path, f"{tmp_path}/one\n{tmp_path}/one/*.png\nfile://{tmp_path}/one/a[1].png\n".encode())
    items = list(list_items([named]))
    assert [Path(item.name).name for item in items] == ["a[1].png", "a.png", "*.png"]
    assert items[1].place == f"{tmp_path}/one/two/a".lstrip("/")
    assert items[2].size == -1


def test_images_of_one_name_in_many_folders_keep_their_folders_as_places(tmp_path: Path) -> None:
    named = written(tmp_path, b"../x/1.png\nx/1.png\ny/1.png\n/y/1.png\nhttps://host/y/1.png\n")
    assert [item.place for item in list_items([named])] == ["x/1", "x/1_2", "y/1", "y/1_2", "host/y/1"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "expected a path or URL a line, got no line"),
        (b"\xef\xbb\xbf\r\n \n", "expected a path or URL a line, got no line"),
        ("a.png\n".encode("utf-16"), "expected text in UTF-8, got UTF-16"),
        (b"a.png\n\x89PNG\0\0\n", "got a null byte in line 2"),
        (b"a" * 40000, "got more than 32,768 bytes in line 1"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        names(written(tmp_path, data))


def test_a_list_that_is_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, told in (("missing.txt", "No such file"), ("pipe", "it is a pipe"), (".", "Is a directory")):
        with pytest.raises(ArgumentError, match=f"expected a list of images, got: {told}"):
            names(f"@{tmp_path}/{name}")


def test_a_file_that_is_called_like_a_list_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "@a.png").touch()
    assert names("@a.png") == ["@a.png"]


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(FlawscopeError, match="expected the name of an image or folder, got an empty one"):
        names("")


def test_standard_input_that_is_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ArgumentError, match="standard input: expected a list of images, got: it is closed"):
        names("-")


def test_a_file_url_without_a_path_is_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(ArgumentError, match="file://: expected the path of an image or folder"):
        names("file://")
    (item,) = list_items([written(tmp_path, b"file://\n")])
    assert "expected a path behind it" in item.fault
