"""The registry of the CNCF (`docker-registry` of Debian) on loopback: published, tagged, and followed by a line."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from free_ports import free_port

pytest.importorskip("cryptography", reason="needs cryptography (extra `sign`)")

from line_stand_ins import wait_until
from released_bundles import Maker, follower
from swapped_lines import SWAP_S, running

from flawscope.runtime.line.rollout.place import open_place, options_of
from flawscope.runtime.line.rollout.publishing import give_tag, list_releases
from flawscope.runtime.line.rollout.release import read_release

pytestmark = pytest.mark.long


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    command = [program, "serve", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _answers(port))
            yield f"oci+http://127.0.0.1:{port}/factory/top"
        finally:
            process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_line_follows_a_real_registry(place: str, tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    first, second = maker.bundle("one", 100.0), maker.bundle("two", 120.0)
    release = maker.publish("one", place, "stable", "v1")
    maker.publish("two", place, "v2")
    opened = open_place(options_of(place))
    rows = {row["tag"]: row["bundle"] for row in list_releases(opened)}
    assert rows == {"stable": first, "v1": first, "v2": second}
    layer = read_release(opened.manifest(release)).layer
    with opened.blob(layer, 1000) as (start, pieces):
        assert start == 1000, "it knows ranges"
        assert sum(map(len, pieces)) == layer.size - 1000
    read = follower(maker, {"kind": "registry", "url": place})
    read = dataclasses.replace(read, config=msgspec.structs.replace(read.config, http=None))
    with running(tmp_path, read=read) as line:
        wait_until(lambda: line.stations["top"].measures["cam0"].bundle == first, SWAP_S)
        give_tag(opened, "v2", "stable")
        wait_until(lambda: line.stations["top"].measures["cam0"].bundle == second, SWAP_S)
