from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.runtime.scale.inputs import Found, Item, Reader, decode_item, encode_item, list_items


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def listed(*named: str | Path) -> list[tuple[str, str]]:
    return [(item.name, item.fault or item.place) for item in list_items(named)]


def test_folders_are_listed_in_order_with_places_of_their_own(tmp_path: Path) -> None:
    one = lay(tmp_path / "one", "b.png", "a/x.jpg", "a/x.png", "a.png", "a-b/c.PNG", "note.txt", "ground_truth/m.png")
    lay(one, "._b.png", "..png", ".png")
    two = lay(tmp_path / "two" / "one", "b.png")
    (one / "a" / "round").symlink_to(one)
    (one / "broken.png").symlink_to(tmp_path / "nothing.png")
    places = {
        "..png": ".",
        "a/x.jpg": "a/x",
        "a/x.png": "a/x_2",
        "a-b/c.PNG": "a-b/c",
        "a.png": "a",
        "b.png": "b",
        "broken.png": "broken",
    }
    assert listed(one) == [(f"{one}/{name}", place) for name, place in places.items()]
    several = [*((f"{one}/{name}", f"one/{place}") for name, place in places.items()), (f"{two}/b.png", "one_2/b")]
    assert listed(one, two) == several
    assert listed(one / "b.png", tmp_path / "two") == [(f"{one}/b.png", "b"), (f"{two}/b.png", "one/b")]
    assert listed(tmp_path / "missing.png", one / "a-b") == [
        (f"{tmp_path}/missing.png", "missing"),
        (f"{one}/a-b/c.PNG", "c"),
    ]
    found = Found()
    items = {item.name: item.size for item in list_items([one], found=found)}
    assert items[f"{one}/a/x.jpg"] == 7
    assert items[f"{one}/broken.png"] == -1
    assert found.masks == [str(one / "ground_truth")]
    assert found.again == [str(one / "a" / "round")]
    assert [Path(path).name for path in found.folders] == ["one", "a", "a-b"]


def test_names_below_the_working_folder_are_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lay(tmp_path, "a.png", "below/b.png"))
    assert listed(".") == listed(Path()) == [("a.png", "a"), ("below/b.png", "below/b")]
    assert listed("below/../below") == [("below/../below/b.png", "b")]
    assert listed("./a.png") == [("a.png", "a")]
    assert [item.size for item in list_items(["."])] == [5, 11]


def test_what_is_named_twice_is_one_item(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", "b.png")
    named = [tmp_path / "a.png", tmp_path, f"{tmp_path}/./b.png", tmp_path]
    assert [Path(item.name).name for item in list_items(named)] == ["a.png", "b.png"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="expected images in this folder or below, got none"):
        list(list_items([lay(tmp_path, "note.txt")]))


def test_a_folder_that_cannot_be_listed_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "a.png", "shut/b.png")
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "shut":  # root may list every folder: a mode would not do
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    items = list(list_items([tmp_path]))
    assert [bool(item.fault) for item in items] == [False, True]
    assert items[1].fault.startswith(f"{tmp_path}/shut: expected a folder that can be listed, got: Permission denied")
    with pytest.raises(FlawscopeError) as caught:
        Reader().read(items[1])
    assert str(caught.value) == items[1].fault


def test_a_file_that_was_changed_or_is_gone_is_a_fault(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", "b.png", "c.png")
    same, changed, gone = list_items([tmp_path])
    (tmp_path / "b.png").write_bytes(b"others")
    (tmp_path / "c.png").unlink()
    with Reader() as reader:
        assert reader.read(same) == tmp_path / "a.png"
        with pytest.raises(FlawscopeError, match=r"b\.png: expected 5 bytes as when it was listed, got 6"):
            reader.read(changed)
        with pytest.raises(FlawscopeError, match=r"c\.png: expected the file of 5 bytes .* No such file"):
            reader.read(gone)


def test_an_item_is_a_line_of_json_whatever_bytes_its_name_has() -> None:
    for item in (
        Item("a.png", "a", 3),
        Item("b\udcff\u2028é\n.png", "b\udcff", source="tar", where=("x\udc80.tar", 512)),
        Item("shut", "", fault="expected x, got \udcfe"),
    ):
        line = encode_item(item)
        assert b"\n" not in line
        assert decode_item(line) == item


@pytest.mark.parametrize("line", [b"", b"[]", b'{"name":1,"place":""}', b'{"name":"\\ud800","place":3}'])
def test_what_is_no_item_is_refused(line: bytes) -> None:
    with pytest.raises(FlawscopeError, match="expected a line of an item"):
        decode_item(line)
