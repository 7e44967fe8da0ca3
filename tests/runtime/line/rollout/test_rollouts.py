"""Lines that follow a tag: what is signed and fits goes through the steps of a swap; the rest leaves the old bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

pytest.importorskip("cryptography", reason="needs cryptography (extra `sign`)")

import cv2
import numpy as np
from line_stand_ins import wait_until
from oci_registry import OciRegistry, cut, endless, oci_registry
from released_bundles import Maker, follower
from swapped_lines import SWAP_S, events_of, running, swaps_of, top, verdict_of
from tiny_bundle import write_tiny_bundle

from flawscope import __version__, cli
from flawscope.bundle import sign_bundle
from flawscope.bundle.ed25519 import read_private_key, write_keys
from flawscope.errors import ArgumentError, BackendError, StorageError
from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.config_file import ReadConfig, read_config
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.line_command import _show
from flawscope.runtime.line.rollout import view_rollout
from flawscope.runtime.line.rollout.kept import Failed, Kept, kept_file, read_kept, write_kept
from flawscope.runtime.line.rollout.rollout_status import RolloutStatus
from flawscope.runtime.line.swap import memory, station_bundles
from flawscope.runtime.line.swap.active import Active
from flawscope.runtime.line.swap.run import Step
from flawscope.runtime.line.swap.steps import SwapSteps
from flawscope.runtime.line.swap.store import BundleStore
from flawscope.runtime.line.swap.time_of_day import is_between


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.fixture
def registry() -> Iterator[OciRegistry]:
    with oci_registry() as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often: what is tested waits for what it sees, and not for a time."""
    monkeypatch.setattr("flawscope.runtime.line.rollout.rollouts._TURN_S", 0.02)
    monkeypatch.setattr(view_rollout, "_WAITS_S", 0.02)


def following(
    maker: Maker, source: dict[str, Any] | None = None, *, backend: str | None = None, **options: Any
) -> ReadConfig:
    """Return the configuration of a line that follows a folder; it looks at once, and then very often."""
    read = follower(maker, source or {"kind": "folder", "path": "releases"}, **options)
    (station,) = read.config.stations
    (view,) = station.views
    assert view.rollout is not None
    # Below what a configuration may say.
    view = msgspec.structs.replace(view, rollout=msgspec.structs.replace(view.rollout, every_s=0.02))
    if backend is not None:
        view = msgspec.structs.replace(view, backend=backend)
    stations = (msgspec.structs.replace(station, views=(view,)),)
    config = msgspec.structs.replace(read.config, stations=stations, http=None)
    return ReadConfig(config, read.path, read.sha256)


def registered(server: OciRegistry) -> dict[str, Any]:
    return {"kind": "registry", "url": server.place, "timeout_s": 5.0}


def rollout_of(line: Line) -> RolloutStatus:
    (status,) = line.status().rollouts
    return status


def until(line: Line, *states: str) -> RolloutStatus:
    """Wait until the release is in one of some states."""
    wait_until(lambda: rollout_of(line).state in states, SWAP_S)
    return rollout_of(line)


def until_problem(line: Line, words: str) -> RolloutStatus:
    wait_until(lambda: words in rollout_of(line).problem, SWAP_S)
    return rollout_of(line)


def in_force(line: Line) -> str:
    return line.stations["top"].measures["cam0"].bundle


def looks_again(line: Line, server: OciRegistry) -> None:
    """Wait until the source was asked several times more."""
    before = len(server.asked("manifests"))
    wait_until(lambda: len(server.asked("manifests")) >= before + 4)


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


class TestRefused:
    """What is not signed, not whole or does not fit leaves the old bundle and says why; the next look asks no more."""

    def test_hostile_releases_leave_the_old_bundle_and_a_good_one_comes_after_them(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        maker.bundle("new", 100.0)
        maker.bundle("other", 110.0)
        maker.publish("other", registry.place, "other")
        read = following(maker, registered(registry), swap={"upload_mb": 1})
        with running(tmp_path, read=read) as line:
            before = in_force(line)
            for make, words, pulls in HOSTILE:
                registry.tags.pop("stable", None)
                wait_until(lambda: "got none" in rollout_of(line).problem)
                make(maker, registry)
                release = registry.tags["stable"]
                wait_until(lambda release=release: rollout_of(line).release == release)
                status = until(line, "refused", "failed")
                assert words in status.detail, make
                blobs = registry.asked("blobs")
                looks_again(line, registry)
                assert registry.asked("blobs") == blobs, "it is not asked for again"
                layer = json.loads(registry.blobs[release])["layers"][0]["digest"]
                assert sum(one.startswith("GET") and one.endswith(layer) for one in blobs) >= pulls
                assert pulls or not any(one.startswith("GET") and one.endswith(layer) for one in blobs)
                assert in_force(line) == before
                assert not list((tmp_path / "state" / "bundles").glob(".*.pulled"))
            assert verdict_of(line, 140).verdict == "accept"
            good = maker.bundle("good", 120.0)
            maker.publish("good", registry.place)
            wait_until(lambda: in_force(line) == good, SWAP_S)
            until(line, "done")
        told = events_of(tmp_path, "rollout_refused", "rollout_failed")
        assert len(told) == len(HOSTILE)
        assert all(words in event["reason"] for (_, words, _), event in zip(HOSTILE, told, strict=True))

    def test_bytes_that_are_others_are_not_pulled_again_by_the_next_start(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        other_bytes(maker, registry)
        read = following(maker, registered(registry))
        for _ in range(2):
            with running(tmp_path, read=read) as line:
                until(line, "refused")
                looks_again(line, registry)
        layer = json.loads(registry.blobs[registry.tags["stable"]])["layers"][0]["digest"]
        assert registry.asked("blobs").count(f"GET /v2/factory/top/blobs/{layer}") == 1

    def test_one_that_fails_the_challenge_of_the_site(
        self, tmp_path: Path, maker: Maker, registry: OciRegistry
    ) -> None:
        folder = tmp_path / "state" / "challenge" / "top" / "must_accept"
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "good.png"), np.full((16, 16, 3), 140, np.uint8))
        maker.bundle("new", 100.0)
        release = maker.publish("new", registry.place)
        read = following(maker, registered(registry))
        with running(tmp_path, read=read) as line:
            before = in_force(line)
            assert "challenge: 1 of 1 parts" in until(line, "failed").detail
            # The same bundle under another manifest.
            registry.retag(release, lambda said: said | {"annotations": {"again": "1"}})
            assert "it failed before: challenge" in until(line, "refused").detail
            assert in_force(line) == before
        assert len(events_of(tmp_path, "swap_begun")) == 1


def foreign_key(maker: Maker, registry: OciRegistry) -> None:
    maker.bundle("foreign", 101.0)
    write_keys(maker.folder / "stranger")
    key = read_private_key(maker.folder / "stranger", lambda: None)
    sign_bundle(maker.folder / "foreign.flaw", key, overwrite=True)
    maker.publish("foreign", registry.place)


def without_thresholds(maker: Maker, registry: OciRegistry) -> None:
    write_tiny_bundle(maker.folder / "bare.flaw")
    maker.sign("bare")
    maker.publish("bare", registry.place)


def too_large(maker: Maker, registry: OciRegistry) -> None:
    release = maker.publish("new", registry.place)
    registry.retag(release, lambda said: said | {"layers": [said["layers"][0] | {"size": 2 << 20}]})


def another_bundle(maker: Maker, registry: OciRegistry) -> None:
    """Have the layer of another signed bundle: whoever writes to the registry can make such a manifest."""
    release = maker.publish("new", registry.place)
    layers = json.loads(registry.blobs[registry.tags["other"]])["layers"]
    registry.retag(release, lambda said: said | {"layers": layers})


def no_bundle_at_all(maker: Maker, registry: OciRegistry) -> None:
    release = maker.publish("new", registry.place)
    registry.retag(release, lambda said: said | {"artifactType": "application/vnd.oci.helm"})


def other_bytes(maker: Maker, registry: OciRegistry) -> None:
    maker.bundle("torn", 102.0)
    maker.publish("torn", registry.place)
    layer = json.loads(registry.blobs[registry.tags["stable"]])["layers"][0]["digest"]
    data = bytearray(registry.blobs[layer])
    data[len(data) // 2] ^= 1
    registry.blobs[layer] = bytes(data)


def body_without_end(maker: Maker, registry: OciRegistry) -> None:
    maker.bundle("long", 103.0)
    maker.publish("long", registry.place, "later")
    layer = json.loads(registry.blobs[registry.tags["later"]])["layers"][0]
    registry.bad.append((layer["digest"], endless))
    registry.tags["stable"] = registry.tags["later"]


HOSTILE: tuple[tuple[Callable[[Maker, OciRegistry], None], str, int], ...] = (
    (foreign_key, "none of them", 0),
    (without_thresholds, "expected a bundle with thresholds", 0),
    (too_large, "at most 1 MiB", 0),
    (no_bundle_at_all, "expected a bundle (application/vnd.flawscope", 0),
    (another_bundle, "expected the bundle", 1),
    (other_bytes, "was changed on the way", 1),
    (body_without_end, "it does not end", 1),
)
"""What publishes a release that a line refuses, why, and how often its layer is asked for."""


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
                raise BackendError("the server has no such model")
            return load(steps, step)

        # As the row of a server.
        monkeypatch.setitem(view_rollout.ROWS, "cpu", dataclasses.replace(view_rollout.ROWS["cpu"], concurrent=True))
        monkeypatch.setattr(SwapSteps, "_warm", warm)
        with running(tmp_path, read=following(maker, backend="cpu")) as line:
            is_away.set()
            maker.publish("new", tmp_path / "releases")
            until_problem(line, "warm: the server has no such model")
            is_away.clear()
            until(line, "done")
            assert in_force(line) == digest


class TestTurns:
    """When a release is taken: the first ones by lot, the others later, and swaps within a window of the day."""

    def lots(self, first: float, release: str) -> list[str]:
        def lot(name: str) -> float:
            return int.from_bytes(hashlib.sha256(f"{release} {name}/top/cam0".encode()).digest()[:8], "big") / 2**64

        return [name for number in range(200) if lot(name := f"line{number}") < first]

    def test_the_release_draws_the_first_ones_and_others_wait(self, tmp_path: Path, maker: Maker) -> None:
        digest = maker.bundle("new", 100.0)
        release = maker.publish("new", tmp_path / "releases")
        first = self.lots(0.2, release)
        assert 20 < len(first) < 60
        assert first != self.lots(0.2, f"{release}1"), "another release draws others"
        for name in (first[0], next(f"line{n}" for n in range(200) if f"line{n}" not in first)):
            read = following(maker, first=0.2, wait_s=3600.0)
            line_options = msgspec.structs.replace(read.config.line, name=name, state=tmp_path / name)
            config = msgspec.structs.replace(read.config, line=line_options)
            with running(tmp_path, read=ReadConfig(config, read.path, read.sha256)) as line:
                if name in first:
                    until(line, "done")
                    assert in_force(line) == digest
                else:
                    wait_until(lambda line=line: "others are first" in rollout_of(line).detail)
                    assert in_force(line) != digest
                    assert rollout_of(line).state == "waiting"
                    assert not events_of_line(line, "bundle_added")

    def test_the_others_take_it_when_their_time_is_over(self, tmp_path: Path, maker: Maker) -> None:
        digest = maker.bundle("new", 100.0)
        release = maker.publish("new", tmp_path / "releases")
        read = following(maker, first=0.0, wait_s=3600.0)
        with running(tmp_path, read=read) as line:
            wait_until(lambda: "others are first" in rollout_of(line).detail)
        path = kept_file(tmp_path / "state", "top", "cam0")
        kept = read_kept(path)
        assert kept.release == release
        write_kept(path, msgspec.structs.replace(kept, seen_s=kept.seen_s - 3601.0))
        with running(tmp_path, read=read) as line:
            until(line, "done")
            assert in_force(line) == digest

    def test_a_clock_that_is_set_does_not_end_the_wait(self, tmp_path: Path, maker: Maker) -> None:
        """A machine whose clock has no battery sees the release in another year, before its clock is right."""

        class SetClock(SystemClock):
            ahead_ns = 0

            def utc_ns(self) -> int:
                return super().utc_ns() + self.ahead_ns

        clock = SetClock()
        maker.bundle("new", 100.0)
        maker.publish("new", tmp_path / "releases")
        line = Line(following(maker, first=0.0, wait_s=3600.0), [].append, clock)
        line.start()
        try:
            wait_until(lambda: "others are first" in rollout_of(line).detail)
            seen_s = read_kept(kept_file(tmp_path / "state", "top", "cam0")).seen_s
            clock.ahead_ns = 10**9 * 86400 * 365
            wait_until(lambda: read_kept(kept_file(tmp_path / "state", "top", "cam0")).seen_s > seen_s + 86400 * 364)
            assert rollout_of(line).state == "waiting", "nor does it end with the next start"
        finally:
            line.stop()

    def test_the_way_back_waits_for_nothing(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        is_time = threading.Event()
        is_time.set()
        monkeypatch.setattr(view_rollout, "is_between", lambda times, zone, utc_ns: is_time.is_set())
        digests = {name: maker.bundle(name, threshold) for name, threshold in (("one", 100.0), ("two", 120.0))}
        read = following(maker, first=1.0, between=["22:00", "05:00"])
        for name in ("one", "two"):
            maker.publish(name, tmp_path / "releases", "stable", name)
            with running(tmp_path, read=read) as line:
                wait_until(lambda line=line, name=name: in_force(line) == digests[name], SWAP_S)
                until(line, "done")
        is_time.clear()
        with running(tmp_path, read=following(maker, first=0.0, wait_s=1e6, between=["22:00", "05:00"])) as line:
            maker.publish("one", tmp_path / "releases", "stable")
            wait_until(lambda: in_force(line) == digests["one"], SWAP_S)
            # A new one does.
            maker.bundle("three", 130.0)
            maker.publish("three", tmp_path / "releases", "stable")
            wait_until(lambda: "others are first" in rollout_of(line).detail)

    def test_outside_of_its_window_it_is_pulled_and_waits(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = maker.bundle("new", 100.0)
        maker.publish("new", tmp_path / "releases")
        is_time = threading.Event()
        monkeypatch.setattr(view_rollout, "is_between", lambda times, zone, utc_ns: is_time.is_set())
        with running(tmp_path, read=following(maker, between=["22:00", "05:00"])) as line:
            wait_until(lambda: "waits for 22:00 to 05:00" in rollout_of(line).detail, SWAP_S)
            assert swaps_of(line).state("top")["state"] == "idle"
            is_time.set()
            until(line, "done")
            assert in_force(line) == digest

    def test_times_of_day(self) -> None:
        def at(hour: int, minute: int = 0) -> int:
            return ((hour * 60 + minute) * 60 + 86400 * 20000) * 10**9

        night, day = ("22:00", "05:00"), ("05:00", "22:00")
        assert [is_between(night, "UTC", at(hour)) for hour in (21, 22, 23, 0, 4, 5)] == [
            False, True, True, True, True, False,
        ]  # fmt: skip
        assert not is_between(night, "UTC", at(21, 59))
        assert all(is_between(day, "UTC", at(hour)) != is_between(night, "UTC", at(hour)) for hour in range(24))
        assert is_between(("06:00", "06:00"), "UTC", at(3))
        assert is_between(night, "Asia/Tokyo", at(14)), "23:00 there"


def events_of_line(line: Line, action: str) -> list[dict[str, Any]]:
    return [event for event in line.journal.events(0, 10_000) if event["action"] == action]


class TestStarts:
    """What ended the process is not tried at each start; and what was refused for lack of a key is looked at again."""

    def kept(self, tmp_path: Path, kept: Kept) -> None:
        write_kept(kept_file(tmp_path / "state", "top", "cam0"), kept)

    def test_a_bundle_that_ended_the_process_twice_is_not_tried_a_third_time(
        self, tmp_path: Path, maker: Maker
    ) -> None:
        digest = maker.bundle("new", 100.0)
        release = maker.publish("new", tmp_path / "releases")
        for begun, state in ((1, "done"), (2, "failed")):
            shutil.rmtree(tmp_path / "state", ignore_errors=True)
            self.kept(tmp_path, Kept(release=release, bundle=digest, state="swapping", begun=begun))
            with running(tmp_path, read=following(maker)) as line:
                status = until(line, "done", "failed")
                assert status.state == state
                assert (in_force(line) == digest) == (state == "done")
        assert "the line ended 2 times while it was swapped in" in status.detail

    def test_a_line_that_is_stopped_in_a_swap_goes_on_with_it(self, tmp_path: Path, maker: Maker) -> None:
        digest = maker.bundle("new", 100.0)
        maker.publish("new", tmp_path / "releases")
        for _ in range(2):
            with running(tmp_path, read=following(maker, shadow_parts=5)) as line:
                # No part comes.
                wait_until(lambda line=line: rollout_of(line).detail == "step shadow", SWAP_S)
            assert read_kept(kept_file(tmp_path / "state", "top", "cam0")).begun == 0
        with running(tmp_path, read=following(maker, shadow_parts=1)) as line:
            top(line)
            wait_until(lambda: verdict_of(line, 50) is not None and rollout_of(line).state == "done", SWAP_S)
            assert in_force(line) == digest

    def test_another_version_tries_once_more(self, tmp_path: Path, maker: Maker) -> None:
        digest = maker.bundle("new", 100.0)
        release = maker.publish("new", tmp_path / "releases")
        for version in (__version__, "0.0.1"):
            self.kept(tmp_path, Kept(failed=(Failed(release, digest, "warm: no such operator", version),)))
            with running(tmp_path, read=following(maker)) as line:
                assert until(line, "done", "refused").state == ("refused" if version == __version__ else "done")

    def test_a_key_that_has_come_meanwhile(self, tmp_path: Path, maker: Maker) -> None:
        digest = maker.bundle("new", 100.0)
        write_keys(tmp_path / "stranger")
        sign_bundle(tmp_path / "new.flaw", read_private_key(tmp_path / "stranger", lambda: None), overwrite=True)
        maker.publish("new", tmp_path / "releases")
        with running(tmp_path, read=following(maker)) as line:
            until(line, "refused")
        with maker.public.open("a") as file:
            file.write((tmp_path / "stranger.pub").read_text())
        with running(tmp_path, read=following(maker)) as line:
            until(line, "done")
            assert in_force(line) == digest

    def test_a_file_that_is_broken_begins_anew(self, tmp_path: Path, maker: Maker) -> None:
        maker.bundle("new", 100.0)
        maker.publish("new", tmp_path / "releases")
        path = kept_file(tmp_path / "state", "top", "cam0")
        path.parent.mkdir(parents=True)
        path.write_text("{")
        with running(tmp_path, read=following(maker)) as line:
            until(line, "done")
        assert len(events_of(tmp_path, "rollout_file_broken")) == 1


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
