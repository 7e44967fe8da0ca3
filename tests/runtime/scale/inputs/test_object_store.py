"""Images of an object store that speaks the protocol of S3: a server in this process, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from flawscope.errors import ArgumentError, ImageError
from flawscope.runtime.scale.inputs import Reader, list_items

s3fs = pytest.importorskip("s3fs", reason="s3:// needs s3fs (extra s3)")
fsspec_config = pytest.importorskip("fsspec.config", reason="s3:// needs s3fs (extra s3)")
moto = pytest.importorskip("moto.server", reason="the object store of these tests is moto's")
pytestmark = pytest.mark.long


class Store(NamedTuple):
    client: Any
    url: str


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    boto3 = pytest.importorskip("boto3", reason="fills the object store")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "known-key",
        "AWS_SECRET_ACCESS_KEY": "known-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="parts")
    yield Store(client, server)
    for entry in client.list_objects_v2(Bucket="parts").get("Contents", ()):
        client.delete_object(Bucket="parts", Key=entry["Key"])
    client.close()
    s3fs.S3FileSystem.clear_instance_cache()


def fill(store: Store, *keys: str) -> None:
    for key in keys:
        store.client.put_object(Bucket="parts", Key=key, Body=key.encode())


def test_a_bucket_is_listed_page_by_page_and_read_with_one_request_each(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "lot/b.png", "lot/a.png", "lot/deep/ü ?#%.png", "lot/", "lot/note.txt", "lot/empty.png", "lots.png")
    store.client.put_object(Bucket="parts", Key="lot/empty.png", Body=b"")
    asked: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def watched(self: Any, method: str, *args: Any, **options: Any) -> Any:
        asked.append(method)
        if method == "list_objects_v2":
            options["MaxKeys"] = 2
        return await call(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", watched)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", s3fs.core.sync_wrapper(watched))
    items = list(list_items(["s3://parts/lot"]))
    names = ["a.png", "b.png", "deep/ü ?#%.png", "empty.png"]
    assert [item.name for item in items] == [f"s3://parts/lot/{name}" for name in names]
    assert [item.size for item in items] == [9, 9, len("lot/deep/ü ?#%.png".encode()), 0]
    assert set(asked) == {"list_objects_v2"}
    assert len(asked) == 3  # six keys
    asked.clear()
    with Reader() as reader:
        assert [reader.read(item) for item in items] == [*(f"lot/{name}".encode() for name in names[:3]), b""]
    assert asked == ["get_object"] * 3


def test_patterns_of_a_bucket(store: Store) -> None:
    fill(store, "lot1/a.png", "lot1/b.jpg", "lot2/deep/c.png", "other/d.png")
    for pattern, places in {
        "lot*/**.png": ["lot1/a", "lot2/deep/c"],
        "lot1/*.png": ["a"],
        "**": ["lot1/a", "lot1/b", "lot2/deep/c", "other/d"],
        "lot[12]/*": ["lot1/a", "lot1/b", "lot2/deep/c"],
    }.items():
        assert [item.place for item in list_items([f"s3://parts/{pattern}"])] == places


def test_what_is_not_there_is_refused_or_a_fault(store: Store) -> None:
    fill(store, "lot/note.txt")
    with pytest.raises(ArgumentError, match=r"s3://missing-bucket/lot: expected what can be listed, got: .*bucket"):
        list(list_items(["s3://missing-bucket/lot/"]))
    with pytest.raises(ArgumentError, match=r"s3://parts/lot: expected images there, got none"):
        list(list_items(["s3://parts/lot/"]))
    (item,) = list_items(["s3://parts/lot/missing.png"])
    with Reader() as reader, pytest.raises(ImageError, match="expected an object that is there, got: not found"):
        reader.read(item)


def test_an_object_that_is_gone_or_was_changed_is_a_fault(store: Store) -> None:
    fill(store, "a.png", "b.png")
    first, second = list_items(["s3://parts/"])
    store.client.put_object(Bucket="parts", Key="a.png", Body=b"longer than it was")
    store.client.delete_object(Bucket="parts", Key="b.png")
    with Reader() as reader:
        with pytest.raises(ImageError, match="expected 5 bytes as when it was listed"):
            reader.read(first)
        with pytest.raises(ImageError, match="got: not found"):
            reader.read(second)


def test_without_credentials_it_is_said_how_to_give_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ArgumentError, match=r"credentials.*FSSPEC_S3=") as caught:
        list(list_items(["s3://parts/lot/"]))
    assert "known" not in str(caught.value)


def test_what_everybody_may_read_needs_no_credentials(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.client.put_object(Bucket="parts", Key="a.png", Body=b"a.png", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setitem(fsspec_config.conf, "s3", {"anon": True})  # FSSPEC_S3 sets it when fsspec is imported
    s3fs.S3FileSystem.clear_instance_cache()
    (item,) = list_items(["s3://parts/"])
    with Reader() as reader:
        assert reader.read(item) == b"a.png"
