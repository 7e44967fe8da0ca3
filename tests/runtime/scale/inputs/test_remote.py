from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flawscope.errors import ArgumentError, DataError, FlawscopeError, ImageError, MissingExtra
from flawscope.runtime.scale.inputs import Found, Item, Reader, list_items, remote
from flawscope.runtime.scale.inputs.urls import shown, without_secrets

fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec (extra remote)")


@pytest.fixture
def store() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def fill(store: Any, *names: str) -> None:
    for name in names:
        store.pipe(f"/bucket/{name}", name.encode())


def listed(*named: str) -> list[tuple[str, str]]:
    return [(item.name, item.place) for item in list_items(named)]


def test_a_folder_of_a_store_is_listed_in_order_with_sizes(store: Any) -> None:
    fill(store, "b.png", "a/x.JPG", "a/deep/y.png", "a.png", "note.txt", "._b.png", "masks/m.png")
    found = Found()
    items = list(list_items(["memory://bucket"], found=found))
    assert [item.name.removeprefix("memory://bucket/") for item in items] == [
        "a/deep/y.png",
        "a/x.JPG",
        "a.png",
        "b.png",
    ]
    assert [item.place for item in items] == ["a/deep/y", "a/x", "a", "b"]
    assert [item.size for item in items] == [12, 7, 5, 5]
    assert {item.source for item in items} == {"fsspec"}
    assert found.masks == ["memory://bucket/masks"]
    with Reader() as reader:
        assert [reader.read(item) for item in items] == [b"a/deep/y.png", b"a/x.JPG", b"a.png", b"b.png"]


def test_two_folders_lie_below_their_names(store: Any) -> None:
    fill(store, "one/a.png", "two/a.png")
    assert listed("memory://bucket/one/", "memory://bucket/two") == [
        ("memory://bucket/one/a.png", "one/a"),
        ("memory://bucket/two/a.png", "two/a"),
    ]


def test_patterns_of_urls_match_as_those_of_paths(store: Any) -> None:
    fill(store, "lot1/a.png", "lot1/b.jpg", "lot1/deep/c.png", "lot2/d.png", "other/e.png")
    assert [place for _, place in listed("memory://bucket/lot*/*.png")] == ["lot1/a", "lot2/d"]
    assert [place for _, place in listed("memory://bucket/lot1/**.png")] == ["a", "deep/c"]
    assert [place for _, place in listed("memory://bucket/**/*.png")] == ["lot1/a", "lot1/deep/c", "lot2/d", "other/e"]


def test_an_object_is_named_without_a_look_at_it(store: Any) -> None:
    (item,) = list_items(["memory://bucket/missing.png"])
    assert item == Item("memory://bucket/missing.png", "missing", source="fsspec")
    with Reader() as reader, pytest.raises(ImageError, match=r"missing\.png: expected an object that is there"):
        reader.read(item)
    fill(store, "missing.png", "plain")
    with Reader() as reader:
        assert reader.read(item) == b"missing.png"
    assert listed("memory://bucket/plain") == [("memory://bucket/plain", "plain")]


def test_nothing_below_a_url_is_refused(store: Any) -> None:
    fill(store, "note.txt")
    for url in ("memory://bucket", "memory://bucket/none/", "memory://bucket/*.png", "memory://bucket/missing"):
        with pytest.raises(ArgumentError, match="memory://bucket"):
            listed(url)


def test_an_object_that_was_changed_is_a_fault(store: Any) -> None:
    fill(store, "a.png", "b.png", "empty.png")
    store.pipe("/bucket/empty.png", b"")
    items = list(list_items(["memory://bucket"]))
    store.pipe("/bucket/a.png", b"longer than before")
    store.pipe("/bucket/b.png", b"x")
    with Reader() as reader:
        with pytest.raises(ImageError, match="expected 5 bytes as when it was listed, got 6"):
            reader.read(items[0])
        with pytest.raises(ImageError, match="expected 5 bytes as when it was listed, got 1"):
            reader.read(items[1])
        assert reader.read(items[2]) == b""


def test_what_fails_by_a_moods_of_the_network_is_tried_again(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, "a.png")
    (item,) = list_items(["memory://bucket"])
    failures = [OSError("reset by peer"), TimeoutError("slow")]
    cat_file = store.cat_file

    def flaky(*args: Any, **options: Any) -> bytes:
        if failures:
            raise failures.pop()
        return bytes(cat_file(*args, **options))

    monkeypatch.setattr(remote, "_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(type(store), "cat_file", staticmethod(flaky))
    with Reader() as reader:
        assert reader.read(item) == b"a.png"
        failures += [OSError("still down")] * 3
        with pytest.raises(ImageError, match=r"a\.png: could not be read: still down"):
            reader.read(item)


def test_an_object_that_has_no_end_is_not_read(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, "a.png")
    monkeypatch.setattr(remote, "most_encoded_bytes", lambda: 3)
    with Reader() as reader:
        for item in (*list_items(["memory://bucket"]), *list_items(["memory://bucket/a.png"])):
            with pytest.raises(ImageError, match="it has more than 3 bytes"):
                reader.read(item)


def test_archives_and_tables_of_a_store_are_read_in_parts(store: Any, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(name.encode())
            tar.add(tmp_path / name, name)
    store.pipe("/bucket/shards/a.tar", (tmp_path / "a.tar").read_bytes())
    store.pipe("/bucket/shards/b.tar", b"broken")
    items = list(list_items(["memory://bucket/shards/*.tar"]))
    assert [(item.name, item.place) for item in items[:2]] == [
        ("memory://bucket/shards/a.tar::a.png", "a/a"),
        ("memory://bucket/shards/a.tar::b.png", "a/b"),
    ]
    assert "b.tar: expected a tar archive" in items[2].fault
    with Reader() as reader:
        assert [reader.read(item) for item in items[:2]] == [b"a.png", b"b.png"]
    store.pipe("/bucket/shards/a.tar", b"changed")
    with Reader() as reader, pytest.raises(ImageError, match="as when it was listed, got 7"):
        reader.read(items[0])
    store.rm("/bucket/shards/a.tar")
    with Reader() as reader, pytest.raises(FlawscopeError, match="expected an object that is there"):
        reader.read(items[0])
    with pytest.raises(FlawscopeError, match="expected an object that is there"):
        list(list_items(["memory://bucket/shards/a.tar"]))


def test_a_table_of_a_store_names_objects_beside_it(store: Any, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="tables need pyarrow (extra parquet)")
    pq = pytest.importorskip("pyarrow.parquet", reason="tables need pyarrow (extra parquet)")
    pq.write_table(pa.table({"path": ["x/a.png"], "bytes_": [3]}), tmp_path / "t.parquet")
    store.pipe("/bucket/set/t.parquet", (tmp_path / "t.parquet").read_bytes())
    pq.write_table(pa.table({"image": [b"one", b"two"]}), tmp_path / "b.parquet")
    store.pipe("/bucket/set/b.parquet", (tmp_path / "b.parquet").read_bytes())
    assert listed("memory://bucket/set/t.parquet") == [("memory://bucket/set/x/a.png", "bucket/set/x/a")]
    items = list(list_items(["memory://bucket/set/b.parquet"]))
    with Reader() as reader:
        assert [reader.read(item) for item in items] == [b"one", b"two"]


def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ArgumentError, match=r'pip install "flawscope\[remote\]" gcsfs'):
        listed("gs://bucket/a/")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    # What was imported before is kept there.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(MissingExtra, match=r'pip install "flawscope\[s3\]"'):
        listed("s3://bucket/a/")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r'pip install "flawscope\[remote\]"'):
        listed("memory://bucket/a/")


@pytest.mark.parametrize("url", ["nope://bucket/a/", "zip://a.png::memory://b.zip", "memory://a::b/"])
def test_what_nothing_opens_is_refused(url: str) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        listed(url)


def test_secrets_of_a_url_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://user:hunter2@host/a.png?X-Amz-Signature=abcdef&id=7&token=ghijkl"
    assert shown(url) == "https://host/a.png?X-Amz-Signature=...&id=7&token=..."
    assert without_secrets(f"403 for {url} (sftp://u:pw@h/x)", url) == f"403 for {shown(url)} (sftp://h/x)"
    (item,) = list_items([url])
    assert item.name == shown(url)
    assert item.where == (url,)

    class Refusing:
        def cat_file(self, path: str, **limits: int) -> bytes:
            raise PermissionError(f"403, url='{path}'")

    monkeypatch.setattr(remote, "system_of", lambda url: (Refusing(), url))
    with Reader() as reader, pytest.raises(ImageError) as caught:
        reader.read(item)
    assert "403" in str(caught.value)
    assert not [secret for secret in ("hunter2", "abcdef", "ghijkl") if secret in str(caught.value)]


def test_images_of_urls_that_differ_in_a_secret_alone_are_two() -> None:
    urls = ["https://host/a.png?sig=1", "https://host/a.png?sig=2", "https://host/a.png?sig=1"]
    assert [item.where for item in list_items(urls)] == [(urls[0],), (urls[1],)]


def test_places_have_nothing_of_what_signs_a_url(tmp_path: Path) -> None:
    urls = [f"https://host/lot/{name}?X-Amz-Signature=hunter2/b.png" for name in ("a.png", "get", "c.tar.png")]
    assert [item.place for item in list_items(urls)] == ["a", "get", "c.tar"]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    assert [item.place for item in list_items([f"@{tmp_path}/list.txt"])] == [
        "host/lot/a",
        "host/lot/get",
        "host/lot/c.tar",
    ]


def test_an_archive_by_a_signed_url_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(url: str) -> Any:
        asked.append(url)
        raise ArgumentError("seen")

    monkeypatch.setattr(remote, "system_of", refuse)
    with pytest.raises(ArgumentError, match="seen"):
        list(list_items(["https://host/a.tar?sig=1"]))
    assert asked == ["https://host/a.tar?sig=1"]


def test_a_store_that_fails_while_an_archive_is_listed_is_an_error(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise RuntimeError("the library's own")

    store.pipe("/bucket/a.tar", b"x" * 2048)
    monkeypatch.setattr(type(store), "open", lambda self, path, mode: Broken())
    with pytest.raises(DataError, match=r"a\.tar: expected an object that can be read, got: the library's own"):
        list(list_items(["memory://bucket/a.tar"]))


def test_an_archive_of_unknown_size_is_refused(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(store), "info", lambda self, path: {"name": path, "type": "file", "size": None})
    with pytest.raises(DataError, match="expected an archive whose size is told"):
        list(list_items(["memory://bucket/a.tar"]))
