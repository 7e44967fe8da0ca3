from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import DataError, FlawscopeError, ImageError
from flawscope.runtime.scale.inputs import Item, Reader, list_items
from flawscope.runtime.scale.inputs.tars import list_tar


def member(name: str, data: bytes = b"", **about: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in about.items():
        setattr(info, key, value)
    return info, data


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_of_a_shard_are_read_by_their_place(tmp_path: Path, form: int) -> None:
    long = f"{'d' * 90}/{'e' * 90}.jpg"
    path = packed(
        tmp_path / "shard-0.tar",
        member("b/0001.png", b"one"),
        member("b/0001.json", b"{}"),
        member("a.JPG", b"two" * 500),
        member(long, b"three"),
        member("empty.png", b""),
        member("._a.png", b"litter"),
        member("folder.png", type=tarfile.DIRTYPE),
        form=form,
    )
    items = list(list_items([path]))
    assert [item.name for item in items] == [f"{path}::{name}" for name in ("b/0001.png", "a.JPG", long, "empty.png")]
    assert [item.place for item in items[:2]] == ["shard-0/b/0001", "shard-0/a"]
    with Reader() as reader:
        assert [reader.read(item) for item in items] == [b"one", b"two" * 500, b"three", b""]


_NAMES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=120)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(_NAMES, st.binary(max_size=700)), min_size=1, max_size=5))
def test_members_of_any_name_are_read_as_tarfile_reads_them(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, bytes]]
) -> None:
    path = packed(tmp_path_factory.getbasetemp() / "drawn.tar", *(member(f"{name}x.png", data) for name, data in drawn))
    with tarfile.open(path) as tar:
        members = [info for info in tar if not info.name.rpartition("/")[2].lower().startswith(("._", ".nfs"))]
        wanted = [tar.extractfile(info).read() for info in members]
    items = list(list_tar(str(path), "top"))
    with Reader() as reader:
        assert [reader.read(item) for item in items] == wanted
    assert not [item for item in items if {".", ".."} & set(item.place.split("/"))]


def test_what_lies_not_in_the_archive_is_a_fault(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "odd.tar",
        member("good.png", b"good"),
        member("link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard.png", type=tarfile.LNKTYPE, linkname="good.png"),
        member("pipe.png", type=tarfile.FIFOTYPE),
        member("../../up.png", b"up"),
        member("/etc/abs.png", b"abs"),
    )
    items = list(list_items([str(path)]))
    assert [item.place for item in items] == ["odd/good", "", "", "", "odd/up", "odd/etc/abs"]
    assert [item.fault.rpartition("got ")[2] for item in items[1:4]] == [
        "a link. Store the file itself.",
        "a link. Store the file itself.",
        "no file. Store the file itself.",
    ]
    with Reader() as reader:
        assert reader.read(items[4]) == b"up"
        with pytest.raises(DataError, match=r"link\.png: expected an image that lies in the archive"):
            reader.read(items[1])


def test_a_file_with_holes_is_a_fault(tmp_path: Path) -> None:
    info, data = member("holes.png", b"x" * 512)
    info.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": "4096", "GNU.sparse.major": "0"}
    (item,) = list_tar(str(packed(tmp_path / "a.tar", (info, data))), "")
    assert "got a file with holes" in item.fault


def test_an_archive_that_was_cut_gives_its_images_and_a_fault(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", member("a.png", b"a" * 600), member("b.png", b"b" * 600))
    whole = path.read_bytes()
    for cut, images in (
        (1536, ["a.png"]),
        (1700, ["a.png"]),
        (2040, ["a.png"]),
        (2148, ["a.png", "b.png"]),
        (3072, ["a.png", "b.png"]),
    ):
        path.write_bytes(whole[:cut])
        *good, last = list_items([path])
        if cut == 2148:  # inside of the second
            with Reader() as reader, pytest.raises(ImageError, match=r"expected 600 bytes, got 100: .* was cut"):
                reader.read(good[1])
        assert [item.name.rpartition("::")[2] for item in good] == images, cut
        assert last.name == str(path)
        assert "expected a whole tar archive" in last.fault


def test_a_damaged_header_is_a_fault_and_no_end(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", member("a.png", b"a"), member("b.png", b"b"), member("c.png", b"c"))
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # in the checksum of the second header
    path.write_bytes(data)
    good, last = list_items([path])
    assert (good.name, "a damaged header" in last.fault) == (f"{path}::a.png", True)


@pytest.mark.parametrize(
    "data", [b"", b"no archive", b"x" * 5000, b"\0" * 100], ids=["empty", "short", "text", "nulls"]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: expected a tar archive that is not compressed, got"):
        list(list_items([tmp_path / "a.tar"]))


def test_compressed_and_missing_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(FlawscopeError, match="tar archive that is not compressed, got one that is"):
        list(list_items([tmp_path / "a.tar.gz"]))
    with pytest.raises(DataError, match=r"missing\.tar: could not be opened: No such file"):
        list(list_items([tmp_path / "missing.tar"]))


def test_an_archive_without_images_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", member("a.json", b"{}"))
    with pytest.raises(FlawscopeError, match="expected images in it, got none"):
        list(list_items([path]))


def test_a_header_of_any_size_takes_no_memory(tmp_path: Path) -> None:
    info, _ = member("pax", type=tarfile.XHDTYPE)
    info.size = 1 << 30
    path = tmp_path / "bomb.tar"
    with path.open("wb") as file:
        file.write(tarfile.TarInfo("a.png").tobuf() + info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        items = list(list_tar(str(path), ""))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [bool(item.fault) for item in items] == [False, True]
    assert peak < 1 << 22


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_anywhere_is_a_fault_or_other_names_and_never_more(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    packed(path, member("é" * 120 + ".png", b"a" * 100), member("b.png", b"b" * 100))
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place] = value
    path.write_bytes(data)
    try:
        items = list(list_tar(str(path), ""))
    except DataError:
        return
    assert len(items) <= 3
    with Reader() as reader:
        for item in items:
            try:
                assert isinstance(reader.read(item), bytes)
            except FlawscopeError:
                assert item.fault or item.size


def test_an_archive_that_was_changed_is_a_fault_of_each_image(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", member("a.png", b"a"))
    (item,) = list_items([path])
    path.write_bytes(path.read_bytes() + bytes(512))
    with Reader() as reader, pytest.raises(ImageError, match="as when it was listed, got 10,752: it was changed since"):
        reader.read(item)
    path.unlink()
    with Reader() as reader, pytest.raises(ImageError, match=r"a\.png: could not be read: No such file"):
        reader.read(item)


def test_archives_that_a_pattern_finds_keep_apart_and_a_broken_one_is_a_fault(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        packed(tmp_path / folder / "shard-0.tar", member("a.png", b"a"))
    (tmp_path / "two" / "shard-1.tar").write_bytes(b"broken")
    items = list(list_items([f"{tmp_path}/**/shard-*.tar"]))
    assert [item.place for item in items] == ["one/shard-0/a", "two/shard-0/a", ""]
    assert "expected a tar archive" in items[2].fault
    assert items[2].name == f"{tmp_path}/two/shard-1.tar"
    both = list(list_items([str(tmp_path / "one" / "shard-0.tar"), str(tmp_path / "two" / "shard-0.tar")]))
    assert [item.place for item in both] == ["shard-0/a", "shard-0_2/a"]


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWSCOPE_MAX_PIXELS", "1")
    item = Item("a.tar::x.png", "x", 1 << 40, "tar", ("a.tar", 512, 1 << 41))
    with Reader() as reader, pytest.raises(ImageError, match="the most that is read"):
        reader.read(item)
