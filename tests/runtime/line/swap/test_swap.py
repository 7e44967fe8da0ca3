"""Bundles are changed while parts come: none is lost, each says what decided it, and what fails changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from line_project import png, read_config, read_line, without_http, write_line
from line_stand_ins import wait_until
from swapped_lines import (
    check_generations,
    events_of,
    flip_a_byte,
    running,
    step_of,
    swapped,
    swaps_of,
    top,
    verdict_of,
    write_bundle_at,
)
from tiny_bundle import write_tiny_bundle

from flawscope.bundle import Golden, open_bundle, pack_bundle, sign_bundle
from flawscope.bundle.ed25519 import read_private_key, write_keys
from flawscope.errors import ArgumentError, BundleError, StorageError
from flawscope.imaging.learned_images import LearnedImages
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.swap import memory, station_bundles
from flawscope.runtime.line.swap.active import active_file, read_active


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return a bundle that accepts up to 100; the one of the configuration accepts up to 150."""
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    write_bundle_at(tmp_path / "other.flaw", 100.0)
    return tmp_path / "other.flaw"


@pytest.mark.long
def test_under_fifty_parts_a_second_none_is_lost_and_each_names_its_bundle(tmp_path: Path, other: Path) -> None:
    read = read_line(tmp_path, deadline_ms=30_000.0, depth=64)
    with running(tmp_path, read=read) as line:
        station, swaps, stop = top(line), swaps_of(line), threading.Event()
        pushed: list[int] = []

        def push() -> None:
            # 120 lies between the thresholds of the two bundles.
            while not stop.wait(0.02):
                pushed.append(station.push({"cam0": png(120)}))

        pusher = threading.Thread(target=push)
        pusher.start()
        try:
            digest = swaps.add(other)
            first = station.measures["cam0"].bundle
            for _ in range(3):
                state = swapped(line, digest, shadow=5, actor="eva", role="engineer")
                assert state["state"] == "done", state
                assert step_of(state, "shadow")["detail"] == "5 parts, 5 decided otherwise"
                assert {row["new"]["verdict"] for row in state["disagreements"]} == {"reject"}
                done = len(pushed)
                wait_until(lambda done=done: len(pushed) >= done + 5)
                swaps.rollback("top", "eva", "engineer")
                done = len(pushed)
                wait_until(lambda done=done: len(pushed) >= done + 5)
        finally:
            stop.set()
            pusher.join()
        line.turn()
        assert station.generation == 7
    assert pushed == list(range(1, len(pushed) + 1))
    held = check_generations(tmp_path)
    assert held == {number: first if number % 2 else digest for number in range(1, 8)}
    records = {record.seq: record for record in _records(line, tmp_path)}
    assert sorted(records) == pushed
    assert {record.verdict for record in records.values()} == {"accept", "reject"}
    for record in records.values():
        assert record.verdict == ("accept" if record.generation % 2 else "reject")
    assert [event["actor"] for event in events_of(tmp_path, "swap", "rollback")] == ["eva"] * 6


def _records(line: Line, folder: Path) -> Any:
    reader = JournalReader(folder / "state")
    try:
        return reader.parts(limit=10**6)
    finally:
        reader.close()


def test_a_swap_and_the_way_back(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        swaps = swaps_of(line)
        assert verdict_of(line, 120).verdict == "accept"
        assert swaps.state("top") == {"state": "idle", "steps": [], "disagreements": [], "previous": {}}
        with pytest.raises(ArgumentError, match="expected a swap not longer than"):
            swaps.rollback("top")
        digest = swaps.add(other)
        assert {bundle["digest"] for bundle in swaps.bundles()} == {
            digest,
            line.stations["top"].measures["cam0"].bundle,
        }
        state = swapped(line, digest)
        assert [(step["name"], step["state"]) for step in state["steps"]] == [
            ("staged", "ok"),
            ("verified", "ok"),
            ("warm", "ok"),
            ("golden", "ok"),
            ("challenge", "skipped"),
            ("shadow", "skipped"),
            ("flip", "ok"),
        ]
        assert "no challenge parts" in step_of(state, "challenge")["detail"]
        record = verdict_of(line, 120)
        assert (record.verdict, record.generation, record.views[0].bundle) == ("reject", 2, digest)
        with pytest.raises(ArgumentError, match="the one in force"):
            swaps.begin("top", None, digest)
        assert swaps.rollback("top")["state"] == "rolled_back"
        record = verdict_of(line, 120)
        assert (record.verdict, record.generation) == ("accept", 3)
        used = {bundle["digest"]: bundle["used_by"] for bundle in swaps.bundles()}
        assert used == {digest: [], record.views[0].bundle: ["top/cam0"]}
    check_generations(tmp_path)


def test_open_parts_are_decided_by_what_they_were_opened_with(tmp_path: Path, other: Path) -> None:
    with running(tmp_path, deadline_ms=60_000.0, depth=8) as line:
        station, swaps = top(line), swaps_of(line)
        digest = swaps.add(other)
        scoring, gate = station.measures["cam0"].scoring, threading.Event()
        score = scoring._inspector.score  # type: ignore[attr-defined]
        scoring._inspector.score = lambda *arguments: gate.wait(30) and score(*arguments)  # type: ignore[method-assign]
        open_parts = [station.push({"cam0": png(120)}) for _ in range(3)]
        assert swapped(line, digest)["state"] == "done"
        # One of the new generation overtakes those of the old one, which hang.
        assert verdict_of(line, 120).verdict == "reject"
        assert station.counters.now().open == 3
        gate.set()
        wait_until(lambda: station.counters.now().open == 0)
        line.journal.flush()
        for seq in open_parts:
            record = line.journal.part_of(seq)
            assert record is not None
            assert (record.verdict, record.generation) == ("accept", 1)
    check_generations(tmp_path)


def _challenge(line: Line, folder: Path, digest: str) -> None:
    good = folder / "state" / "challenge" / "top" / "must_accept"
    good.mkdir(parents=True)
    (good / "part-7.png").write_bytes(png(120))


def _no_memory(line: Line, folder: Path, digest: str) -> None:
    memory.available_bytes = lambda: 1 << 20


def _full_disk(line: Line, folder: Path, digest: str) -> None:
    def fail(*arguments: object) -> None:
        raise StorageError("the disk is full")

    station_bundles.write_active = fail


@pytest.mark.parametrize(
    ("cause", "step", "words"),
    [
        (lambda line, folder, digest: flip_a_byte(folder, digest), "staged", "hash|changed|broken|CRC"),
        (_no_memory, "verified", "MiB of free memory for a second bundle"),
        (_challenge, "challenge", "part-7.png: expected accept, got reject"),
        (_full_disk, "flip", "the disk is full"),
    ],
)
def test_what_fails_before_the_flip_changes_nothing(
    tmp_path: Path,
    other: Path,
    monkeypatch: pytest.MonkeyPatch,
    cause: Callable[[Line, Path, str], None],
    step: str,
    words: str,
) -> None:
    for module, name in ((memory, "available_bytes"), (station_bundles, "write_active")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    with running(tmp_path) as line:
        before = verdict_of(line, 120)
        active = read_active(active_file(tmp_path / "state", "top"))
        digest = swaps_of(line).add(other)
        cause(line, tmp_path, digest)
        state = swapped(line, digest, actor="eva", role="engineer")
        assert state["state"] == "failed"
        assert step_of(state, step)["state"] == "failed"
        after = verdict_of(line, 120)
        assert (after.verdict, after.generation, after.views[0].bundle) == ("accept", 1, before.views[0].bundle)
        assert read_active(active_file(tmp_path / "state", "top")) == active
        assert swaps_of(line).state("top")["previous"] == {}
    (event,) = events_of(tmp_path, "swap_failed")
    assert (event["actor"], event["role"], event["new"]) == ("eva", "engineer", digest)
    assert event["reason"].startswith(f"{step}: ")
    assert any(word in event["reason"] for word in words.split("|")), event["reason"]
    assert not events_of(tmp_path, "swap")


def test_a_bundle_that_is_not_calibrated_or_computes_otherwise_is_refused(tmp_path: Path, other: Path) -> None:
    write_tiny_bundle(tmp_path / "bare.flaw")
    write_bundle_at(tmp_path / "wrong.flaw", 100.0, golden=(Golden("golden/0.png", score=180.0, map_max=180.0),))
    with running(tmp_path) as line:
        for name, step, words in (
            ("bare", "verified", "expected a bundle with thresholds"),
            ("wrong", "warm", "golden"),
        ):
            state = swapped(line, swaps_of(line).add(tmp_path / f"{name}.flaw"))
            assert (state["state"], step_of(state, step)["state"]) == ("failed", "failed")
            assert words in state["reason"]
        assert verdict_of(line, 120).verdict == "accept"
    assert len(events_of(tmp_path, "swap_failed")) == 2


def test_with_trusted_keys_only_their_bundles_are_taken(tmp_path: Path, other: Path) -> None:
    pytest.importorskip("cryptography")
    for name in ("quality", "foreign"):
        write_keys(tmp_path / name)
    key, foreign = (read_private_key(tmp_path / name, lambda: None) for name in ("quality", "foreign"))
    (tmp_path / "keys").mkdir(mode=0o755)
    (tmp_path / "quality.pub").rename(tmp_path / "keys" / "quality.pub")
    sign_bundle(tmp_path / "tiny.flaw", key)
    path = tmp_path / "line.yml"
    read_line(tmp_path)
    path.write_text(path.read_text() + "trusted_keys: keys\n")
    with running(tmp_path, read=without_http(read_config(path))) as line:
        swaps = swaps_of(line)
        with pytest.raises(BundleError, match="got one without signature"):
            swaps.add(other, "eva", "engineer")
        sign_bundle(other, foreign)
        with pytest.raises(BundleError, match="which is none of them"):
            swaps.add(other, "eva", "engineer")
        # One that came into the folder by another way is refused by the swap itself.
        with open_bundle(other, check_signature=False) as opened:
            digest = opened.manifest.digest
            pack_bundle(opened, tmp_path / "state" / "bundles" / f"{digest}.flaw")
        assert "which is none of them" in swapped(line, digest)["reason"]
        sign_bundle(other, key, overwrite=True)
        assert swaps.add(other) == digest
        assert swapped(line, digest)["state"] == "done"
    refused = events_of(tmp_path, "bundle_refused")
    assert [event["actor"] for event in refused] == ["eva", "eva"]


def test_an_upload_is_whole_or_leaves_nothing(tmp_path: Path, other: Path) -> None:
    packed = tmp_path / "packed.flaw"
    with open_bundle(other) as opened:
        pack_bundle(opened, packed)
    data = packed.read_bytes()
    with running(tmp_path) as line:
        swaps, folder = swaps_of(line), tmp_path / "state" / "bundles"
        before = sorted(folder.iterdir())
        broken = bytearray(data)
        broken[len(data) // 3] ^= 1

        def upload(content: bytes) -> str:
            with swaps.receiving("eva", "engineer") as receiving:
                for start in range(0, len(content), 1000):
                    receiving.write(content[start : start + 1000])
                return swaps.received(receiving, "eva", "engineer")

        for content in (b"no bundle", data[: len(data) // 2], bytes(broken)):
            with pytest.raises(BundleError, match=r"what was sent|expected a packed bundle"):
                upload(content)
            assert sorted(folder.iterdir()) == before
        digest = upload(data)
        assert (folder / f"{digest}.flaw").read_bytes() == data
        assert swapped(line, digest)["state"] == "done"
    assert len(events_of(tmp_path, "bundle_refused")) == 3
    (added,) = events_of(tmp_path, "bundle_added")
    assert added["object"] == f"bundle {digest}"


def test_challenge_parts_are_both_accepted_and_rejected(tmp_path: Path, other: Path) -> None:
    folder = tmp_path / "parts"
    for name, value in (("must_accept/good.png", 90), ("must_reject/scratch.png", 180)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(value))
    write_bundle_at(tmp_path / "blind.flaw", 200.0)
    with running(tmp_path, challenge={"folder": str(folder)}) as line:
        swaps = swaps_of(line)
        state = swapped(line, swaps.add(tmp_path / "blind.flaw"))
        assert "scratch.png: expected reject, got accept" in state["reason"]
        assert swapped(line, swaps.add(other))["state"] == "done"
        assert step_of(swaps.state("top"), "challenge")["detail"] == "1 accepted and 1 rejected, as they must be"
        # The one in force, when somebody wants to know; one that fails stops the station.
        swaps.challenge("top", None, "eva", "engineer")
        wait_until(lambda: swaps.state("top")["state"] == "done")
        (folder / "must_accept" / "bright.png").write_bytes(png(200))
        swaps.challenge("top", None, "eva", "engineer")
        wait_until(lambda: swaps.state("top")["state"] == "failed")
        wait_until(lambda: line.stations["top"].readiness.state == "error")
        assert "bright.png" in line.stations["top"].readiness.reason
        line.stations["top"].acknowledge("eva")
        assert line.stations["top"].readiness.is_ready
    passed, failed = events_of(tmp_path, "challenge_passed", "challenge_failed")[1:]
    assert (passed["actor"], passed["reason"]) == ("eva", "by hand: 1 accepted and 1 rejected, as they must be")
    assert "bright.png" in failed["reason"]


def test_a_bundle_that_cannot_score_is_taken_back_by_itself(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        station, swaps = top(line), swaps_of(line)
        first = station.measures["cam0"].bundle
        assert swapped(line, swaps.add(other))["state"] == "done"

        def fail(*arguments: object) -> None:
            raise RuntimeError("the device is gone")

        station.measures["cam0"].scoring._inspector.score = fail  # type: ignore[method-assign]
        assert [verdict_of(line, 120).reason for _ in range(3)] == ["inference"] * 3
        wait_until(lambda: station.measures["cam0"].bundle == first)
        assert verdict_of(line, 120).verdict == "accept"
        assert swaps.state("top")["state"] == "rolled_back"
    (event,) = events_of(tmp_path, "rollback")
    assert event["actor"] == "line"
    assert "the device is gone" in event["reason"]


def test_the_old_bundle_is_let_go_after_its_window(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station_bundles, "_GRACE_NS", -(10**12))
    read_line(tmp_path)
    path = tmp_path / "line.yml"
    path.write_text(path.read_text() + "swap: {rollback: {window_parts: 3}}\n")
    with running(tmp_path, read=without_http(read_config(path))) as line:
        swaps, loaded = swaps_of(line), line.swaps._services.measures._loaded  # type: ignore[union-attr]
        assert swapped(line, swaps.add(other))["state"] == "done"
        assert len(loaded) == 2
        for _ in range(3):
            line.turn()
            assert swaps.state("top")["previous"]
            verdict_of(line, 120)
        line.turn()
        assert not swaps.state("top")["previous"]
        line.turn()
        wait_until(lambda: len(loaded) == 1)
        with pytest.raises(ArgumentError, match="Swap to that bundle"):
            swaps.rollback("top")


def test_a_swap_that_waits_for_parts_can_be_given_up(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        station, swaps = top(line), swaps_of(line)
        digest = swaps.add(other)
        swaps.begin("top", "cam0", digest, 100)
        wait_until(lambda: step_of(swaps.state("top"), "shadow")["state"] == "running")
        with pytest.raises(ArgumentError, match="expected one swap at a time"):
            swaps.begin("top", "cam0", digest, 100)
        verdict_of(line, 120)
        wait_until(lambda: swaps.state("top")["disagreements"])
        swaps.rollback("top", "eva", "engineer")
        wait_until(lambda: swaps.state("top")["state"] == "failed")
        assert verdict_of(line, 120).generation == 1
        assert station.counters.now().fault == 0
    (event,) = events_of(tmp_path, "swap_failed")
    assert event["reason"] == "shadow: it was given up before it was done"


@pytest.mark.parametrize("failure", ["hangs", "loses its device"])
def test_a_bundle_that_hangs_or_loses_its_device_is_taken_back(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setattr(station_bundles, "_STUCK_S", 0.05)
    with running(tmp_path, deadline_ms=300.0) as line:
        station, swaps, gate = top(line), swaps_of(line), threading.Event()
        first = station.measures["cam0"].bundle
        assert swapped(line, swaps.add(other))["state"] == "done"
        scoring = station.measures["cam0"].scoring
        if failure == "hangs":
            scoring._inspector.score = lambda *_: gate.wait(30) and []  # type: ignore[method-assign]
            assert verdict_of(line, 120).reason == "deadline"
        else:
            scoring.problem = "the device failed, and is being opened again: gone"
        line.turn()
        assert station.measures["cam0"].bundle == first
        gate.set()
        wait_until(lambda: scoring.stuck_s() == 0.0)
        assert swaps.state("top")["state"] == "rolled_back"
    assert not line.lost


@pytest.mark.parametrize("strict", [False, True])
def test_a_bundle_that_learned_from_other_images_is_refused_unless_that_is_allowed(
    tmp_path: Path, other: Path, strict: bool
) -> None:
    learned = LearnedImages(
        images=5,
        heights=(480, 480),
        widths=(640, 640),
        aspects=(1.3, 1.4),
        colours="colour",
        bits=(8,),
        brightness=(0.0, 255.0),
        red_minus_blue=(0.0, 0.0),
    )
    write_bundle_at(other, 100.0, learned=learned)
    path = write_line(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["stations"][0]["views"][0]["strict"] = strict
    path.write_text(yaml.safe_dump(config))
    with running(tmp_path, read=without_http(read_config(path))) as line:
        digest = swaps_of(line).add(other)
        assert verdict_of(line, 120).verdict == "accept"  # the size of images is known then
        state = swapped(line, digest)
        assert state["state"] == "failed"
        assert "width by height is 1, of the images learned from 1.3 to 1.4" in step_of(state, "verified")["detail"]
        assert strict or "allow_unlike" in step_of(state, "verified")["detail"]
        assert verdict_of(line, 120).verdict == "accept"
        state = swapped(line, digest, allow_unlike=True)
        assert state["state"] == ("failed" if strict else "done")
        detail = step_of(state, "verified")["detail"]
        assert strict or "NOTE: the images of this view are unlike those that it learned from: " in detail


def test_one_view_of_two_is_changed(tmp_path: Path, other: Path) -> None:
    path = write_line(tmp_path)
    config = yaml.safe_load(path.read_text())
    (view,) = config["stations"][0]["views"]
    config["stations"][0]["views"] = [view, {**view, "name": "cam1", "source": dict(view["source"])}]
    path.write_text(yaml.safe_dump(config))
    with running(tmp_path, read=without_http(read_config(path))) as line:
        swaps, station = swaps_of(line), top(line)
        (tmp_path / "state" / "challenge" / "top" / "must_accept").mkdir(parents=True)
        digest = swaps.add(other)
        with pytest.raises(ArgumentError, match="expected one of cam0, cam1, got none"):
            swaps.begin("top", None, digest)
        swaps.begin("top", "cam1", digest)
        wait_until(lambda: swaps.state("top")["state"] != "running")
        # Of which view its parts are is not said.
        assert "expected a folder for each view" in swaps.state("top")["reason"]
        (tmp_path / "state" / "challenge" / "top" / "must_accept").rmdir()
        swaps.begin("top", "cam1", digest)
        wait_until(lambda: swaps.state("top")["state"] == "done")
        seq = station.push({"cam0": png(120), "cam1": png(120)})
        wait_until(lambda: line.journal.part_of(seq) is not None)
        record = line.journal.part_of(seq)
        assert record is not None
        assert [(view.view, view.verdict) for view in record.views] == [("cam0", "accept"), ("cam1", "reject")]
        assert [view.bundle == digest for view in record.views] == [False, True]
        swaps.set_threshold("top", "cam1", 150.0, "as before")
        # The way back is that of the bundle alone.
        assert swaps.rollback("top")["state"] == "rolled_back"
        assert {name: measure.threshold for name, measure in station.measures.items()} == {"cam0": 150.0, "cam1": 150.0}
        assert len({measure.bundle for measure in station.measures.values()}) == 1


def test_the_way_back_does_not_need_the_disk(tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as line:
        assert swapped(line, swaps_of(line).add(other))["state"] == "done"
        monkeypatch.setattr(station_bundles, "write_active", station_bundles.write_active)
        _full_disk(line, tmp_path, "")
        assert swaps_of(line).rollback("top", "eva", "engineer", "too many rejects")["state"] == "rolled_back"
        record = verdict_of(line, 120)
        assert (record.verdict, record.generation) == ("accept", 3)
    (event,) = events_of(tmp_path, "rollback")
    assert event["reason"] == "too many rejects; the disk is full"
