"""`flawscope fleet`: what people publish, tag and list, and how they are told of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs cryptography (extra `sign`)")

from oci_registry import OciRegistry
from released_bundles import Maker
from swapped_lines import write_bundle_at

from flawscope import cli
from flawscope.bundle.ed25519 import write_keys


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    found = Maker(tmp_path)
    found.bundle("part", 120.0)
    return found


def run(*arguments: str | Path) -> int:
    return cli.run(["fleet", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["folder", "registry"])
def test_published_tagged_and_listed(
    kind: str, tmp_path: Path, maker: Maker, registry: OciRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    place = registry.place if kind == "registry" else str(tmp_path / "releases")
    assert run("publish", tmp_path / "part.flaw", "--to", place, "--tag", "v1", "--tag", "canary") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{place}: v1, canary: sha256:")
    release = said.rpartition(": ")[2].strip()
    assert run("tag", place, "v1", "stable") == 0
    assert run("tag", place, release, "also") == 0
    capsys.readouterr()
    assert run("list", place, "--json", "--trusted-keys", maker.public) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["tag"] for row in rows] == ["also", "canary", "stable", "v1"]
    assert {row["release"] for row in rows} == {release}
    assert run("list", place) == 0
    assert capsys.readouterr().out.count(f"({rows[0]['method']})") == 4


def test_a_release_that_no_key_of_this_machine_signed_is_a_finding(
    tmp_path: Path, maker: Maker, registry: OciRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    write_keys(tmp_path / "stranger")
    assert run("publish", tmp_path / "part.flaw", "--to", registry.place) == 0
    assert run("list", registry.place, "--trusted-keys", tmp_path / "stranger.pub") == 1
    assert "none of them" in capsys.readouterr().out
    assert (
        run("publish", tmp_path / "part.flaw", "--to", registry.place, "--trusted-keys", tmp_path / "stranger.pub") == 2
    )
    assert "none of them" in capsys.readouterr().err


def test_a_password_from_a_file(tmp_path: Path, maker: Maker, registry: OciRegistry) -> None:
    registry.password = "pw-1"
    (tmp_path / "pw").write_text("pw-1\n")
    login = ("--user", "line", "--password", f"file:{tmp_path / 'pw'}")
    assert run("publish", tmp_path / "part.flaw", "--to", registry.place, *login) == 0
    assert registry.tags.keys() == {"stable"}
    assert run("list", registry.place, *login) == 0
    assert run("list", registry.place) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["publish", "part.flaw", "--to", "oci://h/A"], "expected an address"),
        (["publish", "part.flaw", "--to", "releases", "--tag", ".x"], "tag: expected at most 128"),
        (["publish", "part.flaw", "--to", "releases", "--user", "u"], "--user: expected a registry"),
        (["publish", "part.flaw", "--to", "oci://h/a", "--token", "secret"], "--token: expected env:VARIABLE"),
        (["publish", "part.flaw", "--to", "oci://h/a", "--host", "a/b"], "--host: expected the name"),
        (["publish", "part.flaw", "--to", "https://h/a"], "--to: expected oci://"),
        (["publish", "part.flaw", "--to", "OCI://h/a"], "--to: expected oci://"),
        (["list", "docker://h/a"], "PLACE: expected oci://"),
        (["publish", "part.flaw", "--to", "oci://u:secret@h/a"], "expected an address"),
        (["publish", "part.flaw", "--to", "https://u:secret@h/a"], "--to: expected oci://"),
        (["publish", "bare.flaw", "--to", "releases"], "expected a signed bundle"),
        (["publish", "none.flaw", "--to", "releases"], "none.flaw: expected a bundle"),
        (["tag", "releases", "v1", "stable"], "could not be read"),
        (["list", "releases"], "could not be read"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    maker: Maker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle_at(tmp_path / "bare.flaw", 120.0)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert "secret" not in said.replace("never the secret itself", "")
    assert {entry.name for entry in tmp_path.iterdir()} == {"part.flaw", "bare.flaw", "maker", "maker.pub"}
