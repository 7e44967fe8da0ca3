"""Lines that follow a tag: what is signed and fits goes through the steps of a swap, whatever the network does."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

pytest.importorskip("cryptography", reason="needs cryptography (extra `sign`)")

from following_lines import following, in_force, looks_again, registered, rollout_of, until, until_problem
from line_stand_ins import wait_until
from oci_registry import OciRegistry, cut, oci_registry
from released_bundles import Maker, follower
from swapped_lines import SWAP_S, events_of, running, swaps_of, verdict_of

from flawscope import cli
from flawscope.errors import ArgumentError, BundleError, DeviceError, StorageError
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.line_command import _show
from flawscope.runtime.line.rollout import view_rollout
from flawscope.runtime.line.rollout.layout import Layout
from flawscope.runtime.line.rollout.view_rollout import ViewRollout
from flawscope.runtime.line.swap import memory, station_bundles
from flawscope.runtime.line.swap.active import Active
from flawscope.runtime.line.swap.run import Step
from flawscope.runtime.line.swap.steps import SwapSteps
from flawscope.runtime.line.swap.store import BundleStore

pytestmark = pytest.mark.usefixtures("quick_looks")


class TestRelease:
    def test_one_goes_through_the_steps_of_a_swap_while_parts_come(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        read = following(maker, registered(registry))
        with running(tmp_path, read=read) as line:
            assert verdict_of(line, 140).verdict == "accept"
            until_problem(line, "expected a release with the tag stable, got none")
            digest = maker.bundle("new", 100.0)
            release = maker.publish("new", registry.place)
            status = until(line, "done")
            assert (status.release, status.bundle, status.problem) == (release, digest, "")
            assert in_force(line) == digest
            part = verdict_of(line, 140)
            assert (part.verdict, part.views[0].bundle) == ("reject", digest)
            assert line.journal.flush(10.0)
        events = events_of(
            tmp_path, "rollout_away", "rollout_seen", "bundle_added", "swap_begun", "swap", "rollout_done"
        )
        assert [event["action"] for event in events] == [
            "rollout_away", "rollout_seen", "bundle_added", "swap_begun", "swap", "rollout_done",
        ]  # fmt: skip
        assert {event["actor"] for event in events} == {"rollout"}

    def test_of_a_folder_and_back_by_its_tag(self, tmp_path: Path, maker: Maker) -> None:
        digests = {name: maker.bundle(name, threshold) for name, threshold in (("one", 100.0), ("two", 120.0))}
        maker.publish("one", tmp_path / "releases", "stable", "v1")
        with running(tmp_path, read=following(maker)) as line:
            wait_until(lambda: in_force(line) == digests["one"], SWAP_S)
            maker.publish("two", tmp_path / "releases", "stable", "v2")
            wait_until(lambda: in_force(line) == digests["two"], SWAP_S)
            until(line, "done")
            maker.publish("one", tmp_path / "releases", "stable")
            wait_until(lambda: in_force(line) == digests["one"], SWAP_S)
            until(line, "done")
        assert len(events_of(tmp_path, "bundle_added")) == 2, "the way back needs no second pull"

    def test_the_bundle_that_is_in_force_is_done_at_once(self, tmp_path: Path, maker: Maker) -> None:
        read = following(maker)
        maker.publish("tiny", tmp_path / "releases")
        with running(tmp_path, read=read) as line:
            assert until(line, "done").detail == "is in force already"
        assert not events_of(tmp_path, "bundle_added", "swap_begun")

    def test_it_is_an_order_that_is_given_once(self, tmp_path: Path, maker: Maker, registry: OciRegistry) -> None:
        """Whoever takes a release back, or swaps to another bundle, is not overruled by the next look."""
        maker.bundle("new", 100.0)
        maker.publish("new", registry.place)
        with running(tmp_path, read=following(maker, registered(registry))) as line:
            first = in_force(line)
            until(line, "done")
            swaps_of(line).rollback("top", "eva", "engineer", "too many rejects")
            status = until(line, "rolled_back")
            assert "too many rejects" in status.detail
            looks_again(line, registry)
            assert in_force(line) == first
        with running(tmp_path, read=following(maker, registered(registry))) as line:
            looks_again(line, registry)
            assert rollout_of(line).state == "rolled_back"
            assert in_force(line) == first


class TestNetwork:
    def test_a_line_without_it_goes_on_and_says_so_once(self, tmp_path: Path, maker: Maker) -> None:
        with oci_registry() as server:
            source = registered(server)
        with running(tmp_path, read=following(maker, source)) as line:
            until_problem(line, "Does it run, and is the network there?")
            assert verdict_of(line, 140).verdict == "accept"
            age = rollout_of(line).age_s
            wait_until(lambda: rollout_of(line).age_s > age)
            assert line.status().stations[0].state == "ready"
            assert line.is_sound(5.0)
        assert len(events_of(tmp_path, "rollout_away")) == 1

    def test_half_of_a_pull_is_gone_on_with(self, tmp_path: Path, maker: Maker, registry: OciRegistry) -> None:
        self.broken_off(tmp_path, maker, registry)
        layer = json.loads(registry.blobs[registry.tags["stable"]])["layers"][0]["digest"]
        ranges = [headers.get("Range") for _, path, headers in registry.requests if path.endswith(layer)]
        assert set(ranges) == {None, "bytes=1000-"}

    @pytest.mark.slow
    def test_a_registry_without_ranges_is_asked_for_all_of_it(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        registry.knows_ranges = False
        self.broken_off(tmp_path, maker, registry)

    def broken_off(self, tmp_path: Path, maker: Maker, registry: OciRegistry) -> None:
        """Pull a release whose first transfer is cut, with a restart of the line between."""
        digest = maker.bundle("new", 100.0)
        maker.publish("new", registry.place)
        layer = json.loads(registry.blobs[registry.tags["stable"]])["layers"][0]["digest"]
        registry.bad += [(layer, cut(1000)), *[(layer, cut_off)] * 10_000]
        read = following(maker, registered(registry))
        partial = tmp_path / "state" / "bundles" / f".{layer.removeprefix('sha256:')}.pulled"
        with running(tmp_path, read=read):
            wait_until(lambda: partial.exists() and partial.stat().st_size == 1000)
            wait_until(lambda: len(registry.bad) < 10_000)
        assert partial.stat().st_size == 1000, "what is there is kept"
        registry.bad.clear()
        with running(tmp_path, read=read) as line:
            until(line, "done")
            assert in_force(line) == digest
        assert not partial.exists()

    def test_a_beginning_that_is_a_wrong_one_is_pulled_anew(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        digest = maker.bundle("new", 100.0)
        maker.publish("new", registry.place)
        layer = json.loads(registry.blobs[registry.tags["stable"]])["layers"][0]["digest"].removeprefix("sha256:")
        store = tmp_path / "state" / "bundles"
        store.mkdir(parents=True)
        (store / f".{layer}.pulled").write_bytes(b"x" * 900)
        (store / f".{'0' * 64}.pulled").write_bytes(b"of a release that nobody wants")
        with running(tmp_path, read=following(maker, registered(registry))) as line:
            until(line, "done")
            assert in_force(line) == digest
            wait_until(lambda: not list(store.glob(".*.pulled")))

    def test_a_folder_that_is_not_mounted_yet(self, tmp_path: Path, maker: Maker) -> None:
        digest = maker.bundle("new", 100.0)
        maker.publish("new", tmp_path / "share")
        with running(tmp_path, read=following(maker)) as line:
            until_problem(line, "Is the folder there, and mounted?")
            shutil.move(tmp_path / "share", tmp_path / "releases")
            until(line, "done")
            assert in_force(line) == digest
        assert [event["action"] for event in events_of(tmp_path, "rollout_away", "rollout_back")] == [
            "rollout_away",
            "rollout_back",
        ]


def cut_off(handler: Any) -> None:
    handler.close_connection = True


class TestRoom:
    def test_a_disk_without_room_takes_nothing_and_is_tried_again(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = maker.bundle("new", 100.0)
        maker.publish("new", registry.place)
        has_room = threading.Event()

        def check_room(self: BundleStore, size: int) -> None:
            if size and not has_room.is_set():
                raise StorageError("expected 1,024 MiB of free space")

        read = following(maker, registered(registry))
        with running(tmp_path, read=read) as line:
            # After the bundle of the configuration was kept.
            monkeypatch.setattr(BundleStore, "check_room", check_room)
            registry.tags.pop("stable")
            maker.publish("new", registry.place)
            status = until_problem(line, "of free space")
            assert status.state in ("waiting", "pulling")
            has_room.set()
            until(line, "done")
            assert in_force(line) == digest

    def test_memory_that_does_not_do_for_two_is_no_failure_of_the_release(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        maker.bundle("new", 100.0)
        maker.publish("new", registry.place)
        monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
        with running(tmp_path, read=following(maker, registered(registry))) as line:
            until_problem(line, "of free memory for a second bundle")
            assert not [path for path in registry.asked("blobs") if "GET" in path][1:], "the layer was not pulled"
            monkeypatch.setattr(memory, "available_bytes", lambda: 8 << 30)
            until(line, "done")

    def test_a_disk_that_refuses_the_flip_is_no_failure_of_the_release(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = maker.bundle("new", 100.0)
        write, is_full = station_bundles.write_active, threading.Event()

        def write_active(path: Path, active: Active) -> None:
            if is_full.is_set():
                raise StorageError("the disk is full")
            write(path, active)

        with running(tmp_path, read=following(maker)) as line:
            monkeypatch.setattr(station_bundles, "write_active", write_active)
            is_full.set()
            maker.publish("new", tmp_path / "releases")
            until_problem(line, "flip: the disk is full")
            is_full.clear()
            until(line, "done")
            assert in_force(line) == digest
            wait_until(lambda: not rollout_of(line).problem)

    def test_a_server_that_has_not_the_model_yet_is_no_failure_of_the_release(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = maker.bundle("new", 100.0)
        load, is_away = SwapSteps._warm, threading.Event()

        def warm(steps: SwapSteps, step: Step) -> Any:
            if is_away.is_set():
                raise DeviceError("the server has no such model")
            return load(steps, step)

        # As the row of a server.
        monkeypatch.setitem(view_rollout.ROWS, "cpu", dataclasses.replace(view_rollout.ROWS["cpu"], remote=True))
        monkeypatch.setattr(SwapSteps, "_warm", warm)
        with running(tmp_path, read=following(maker, backend="cpu")) as line:
            is_away.set()
            maker.publish("new", tmp_path / "releases")
            until_problem(line, "warm: the server has no such model")
            is_away.clear()
            until(line, "done")
            assert in_force(line) == digest

    def test_a_server_that_computes_something_else_is_one(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would not be another one the next time, and each attempt costs the parts time."""
        maker.bundle("new", 100.0)

        def warm(steps: SwapSteps, step: Step) -> Any:
            raise BundleError("golden/0.png: expected score 200 as at export, got 202")

        monkeypatch.setitem(view_rollout.ROWS, "cpu", dataclasses.replace(view_rollout.ROWS["cpu"], remote=True))
        monkeypatch.setattr(SwapSteps, "_warm", warm)
        with running(tmp_path, read=following(maker, backend="cpu")) as line:
            maker.publish("new", tmp_path / "releases")
            assert "expected score 200" in until(line, "failed").detail

    def test_what_nobody_foresaw_is_told_and_not_tried_twice_a_second(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def manifest(place: Layout, reference: str) -> bytes:
            asked.append(reference)
            raise RuntimeError("of a library")

        monkeypatch.setattr(Layout, "manifest", manifest)
        read = following(maker)
        (station,) = read.config.stations
        (view,) = station.views
        assert view.rollout is not None
        slow = msgspec.structs.replace(view, rollout=msgspec.structs.replace(view.rollout, every_s=60.0))
        stations = (msgspec.structs.replace(station, views=(slow,)),)
        read = dataclasses.replace(read, config=msgspec.structs.replace(read.config, stations=stations))
        turns: list[None] = []
        turn = ViewRollout.turn
        monkeypatch.setattr(ViewRollout, "turn", lambda self: (turns.append(None), turn(self)))
        with running(tmp_path, read=read) as line:
            until_problem(line, "unexpected RuntimeError: of a library")
            wait_until(lambda: len(turns) > 5)
        assert len(asked) == 1


def test_the_status_tells_of_it(tmp_path: Path, maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    read = following(maker)
    maker.publish("tiny", tmp_path / "releases")
    with running(tmp_path, read=read) as line:
        until(line, "done")
        _show(line.status(), is_running=True)
    assert "of cam0: done: is in force already" in capsys.readouterr().out


def test_line_check_looks_at_the_release(
    tmp_path: Path, maker: Maker, registry: OciRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    config = follower(maker, registered(registry)).path
    assert cli.run(["line", "check", str(config)]) == 1
    assert "expected a release with the tag stable, got none" in capsys.readouterr().out
    maker.publish("tiny", registry.place)
    cli.run(["line", "check", str(config)])
    assert "signed by a trusted key" in capsys.readouterr().out
    layer = json.loads(registry.blobs[registry.tags["stable"]])["layers"][0]["digest"]
    assert not [one for one in registry.asked(layer) if one.startswith("GET")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trusted_keys": None}, "trusted_keys: expected the keys of those who sign bundles"),
        ({"source": {"kind": "registry", "url": "oci://h/A"}}, "rollout.source.url: expected an address"),
        ({"source": {"kind": "registry", "url": "oci://u:p@h/a"}}, "not shown"),
        ({"source": {"kind": "registry", "url": "oci+http://h/a", "token": "env:T"}}, "reads it"),
        ({"source": {"kind": "registry", "url": "oci://h/a", "user": "u"}}, "expected user and password"),
        ({"tag": ".hidden"}, "expected tag of at most 128"),
        ({"between": ["22:00", "24:00"]}, 'expected time as `"22:00"`'),
        ({"every_s": 0.1}, "from 1 to 86400"),
    ],
)
def test_a_configuration_that_cannot_be_used(tmp_path: Path, maker: Maker, change: dict[str, Any], words: str) -> None:
    path = follower(maker, {"kind": "folder", "path": "releases"}).path
    config = yaml.safe_load(path.read_text())
    if "trusted_keys" in change:
        del config["trusted_keys"]
    else:
        config["stations"][0]["views"][0]["rollout"] |= change
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ArgumentError, match=words.replace("(", r"\(")):
        read_config(path)
