"""Releases in a folder and in a registry: what is published is what is read, and what is not it is refused."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="needs cryptography (extra `sign`)")

from line_stand_ins import wait_until
from oci_registry import Answer, OciRegistry, dripping, dripping_at_the_end, endless, oci_registry, status
from own_certificates import write_certificate
from released_bundles import Maker
from swapped_lines import write_bundle_at

from flawscope.bundle import find_trusted_keys
from flawscope.bundle.ed25519 import write_keys
from flawscope.errors import ArgumentError, BundleError, FlawscopeError
from flawscope.runtime.line.rollout import http_requests, layout, release
from flawscope.runtime.line.rollout.layout import Layout
from flawscope.runtime.line.rollout.place import Place, open_place, options_of, read_blob
from flawscope.runtime.line.rollout.publishing import give_tag, list_releases, publish
from flawscope.runtime.line.rollout.registry import Registry
from flawscope.runtime.line.rollout.release import (
    ReleaseRefused,
    SourceAway,
    digest_of,
    read_bundle_config,
    read_release,
)
from flawscope.runtime.line.rollout.table import FolderReleases, RegistryReleases

REF_NAME = "org.opencontainers.image.ref.name"


def opened(server: OciRegistry, **options: Any) -> Registry:
    return Registry(RegistryReleases(url=server.place, timeout_s=5.0, **options))


@pytest.fixture(params=["folder", "registry"])
def place(request: pytest.FixtureRequest, tmp_path: Path, registry: OciRegistry) -> Iterator[Place]:
    """Each kind of place, empty."""
    name = str(tmp_path / "releases") if request.param == "folder" else registry.place
    found = open_place(options_of(name))
    yield found
    found.close()


def test_what_is_published_is_what_is_read(place: Place, maker: Maker) -> None:
    bundle = maker.bundle("part", 120.0)
    digest = publish(maker.folder / "part.flaw", place, ("stable", "v1"))
    assert place.tags() == ["stable", "v1"]
    data = place.manifest("stable")
    assert digest_of(data) == digest
    assert place.manifest(digest) == data
    found = read_release(data)
    manifest = read_bundle_config(read_blob(place, found.config), "here", find_trusted_keys(maker.public))
    assert manifest.digest == bundle
    assert digest_of(read_blob(place, found.layer)) == found.layer.digest
    # As ORAS makes them.
    said = json.loads(data)
    assert said["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert said["artifactType"] == "application/vnd.flawscope.bundle.v1"
    assert said["annotations"]["io.flawscope.bundle.digest"] == bundle
    # Again: the same release.
    assert publish(maker.folder / "part.flaw", place, ("stable",)) == digest


def test_a_tag_goes_over_and_back(place: Place, maker: Maker) -> None:
    bundles = [maker.bundle(name, threshold) for name, threshold in (("one", 110.0), ("two", 120.0))]
    first, second = (publish(maker.folder / f"{name}.flaw", place, ("stable", name)) for name in ("one", "two"))
    assert digest_of(place.manifest("stable")) == second
    assert give_tag(place, "one", "stable") == first
    assert digest_of(place.manifest("stable")) == first
    assert give_tag(place, second, "canary") == second
    rows = {row["tag"]: row for row in list_releases(place)}
    assert {tag: row["bundle"] for tag, row in rows.items()} == dict(
        zip(("one", "two", "stable", "canary"), (*bundles, *bundles), strict=True)
    )
    assert all(len(row["key"]) == 32 and not row["problem"] for row in rows.values())


def test_a_release_that_is_not_there(place: Place, maker: Maker) -> None:
    maker.bundle("part", 120.0)
    with pytest.raises(SourceAway, match=r"none|could not be read"):
        place.manifest("stable")
    publish(maker.folder / "part.flaw", place, ("v1",))
    with pytest.raises(SourceAway, match="expected a release with the tag stable, got none"):
        place.manifest("stable")


def test_an_unsigned_bundle_is_not_published(place: Place, maker: Maker) -> None:
    write_bundle_at(maker.folder / "bare.flaw", 120.0)
    with pytest.raises(BundleError, match="expected a signed bundle"):
        publish(maker.folder / "bare.flaw", place, ("stable",))


@pytest.mark.parametrize("digest", [f"sha512:{'0' * 128}", "sha256:../../../../etc/passwd", "x"])
def test_a_row_of_something_else_in_the_index_hides_no_release(digest: str, tmp_path: Path, maker: Maker) -> None:
    """Other programs write to such a folder as well, and may name their blobs by other hashes."""
    maker.bundle("part", 120.0)
    maker.publish("part", tmp_path / "releases")
    path = tmp_path / "releases" / "index.json"
    index = json.loads(path.read_text())
    index["manifests"].append(index["manifests"][0] | {"digest": digest, "annotations": {REF_NAME: "other"}})
    path.write_text(json.dumps(index))
    place = Layout(FolderReleases(path=tmp_path / "releases"))
    assert [(row["tag"], bool(row["problem"])) for row in list_releases(place)] == [("other", True), ("stable", False)]
    with pytest.raises(ReleaseRefused, match="expected a digest"):
        place.manifest("other")
    maker.publish("part", tmp_path / "releases", "other")
    assert not any(row["problem"] for row in list_releases(place))


@pytest.mark.parametrize("litter", [".flawscope-0011223344556677.tmp", ".DS_Store", "oci-layout", "lost+found"])
def test_a_folder_that_another_publisher_begins_is_none_of_something_else(
    litter: str, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.bundle("part", 120.0)
    (tmp_path / "releases").mkdir()
    real = layout.list_folder

    def listed(folder: Path) -> list[Path]:  # it comes between the look at the file and the look at the folder
        (folder / litter).write_text('{"imageLayoutVersion": "1.0.0"}')
        return real(folder)

    monkeypatch.setattr(layout, "list_folder", listed)
    maker.publish("part", tmp_path / "releases")
    assert Layout(FolderReleases(path=tmp_path / "releases")).tags() == ["stable"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, maker: Maker) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    maker.bundle("part", 120.0)
    with pytest.raises(ArgumentError, match=r"expected a folder of releases or an empty one, got one with notes\.txt"):
        maker.publish("part", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "change",
    [
        {"artifactType": "application/vnd.other", "config": {"mediaType": "application/vnd.oci.empty.v1+json"}},
        {"layers": []},
        {"layers": "twice"},
        {"config": {"size": 1 << 30}},
        {"schemaVersion": 1},
        {"config": {"digest": "sha256:../../../etc/passwd"}},
    ],
)
def test_what_is_no_release_of_a_bundle_is_refused(tmp_path: Path, maker: Maker, change: dict[str, Any]) -> None:
    maker.bundle("part", 120.0)
    maker.publish("part", tmp_path / "releases")
    said = json.loads(Layout(FolderReleases(path=tmp_path / "releases")).manifest("stable"))
    for name, value in change.items():
        if isinstance(value, dict):
            said[name] |= value
        else:
            said[name] = said[name] * 2 if value == "twice" else value
    with pytest.raises(ReleaseRefused, match="expected"):
        read_release(json.dumps(said).encode())


class TestConfig:
    """The config of a release: the manifest of its bundle, with the signature."""

    def config(self, tmp_path: Path, maker: Maker) -> dict[str, Any]:
        maker.bundle("part", 120.0)
        maker.publish("part", tmp_path / "releases")
        place = Layout(FolderReleases(path=tmp_path / "releases"))
        said: dict[str, Any] = json.loads(read_blob(place, read_release(place.manifest("stable")).config))
        return said

    def refused(self, said: dict[str, Any], keys: Path) -> str:
        with pytest.raises(ReleaseRefused) as caught:
            read_bundle_config(json.dumps(said).encode(), "release 1", find_trusted_keys(keys))
        return str(caught.value)

    def test_a_key_that_nobody_trusts(self, tmp_path: Path, maker: Maker) -> None:
        write_keys(tmp_path / "stranger")
        assert "none of them" in self.refused(self.config(tmp_path, maker), tmp_path / "stranger.pub")

    def test_a_manifest_that_was_changed(self, tmp_path: Path, maker: Maker) -> None:
        said = self.config(tmp_path, maker)
        assert "120" in said["manifest"]
        said["manifest"] = said["manifest"].replace("120", "220")
        assert "was changed" in self.refused(said, maker.public)

    def test_a_signature_of_another_bundle(self, tmp_path: Path, maker: Maker) -> None:
        said = self.config(tmp_path, maker)
        maker.bundle("other", 130.0)
        said["signature"] = (maker.folder / "other.flaw" / "signature.json").read_text()
        assert "got the signature of another one" in self.refused(said, maker.public)

    def test_no_signature_at_all(self, tmp_path: Path, maker: Maker) -> None:
        said = self.config(tmp_path, maker)
        assert self.refused(said | {"signature": ""}, maker.public)
        del said["signature"]
        assert "signature" in self.refused(said, maker.public)


class TestHostileRegistry:
    """What a registry answers is bounded in bytes and in time, and followed nowhere else."""

    @pytest.fixture
    def published(self, registry: OciRegistry, maker: Maker) -> str:
        maker.bundle("part", 120.0)
        return maker.publish("part", registry.place)

    def test_a_manifest_that_does_not_end(self, registry: OciRegistry, published: str) -> None:
        registry.bad.append(("manifests", endless))
        with pytest.raises(ReleaseRefused, match="at most 1024 KiB"):
            opened(registry).manifest("stable")

    def test_a_manifest_that_is_not_the_one_asked_for(self, registry: OciRegistry, published: str) -> None:
        registry.blobs[published] += b" "
        with pytest.raises(ReleaseRefused, match="was changed on the way"):
            opened(registry).manifest(published)
        with pytest.raises(SourceAway, match="expected the manifest that it names"):
            opened(registry).manifest("stable")

    def test_a_blob_that_is_another_one(self, registry: OciRegistry, published: str) -> None:
        place = opened(registry)
        config = read_release(place.manifest("stable")).config
        data = registry.blobs[config.digest]
        for wrong, words in ((data[:-1] + b"x", "changed on the way"), (data + b"x", "changed"), (data[:-1], "bytes")):
            registry.blobs[config.digest] = wrong
            with pytest.raises(FlawscopeError, match=words):
                read_blob(place, config)

    def test_a_redirect_to_another_machine(
        self, registry: OciRegistry, published: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLAWSCOPE_TEST_PASSWORD", "pw-1")
        with oci_registry() as elsewhere:
            elsewhere.blobs = registry.blobs
            config = read_release(opened(registry).manifest("stable")).config
            target = f"http://localhost:{elsewhere.port}/v2/factory/top/blobs/{config.digest}"
            registry.bad += [("blobs", status(307, Location=target))] * 2
            with pytest.raises(SourceAway, match="sends to http://localhost"):
                read_blob(opened(registry), config)
            assert not elsewhere.requests
            # One that is named may have the blobs; the password stays where it belongs.
            registry.password = "pw-1"
            place = opened(registry, user="line", password="env:FLAWSCOPE_TEST_PASSWORD", hosts=("localhost",))
            assert digest_of(read_blob(place, config)) == config.digest
            assert not any("Authorization" in headers for _, _, headers in elsewhere.requests)
            assert len(elsewhere.requests) == 1

    @pytest.mark.parametrize(
        "target", ["file:///etc/passwd", "http://[", "ftp://127.0.0.1/x", "http://10.0.0.1:99999/", "//example.test/x"]
    )
    def test_a_redirect_to_what_is_no_registry(self, registry: OciRegistry, published: str, target: str) -> None:
        registry.bad.append(("manifests", status(302, Location=target)))
        with pytest.raises(SourceAway, match="expected an answer"):
            opened(registry).manifest("stable")

    def test_redirects_without_an_end(self, registry: OciRegistry, published: str) -> None:
        registry.bad += [("manifests", status(302, Location="/v2/factory/top/manifests/stable"))] * 9
        with pytest.raises(SourceAway, match="4 redirects"):
            opened(registry).manifest("stable")
        assert len(registry.bad) == 5

    @pytest.mark.parametrize("answer", [dripping, dripping_at_the_end])
    def test_an_answer_that_comes_a_byte_at_a_time(
        self, registry: OciRegistry, published: str, monkeypatch: pytest.MonkeyPatch, answer: Answer
    ) -> None:
        monkeypatch.setattr(http_requests, "_LEAST_BYTES_A_S", 1 << 40)
        registry.bad.append(("manifests", answer))
        place = Registry(RegistryReleases(url=registry.place, timeout_s=1.0))
        with pytest.raises(SourceAway, match="it was not done within"):
            place.manifest("stable")

    def test_what_is_no_registry(self, registry: OciRegistry, published: str) -> None:
        registry.bad.append(("tags", status(200, b"<html>")))
        with pytest.raises(SourceAway, match="expected a list of tags"):
            opened(registry).tags()
        registry.bad.append(("manifests", status(500, b"out of order\n\x1b[31m")))
        with pytest.raises(SourceAway, match="got 500 out of order") as caught:
            opened(registry).manifest("stable")
        assert "\x1b" not in str(caught.value)


class TestWhoAsks:
    """Basic and bearer authentication, by secrets that a configuration only names."""

    @pytest.fixture
    def secret(self, tmp_path: Path) -> str:
        (tmp_path / "password").write_text("pw-1\n")
        return f"file:{tmp_path / 'password'}"

    @pytest.mark.parametrize("token", [None, "tok-1"])
    def test_a_registry_that_asks_gets_the_password(
        self, registry: OciRegistry, maker: Maker, secret: str, token: str | None
    ) -> None:
        registry.password, registry.token = "pw-1", token
        maker.bundle("part", 120.0)
        place = opened(registry, user="line", password=secret)
        publish(maker.folder / "part.flaw", place, ("stable",))
        assert place.tags() == ["stable"]
        if token is not None:
            assert registry.scopes == ["repository:factory/top:pull,push"]
        with pytest.raises(SourceAway, match="got 401"):
            opened(registry).manifest("stable")
        (Path(secret.removeprefix("file:"))).write_text("pw-2")
        with pytest.raises(SourceAway, match="does not let us") as caught:
            opened(registry, user="line", password=secret).manifest("stable")
        assert "pw-2" not in str(caught.value)

    def test_a_token_of_its_own(self, registry: OciRegistry, secret: str) -> None:
        registry.token = "pw-1"
        assert opened(registry, token=secret).tags() == []
        assert not registry.scopes

    def test_a_token_that_no_header_can_hold(self, registry: OciRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        registry.token = "pw-1"
        monkeypatch.setenv("ODD", "geheim-€")
        with pytest.raises(SourceAway, match="env:ODD: expected a token of ASCII characters") as raised:
            opened(registry, token="env:ODD").tags()
        assert "geheim" not in str(raised.value)

    def test_closing_breaks_off_a_body_on_a_connection_that_ends_with_it(self, registry: OciRegistry) -> None:
        registry.bad.append(("tags", dripping_at_the_end))
        place = Registry(RegistryReleases(url=registry.place, timeout_s=60.0))
        began = time.monotonic()
        closer = threading.Thread(target=lambda: (wait_until(lambda: bool(registry.requests)), place.close()))
        closer.start()
        with pytest.raises(SourceAway):
            place.tags()
        closer.join()
        assert time.monotonic() - began < 30

    def test_a_token_server_elsewhere_gets_nothing(self, registry: OciRegistry, secret: str) -> None:
        with oci_registry() as elsewhere:
            registry.token, registry.realm = "tok-1", f"http://localhost:{elsewhere.port}/token"
            with pytest.raises(SourceAway, match="sends to http://localhost"):
                opened(registry, user="line", password=secret).tags()
            assert not elsewhere.requests

    @pytest.mark.parametrize("is_long", [False, True])
    @pytest.mark.parametrize("kind", ["token", "password", "token server"])
    def test_what_is_sent_back_is_not_shown(
        self, kind: str, is_long: bool, registry: OciRegistry, monkeypatch: pytest.MonkeyPatch, secret: str
    ) -> None:
        monkeypatch.setenv("TOP", "geheim-geheim-geheim")
        basic = base64.b64encode(b"line:geheim-geheim-geheim").decode()
        options = {"token": "env:TOP"} if kind == "token" else {"user": "line", "password": "env:TOP"}
        if kind == "token server":
            registry.token, path = "its-token", "/token"
        else:
            registry.token, registry.password = (None, "x") if kind == "password" else ("x", None)
            path = "/manifests/"
        place = opened(registry, **options)
        asked = (
            []
            if kind == "token server"
            else [(path, status(401, b"", WWW_Authenticate="Bearer" if kind == "token" else "Basic"))]
        )
        said = b"x" * 290 if is_long else b""
        registry.bad += [
            *asked,
            (path, status(500, said + (b"" if kind == "token" else basic.encode()) + b" geheim-geheim-geheim")),
        ]
        with pytest.raises(SourceAway, match="got 500") as caught:
            place.manifest("stable")
        for word in ("geheim", basic[:8]):
            assert word not in str(caught.value)

    def test_a_secret_that_is_not_there(self, registry: OciRegistry) -> None:
        registry.password = "pw-1"
        with pytest.raises(SourceAway, match="expected a file with a secret"):
            opened(registry, user="line", password="file:/nowhere/password").tags()

    def test_tls_with_an_own_certificate(self, tmp_path: Path, maker: Maker, secret: str) -> None:
        cert, key = write_certificate(tmp_path / "tls")
        maker.bundle("part", 120.0)
        with oci_registry((cert, key)) as server:
            server.password = "pw-1"
            place = opened(server, ca=cert, user="line", password=secret)
            digest = publish(maker.folder / "part.flaw", place, ("stable",))
            assert digest_of(place.manifest("stable")) == digest
            with pytest.raises(SourceAway, match="its certificate is not trusted"):
                opened(server, user="line", password=secret).tags()

    @pytest.mark.parametrize(
        ("url", "options", "words"),
        [
            ("oci://", {}, "expected an address"),
            ("oci://host", {}, "expected an address"),
            ("oci://host/Upper", {}, "expected an address"),
            ("oci://host/name:tag", {}, "expected an address"),
            ("oci://host:0/name", {}, "expected an address"),
            ("oci+http://host/name", {"user": "a", "password": "env:B"}, "reads it"),
            ("oci+http://host/name", {"token": "env:B"}, "reads it"),
            ("oci://host/name", {"user": "a"}, "expected user and password"),
            ("oci://host/name", {"user": "a", "password": "env:B", "token": "env:C"}, "expected user and password"),
            ("oci://host/name", {"ca": Path("/nowhere.pem")}, "expected certificates"),
        ],
    )
    def test_what_cannot_be_used(self, url: str, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ArgumentError, match=words):
            Registry(RegistryReleases(url=url, **options))


def test_a_request_that_waits_is_broken_off(registry: OciRegistry) -> None:
    place = opened(registry)
    registry.bad.append(("manifests", lambda handler: registry.over.wait(60)))  # type: ignore[arg-type,return-value]
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            place.manifest("stable")
        except SourceAway as err:
            caught.append(err)

    thread = threading.Thread(target=ask)
    thread.start()
    while not registry.requests:
        thread.join(0.01)
    place.close()
    thread.join(4.0)  # less than its time-out
    assert not thread.is_alive()
    assert caught


def test_uploads_are_those_of_the_blob(registry: OciRegistry) -> None:
    data = b"some bytes"
    blob = release.Descriptor(media_type="x", digest=digest_of(data), size=len(data))
    opened(registry).put_blob(blob, io.BytesIO(data))
    assert registry.blobs == {blob.digest: data}
    (put,) = [path for path in registry.asked("uploads") if path.startswith("PUT")]
    assert "state=abc&digest=sha256%3A" in put
