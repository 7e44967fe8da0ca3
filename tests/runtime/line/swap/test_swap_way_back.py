"""The way back is never lost: not during the flip of a swap, not during a challenge, and not by one that hangs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from line_stand_ins import wait_until
from swapped_lines import (
    check_generations,
    events_of,
    running,
    step_of,
    swapped,
    swaps_of,
    verdict_of,
    write_bundle_at,
)

from flawscope.errors import ArgumentError
from flawscope.runtime.line.station.view import Measure
from flawscope.runtime.line.swap import station_bundles
from flawscope.runtime.line.swap.run import Step, SwapRun
from flawscope.runtime.line.swap.services import SwapServices


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return a bundle that accepts up to 100; the one of the configuration accepts up to 150."""
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    write_bundle_at(tmp_path / "other.flaw", 100.0)
    return tmp_path / "other.flaw"


def written(path: Path, threshold: float) -> Path:
    write_bundle_at(path, threshold)
    return path


def test_a_way_back_during_the_flip_is_not_lost(tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_writing, go_on = threading.Event(), threading.Event()
    write, ended = station_bundles.write_active, SwapRun.step

    def slow(*arguments: Any) -> None:
        is_writing.set()
        assert go_on.wait(30)
        write(*arguments)

    @contextlib.contextmanager
    def ends_late(run: SwapRun, name: str) -> Iterator[Step]:
        with ended(run, name) as step:
            yield step
            if name == "flip":
                has_answered.wait(30)

    has_answered = threading.Event()
    with running(tmp_path) as line:
        swaps = swaps_of(line)
        digest = swaps.add(other)
        first = line.stations["top"].measures["cam0"].bundle
        with monkeypatch.context() as patch:
            patch.setattr(station_bundles, "write_active", slow)
            patch.setattr(SwapRun, "step", ends_late)
            swaps.begin("top", None, digest)
            assert is_writing.wait(30)

            def go_back() -> None:
                swaps.rollback("top", "eva", "engineer")
                has_answered.set()

            asks = threading.Thread(target=go_back)
            asks.start()
            time.sleep(0.05)  # until it waits for the flip
            go_on.set()
            asks.join(30)
            assert has_answered.is_set()
            wait_until(lambda: swaps.state("top")["state"] != "running")
        assert swaps.state("top")["state"] == "rolled_back"
        record = verdict_of(line, 120)
        assert (record.verdict, record.views[0].bundle) == ("accept", first)
    check_generations(tmp_path)


def test_a_swap_that_hangs_while_it_is_loaded_keeps_nobody_from_going_back(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), SwapServices.load

    def hangs(*arguments: Any) -> Measure:
        assert gate.wait(60)
        return load(*arguments)

    with running(tmp_path) as line:
        swaps = swaps_of(line)
        first = line.stations["top"].measures["cam0"].bundle
        second, third = swaps.add(other), swaps.add(written(tmp_path / "third.flaw", 110.0))
        assert swapped(line, second)["state"] == "done"
        monkeypatch.setattr(SwapServices, "load", hangs)
        swaps.begin("top", None, third)
        wait_until(lambda: step_of(swaps.state("top"), "warm")["state"] == "running")
        said = swaps.rollback("top", "eva", "engineer", "too many rejects")
        assert said["done"] == f"rolled back; the swap to {third[:12]}… was given up in step warm"
        assert (said["state"], said["reason"]) == ("failed", "it was given up before it was done")
        assert verdict_of(line, 120).views[0].bundle == first
        with pytest.raises(ArgumentError, match="Wait for the one that was given up"):
            swaps.begin("top", None, third)
        gate.set()
        # What was given up changes nothing when it goes on.
        wait_until(lambda: step_of(swaps.state("top"), "warm")["state"] == "ok")
        assert swapped(line, second)["state"] == "done"
        assert swaps.rollback("top")["done"] == "rolled back"
    check_generations(tmp_path)
    (event, _) = events_of(tmp_path, "rollback")
    assert (event["actor"], event["old"], event["new"]) == ("eva", second, first)
    assert event["reason"] == f"too many rejects; the swap to {third[:12]}… was given up in step warm"


def test_a_swap_that_hangs_with_nothing_to_go_back_to_is_given_up(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    with running(tmp_path) as line:
        swaps = swaps_of(line)
        monkeypatch.setattr(SwapServices, "load", lambda *arguments: gate.wait(60) and None)
        swaps.begin("top", None, swaps.add(other))
        wait_until(lambda: step_of(swaps.state("top"), "warm")["state"] == "running")
        said = swaps.rollback("top", "eva", "engineer")
        assert (said["state"], said["done"].partition(" was ")[2]) == ("failed", "given up in step warm")
        with pytest.raises(ArgumentError, match="none whose bundle before"):
            swaps.rollback("top", "eva", "engineer")
        gate.set()


def test_a_challenge_does_not_keep_a_swap_from_being_taken_back(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        swaps = swaps_of(line)
        first = line.stations["top"].measures["cam0"].bundle
        assert swapped(line, swaps.add(other))["state"] == "done"
        gate = threading.Event()
        swaps._jobs.put(lambda: gate.wait(30) and None)
        swaps.challenge("top")
        swaps.rollback("top", "eva", "engineer")
        assert verdict_of(line, 120).views[0].bundle == first
        gate.set()
        wait_until(lambda: swaps.state("top")["state"] != "running")
        assert swaps.state("top")["state"] == "failed"
    check_generations(tmp_path)
