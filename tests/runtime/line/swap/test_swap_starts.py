"""By what a station begins: what a swap put in force, what the configuration names, and what is left of both."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from line_project import png, read_line
from line_stand_ins import wait_until
from swapped_lines import (
    check_generations,
    events_of,
    flip_a_byte,
    running,
    swapped,
    swaps_of,
    verdict_of,
    write_bundle_at,
)

from flawscope.errors import StorageError
from flawscope.runtime.line.swap import station_bundles
from flawscope.runtime.line.swap.active import active_file, read_active


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return a bundle that accepts up to 100; the one of the configuration accepts up to 150."""
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    write_bundle_at(tmp_path / "other.flaw", 100.0)
    return tmp_path / "other.flaw"


def test_a_swap_survives_restarts_until_the_configuration_names_another_bundle(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        assert swapped(line, swaps_of(line).add(other))["state"] == "done"
    said: list[str] = []
    with running(tmp_path, said=said) as line:
        record = verdict_of(line, 120)
        assert (record.verdict, record.generation) == ("reject", 2)
    assert any("by a swap, not that of the configuration" in text for text in said), said
    write_bundle_at(tmp_path / "tiny.flaw", 200.0)
    said.clear()
    with running(tmp_path, said=said) as line:
        record = verdict_of(line, 180)
        assert (record.verdict, record.generation) == ("accept", 3)
    assert any("names another bundle than before" in text for text in said), said
    assert len(events_of(tmp_path, "bundle_configured")) == 1
    with running(tmp_path, said=said) as line:
        assert verdict_of(line, 180).generation == 3
    check_generations(tmp_path)


def test_a_start_with_a_broken_bundle_takes_the_one_before_or_is_not_ready(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        first = line.stations["top"].measures["cam0"].bundle
        digest = swaps_of(line).add(other)
        assert swapped(line, digest)["state"] == "done"
    flip_a_byte(tmp_path, digest)
    said: list[str] = []
    with running(tmp_path, said=said) as line:
        record = verdict_of(line, 120)
        assert (record.verdict, record.views[0].bundle, record.generation) == ("accept", first, 3)
    assert any("the one in force cannot be used" in text for text in said), said
    # Nothing is left: the line starts, and says why it decides nothing.
    flip_a_byte(tmp_path, first)
    read = read_line(tmp_path)
    shutil.rmtree(tmp_path / "tiny.flaw")
    with running(tmp_path, read=read) as line:
        station = line.stations["top"]
        wait_until(lambda: station.readiness.state == "error")
        assert "bundle cam0" in station.readiness.reason
        seq = station.push({"cam0": png(50)})
        wait_until(lambda: line.journal.part_of(seq) is not None)
        assert line.journal.part_of(seq).reason == "not_ready"  # type: ignore[union-attr]
        # A swap brings it back.
        assert swapped(line, swaps_of(line).add(other))["state"] == "done"
        assert verdict_of(line, 50).verdict == "accept"
    assert read_active(active_file(tmp_path / "state", "top")).views[0].digest == digest  # type: ignore[union-attr]
    check_generations(tmp_path)


def test_a_lost_active_file_gives_no_number_twice(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        assert swapped(line, swaps_of(line).add(other))["state"] == "done"
        assert verdict_of(line, 120).generation == 2
    path = active_file(tmp_path / "state", "top")
    for content in (b"{", b""):
        path.write_bytes(content)
        said: list[str] = []
        with running(tmp_path, said=said) as line:
            record = verdict_of(line, 120)
        assert record.verdict == "accept"
        assert any("The station begins with those of the configuration" in text for text in said), said
    assert record.generation == 4
    assert read_active(path) is not None
    path.unlink()
    with running(tmp_path) as line:
        assert verdict_of(line, 120).generation == 5
    check_generations(tmp_path)
    assert len(events_of(tmp_path, "active_file_broken")) == 2


def test_a_number_that_no_part_has_is_not_given_twice_either(tmp_path: Path, other: Path) -> None:
    with running(tmp_path) as line:
        assert verdict_of(line, 120).generation == 1
        assert swapped(line, swaps_of(line).add(other))["state"] == "done"
    active_file(tmp_path / "state", "top").unlink()
    with running(tmp_path) as line:
        record = verdict_of(line, 120)
        assert (record.verdict, record.generation) == ("accept", 3)
    check_generations(tmp_path)


def test_a_way_back_that_could_not_be_written_is_written_later_and_its_number_is_not_given_again(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise StorageError("the disk is full")

    path = active_file(tmp_path / "state", "top")
    with running(tmp_path) as line:
        first = line.stations["top"].measures["cam0"].bundle
        digest = swaps_of(line).add(other)
        assert swapped(line, digest)["state"] == "done"
        with monkeypatch.context() as patch:
            patch.setattr(station_bundles, "write_active", full)
            swaps_of(line).rollback("top")
            line.turn()
            assert verdict_of(line, 120).generation == 3
    # Killed before the disk had room again: what is in the file is in force, under a number of its own.
    with running(tmp_path) as line:
        record = verdict_of(line, 120)
        assert (record.verdict, record.generation, record.views[0].bundle) == ("reject", 4, digest)
        swaps_of(line).set_threshold("top", None, 130.0, "looked at")
        assert verdict_of(line, 120).generation == 5
        assert swapped(line, first)["state"] == "done"
        with monkeypatch.context() as patch:
            patch.setattr(station_bundles, "write_active", full)
            swaps_of(line).rollback("top")
            line.turn()
        assert read_active(path).views[0].digest == first  # type: ignore[union-attr]
        line.turn()
        wait_until(lambda: read_active(path).generation == 7)  # type: ignore[union-attr]
        assert read_active(path).views[0].digest == digest  # type: ignore[union-attr]
    with running(tmp_path) as line:
        assert verdict_of(line, 120).generation == 7
    check_generations(tmp_path)
