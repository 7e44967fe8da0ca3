"""Where memory does not do for two bundles: the one in force is dropped first, and loaded again if need be."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from line_project import png
from line_stand_ins import wait_until
from swapped_lines import (
    SWAP_S,
    check_generations,
    events_of,
    running,
    step_of,
    swapped,
    swaps_of,
    top,
    verdict_of,
    write_bundle_at,
)

from flawscope.bundle import Golden
from flawscope.errors import ArgumentError, BundleError
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.measures import Measures
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.swap import memory


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a bundle that accepts up to 100, on a machine without memory for it beside the other, up to 150."""
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    write_bundle_at(tmp_path / "other.flaw", 100.0)
    write_bundle_at(tmp_path / "wrong.flaw", 100.0, golden=(Golden("golden/0.png", score=180.0, map_max=180.0),))
    lines: list[Measures] = []
    init = Measures.__init__

    def noted(self: Measures, *arguments: Any) -> None:
        init(self, *arguments)
        lines.append(self)

    def available() -> int:
        # Room for one bundle.
        is_loaded = any(loaded.inspector is not None for each in lines for loaded in each._loaded.values())
        return 0 if is_loaded else 1 << 30

    monkeypatch.setattr(Measures, "__init__", noted)
    monkeypatch.setattr(memory, "available_bytes", available)
    return tmp_path / "other.flaw"


def record_of(line: Line, seq: int) -> PartRecord:
    wait_until(lambda: line.journal.part_of(seq) is not None)
    record = line.journal.part_of(seq)
    assert record is not None
    return record


class Held:
    """Holds up the loading of bundles until it is told to go on.

    Attributes:
        names: What was to be loaded since.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on, self.names = threading.Event(), list[str]()
        load = Measures._load

        def held(measures: Measures, view: Any, bundle: Path, name: str, **named: Any) -> Any:
            self.names.append(name)
            assert self.go_on.wait(30)
            return load(measures, view, bundle, name, **named)

        monkeypatch.setattr(Measures, "_load", held)


def test_the_old_one_is_dropped_and_parts_meanwhile_are_faults(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as line:
        station, swaps = top(line), swaps_of(line)
        first = verdict_of(line, 120).views[0].bundle
        digest = swaps.add(other)
        refused = swapped(line, digest)
        assert (refused["state"], step_of(refused, "verified")["state"]) == ("failed", "failed")
        assert "Swap with `stop` (--stop)" in refused["reason"]
        assert verdict_of(line, 120).verdict == "accept"
        with pytest.raises(ArgumentError, match="expected no parts for a swap with `stop`, got 3"):
            swaps.begin("top", None, digest, 3, stop=True)
        held = Held(monkeypatch)
        swaps.begin("top", None, digest, actor="eva", role="engineer", stop=True)
        wait_until(lambda: bool(held.names))
        assert station.readiness.state == "starting"
        assert "is being exchanged" in station.readiness.reason
        assert record_of(line, station.push({"cam0": png(50)})).reason == "not_ready"
        line.turn()
        held.go_on.set()
        wait_until(lambda: swaps.state("top")["state"] != "running", SWAP_S)
        state = swaps.state("top")
        assert state["state"] == "done", state
        assert [step["name"] for step in state["steps"]][2] == "dropped"
        assert state["previous"] == {}
        record = verdict_of(line, 120)
        assert (record.verdict, record.views[0].bundle) == ("reject", digest)
        # The way back is another swap.
        assert swapped(line, first, stop=True)["state"] == "done"
        assert verdict_of(line, 120).verdict == "accept"
        line.turn()
    check_generations(tmp_path)
    swap, back = events_of(tmp_path, "swap")
    assert (swap["actor"], swap["old"], swap["new"]) == ("eva", first, digest)
    assert (back["old"], back["new"]) == (digest, first)
    assert [event["old"] for event in events_of(tmp_path, "bundle_dropped")] == [first, digest]
    # A start begins with what is in force.
    with running(tmp_path) as line:
        assert verdict_of(line, 120).verdict == "accept"
    check_generations(tmp_path)


def test_where_the_new_one_fails_the_old_one_is_loaded_again(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        first = verdict_of(line, 120)
        swaps_of(line).set_threshold("top", None, 110.0, "scratches", "eva", "engineer")
        state = swapped(line, swaps_of(line).add(tmp_path / "wrong.flaw"), stop=True)
        assert (state["state"], step_of(state, "warm")["state"]) == ("failed", "failed")
        record = verdict_of(line, 120)
        assert (record.verdict, record.views[0].bundle) == ("reject", first.views[0].bundle)
        assert record.views[0].threshold_revision == 1
        swaps_of(line).set_threshold("top", None, 130.0, "enough", "eva", "engineer")
        assert verdict_of(line, 120).verdict == "accept"
    check_generations(tmp_path)
    (event,) = events_of(tmp_path, "bundle_loaded_again")
    assert event["new"] == first.views[0].bundle
    assert "golden" in event["reason"]
    with running(tmp_path) as line:
        assert verdict_of(line, 120).verdict == "accept"
    held = check_generations(tmp_path)
    assert set(held.values()) == {first.views[0].bundle}


def test_a_swap_that_is_given_up_brings_it_back(tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as line:
        first = verdict_of(line, 120).views[0].bundle
        swaps, held = swaps_of(line), Held(monkeypatch)
        swaps.begin("top", None, swaps.add(other), stop=True)
        wait_until(lambda: bool(held.names))
        swaps.rollback("top", "eva", "engineer")
        held.go_on.set()
        wait_until(lambda: swaps.state("top")["state"] == "failed", SWAP_S)
        assert verdict_of(line, 120).views[0].bundle == first
    check_generations(tmp_path)


def test_where_neither_can_be_loaded_the_station_says_so_until_one_can(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise BundleError("the device does not answer")

    with running(tmp_path) as line:
        station, swaps = top(line), swaps_of(line)
        digest = swaps.add(other)
        with monkeypatch.context() as patch:
            patch.setattr(Measures, "_load", fail)
            assert swapped(line, digest, stop=True)["state"] == "failed"
        assert station.readiness.state == "error"
        assert "the one before cannot be loaded again: the device does not answer" in station.readiness.reason
        station.acknowledge("eva")
        assert record_of(line, station.push({"cam0": png(50)})).reason == "not_ready"
        assert swapped(line, digest)["state"] == "done"
        assert verdict_of(line, 120).verdict == "reject"
    check_generations(tmp_path)


def test_a_stop_of_the_line_meanwhile(tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as line:
        first = verdict_of(line, 120).views[0].bundle
        with monkeypatch.context() as patch:
            held = Held(patch)
            swaps_of(line).begin("top", None, swaps_of(line).add(other), stop=True)
            wait_until(lambda: bool(held.names))
        threading.Timer(0.2, held.go_on.set).start()
    assert len(held.names) == 1
    assert not events_of(tmp_path, "swap", "bundle_loaded_again")
    with running(tmp_path) as line:
        assert verdict_of(line, 120).views[0].bundle == first
    check_generations(tmp_path)
