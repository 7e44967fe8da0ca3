from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.runtime.results import Result
from flawscope.runtime.scale.inputs import Found, Item, Reader, decode_item, encode_item, list_items
from flawscope.runtime.score_inputs import Input, find_inputs


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def as_score_finds(named: list[Path]) -> list[tuple[str, str]]:
    return [
        (str(source.path), source.place) if isinstance(source, Input) else (source.image, source.reason or "")
        for source in find_inputs(named).sources
    ]


def as_listed(named: list[Path]) -> list[tuple[str, str]]:
    return [(item.name, item.fault or item.place) for item in list_items(named)]


def test_folders_are_listed_as_score_lists_them(tmp_path: Path) -> None:
    lay(
        tmp_path / "one",
        "b.png",
        "a/x.jpg",
        "a/x.png",
        "a.png",
        "a-b/c.PNG",
        "note.txt",
        "ground_truth/m.png",
        "._b.png",
    )
    lay(tmp_path / "two" / "one", "b.png")
    (tmp_path / "one" / "a" / "round").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "broken.png").symlink_to(tmp_path / "nothing.png")
    for named in (
        [tmp_path / "one"],
        [tmp_path / "one", tmp_path / "two" / "one"],
        [tmp_path / "one" / "b.png", tmp_path / "two"],
        [tmp_path / "missing.png", tmp_path / "one" / "a"],
    ):
        assert as_listed(named) == as_score_finds(named)
    found = Found()
    assert len(list(list_items([tmp_path / "one"], found=found))) == 6
    assert found.masks == [str(tmp_path / "one" / "ground_truth")]
    assert found.folders.keys() == find_inputs([tmp_path / "one"]).folders.keys()


def test_names_below_the_working_folder_are_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lay(tmp_path, "a.png", "below/b.png"))
    for named in ([Path()], [Path("below/../below")], [Path("./a.png")]):
        assert as_listed(named) == as_score_finds(named)
    assert [item.name for item in list_items(["."])] == ["a.png", "below/b.png"]
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
    faults = [source for source in find_inputs([tmp_path]).sources if isinstance(source, Result)]
    assert [bool(item.fault) for item in items] == [False, True]
    assert items[1].fault == faults[0].reason
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
