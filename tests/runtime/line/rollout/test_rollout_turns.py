"""When a line takes a release: its turn, its window of the day, and what a start does with what it knows."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("cryptography", reason="needs cryptography (extra `sign`)")

from following_lines import following, in_force, rollout_of, until
from line_stand_ins import wait_until
from released_bundles import Maker
from swapped_lines import SWAP_S, events_of, running, swaps_of, top, verdict_of

from flawscope import __version__
from flawscope.bundle import sign_bundle
from flawscope.bundle.ed25519 import read_private_key, write_keys
from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.config_file import ReadConfig
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.rollout import view_rollout
from flawscope.runtime.line.rollout.kept import Failed, Kept, kept_file, read_kept
from flawscope.runtime.line.state_record import write_record
from flawscope.runtime.line.swap.time_of_day import is_between

pytestmark = pytest.mark.usefixtures("quick_looks")


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
        write_record(path, msgspec.structs.replace(kept, seen_s=kept.seen_s - 3601.0))
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
        write_record(kept_file(tmp_path / "state", "top", "cam0"), kept)

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
