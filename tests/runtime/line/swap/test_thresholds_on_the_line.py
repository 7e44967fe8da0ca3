"""Thresholds are changed while parts come: within the limits of the bundle alone, and never in the bundle itself."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from line_project import png, read_config, read_line, without_http
from line_stand_ins import wait_until
from swapped_lines import events_of, running, swapped, swaps_of, top, verdict_of, write_bundle_at

from flawscope.bundle import open_bundle
from flawscope.bundle.file_names import overlay_beside
from flawscope.bundle.threshold_overlay import add_revision
from flawscope.errors import ArgumentError
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.parts import PartRecord


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the bundle of the configuration: threshold 150, limits 90 and 220."""
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    return tmp_path


def test_within_the_limits_the_next_part_is_decided_by_it(folder: Path) -> None:
    with running(folder) as line:
        swaps, station = swaps_of(line), top(line)
        stored = folder / "state" / "bundles" / f"{station.measures['cam0'].bundle}.flaw"
        data = stored.read_bytes()
        scoring = station.measures["cam0"].scoring
        before = verdict_of(line, 120)
        assert (before.verdict, before.threshold, before.threshold_revision) == ("accept", 150.0, 0)
        assert swaps.set_threshold("top", "cam0", 110.0, "scratches of lot 7", "eva", "engineer") == {
            "threshold": 110.0,
            "threshold_revision": 1,
        }
        after = verdict_of(line, 120)
        assert (after.verdict, after.threshold, after.threshold_revision) == ("reject", 110.0, 1)
        assert (before.generation, after.generation) == (1, 2)
        swaps.set_threshold("top", None, 130.0, "too strict", "tom", "engineer")
        assert verdict_of(line, 120).threshold_revision == 2
        # Nothing was loaded again, and the signed bytes are as they were.
        assert station.measures["cam0"].scoring is scoring
        assert stored.read_bytes() == data
    events = events_of(folder, "threshold")
    assert [(event["actor"], event["old"], event["new"], event["reason"]) for event in events] == [
        ("eva", "150 (revision 0)", "110 (revision 1)", "scratches of lot 7"),
        ("tom", "110 (revision 1)", "130 (revision 2)", "too strict"),
    ]
    # It survives a restart, and is told once.
    with running(folder) as line:
        record = verdict_of(line, 120)
        assert (record.threshold, record.threshold_revision, record.generation) == (130.0, 2, 3)
    assert len(events_of(folder, "threshold")) == 2


@pytest.mark.parametrize(
    ("image", "reason", "words"),
    [
        (89.9, "why", "within the bundle's limits, 90 to 220"),
        (220.1, "why", "within the bundle's limits, 90 to 220"),
        (math.nan, "why", "within the bundle's limits"),
        (math.inf, "why", "within the bundle's limits"),
        (120.0, " ", "expected 1 to 1000 characters"),
    ],
)
def test_outside_of_the_limits_it_is_refused(folder: Path, image: float, reason: str, words: str) -> None:
    with running(folder) as line:
        with pytest.raises(ArgumentError, match=words):
            swaps_of(line).set_threshold("top", None, image, reason, "eva", "engineer")
        record = verdict_of(line, 120)
        assert (record.threshold, record.threshold_revision, record.generation) == (150.0, 0, 1)
        assert not (folder / "state" / "thresholds").exists() or not list(
            (folder / "state" / "thresholds").rglob("*.json")
        )
    (event,) = events_of(folder, "threshold_refused")
    assert (event["actor"], event["role"]) == ("eva", "engineer")


def test_a_bundle_without_limits_and_a_view_with_a_product_have_no_other_thresholds(tmp_path: Path) -> None:
    with running(tmp_path) as line, pytest.raises(ArgumentError, match="states limits"):
        swaps_of(line).set_threshold("top", None, 120.0, "why")


def test_each_view_and_each_bundle_has_its_own(folder: Path) -> None:
    """Two stations share one inspector, and each decides by its own threshold, in one batch too."""
    read_line(folder)
    path = folder / "line.yml"
    text = path.read_text()
    station = text[text.index("- deadline_ms") :].partition("\n- ")[0]
    assert "name: top" in station
    path.write_text(text.replace(station, f"{station.rstrip()}\n{station.replace('name: top', 'name: side')}"))
    write_bundle_at(folder / "other.flaw", 200.0)
    with running(folder, read=without_http(read_config(path))) as line:
        swaps, side = swaps_of(line), line.stations["side"]
        assert side.measures["cam0"].scoring is top(line).measures["cam0"].scoring
        swaps.set_threshold("side", None, 100.0, "side alone")
        for _ in range(5):
            number = side.push({"cam0": png(120)})
            assert verdict_of(line, 120).verdict == "accept"
            wait_until(lambda number=number: line.journal.part_of(number) is not None)
            record = line.journal.part_of(number)
            assert record is not None
            assert (record.verdict, record.threshold) == ("reject", 100.0)
        # Another bundle begins with its own threshold; the way back finds the one that was set.
        swaps.set_threshold("top", None, 110.0, "top")
        assert swapped(line, swaps.add(folder / "other.flaw"))["state"] == "done"
        assert verdict_of(line, 120).threshold == 200.0
        swaps.set_threshold("top", None, 210.0, "the other bundle")
        assert verdict_of(line, 205).verdict == "accept"
        swaps.rollback("top")
        assert verdict_of(line, 120).threshold == 110.0


def test_the_overlay_beside_the_bundle_is_the_beginning_of_the_lines_own(folder: Path) -> None:
    bundle = folder / "tiny.flaw"

    def add(image: float) -> None:
        with open_bundle(bundle) as opened:
            add_revision(
                bundle,
                opened.manifest,
                overlay_beside(bundle),
                precision="fp32",
                image=image,
                pixel=95.0,
                min_area_px=7,
                by="eva",
                why="lot 7",
            )

    add(110.0)
    said: list[str] = []
    with running(folder, said=said) as line:
        record = verdict_of(line, 120)
        assert (record.verdict, record.threshold_revision) == ("reject", 1)
        swaps_of(line).set_threshold("top", None, 130.0, "too strict")
        assert verdict_of(line, 120).threshold_revision == 2
        in_force = top(line).measures["cam0"].in_force
        assert in_force is not None
        assert in_force.thresholds is not None
        assert (in_force.thresholds.pixel.value, in_force.min_area_px) == (95.0, 7)
    assert any("are the line's from now on" in text for text in said), said
    add(100.0)
    said.clear()
    with running(folder, said=said) as line:
        assert verdict_of(line, 120).threshold == 130.0
    assert any("has no effect" in text for text in said), said
    (refused,) = events_of(folder, "threshold_refused")
    assert "has no effect" in refused["reason"]
    events = events_of(folder, "threshold")
    assert [(event["actor"], event["old"], event["new"]) for event in events] == [
        ("line", "", "110 (revision 1)"),
        ("line", "110 (revision 1)", "130 (revision 2)"),
    ]
    assert len({event["object"] for event in events}) == 1


# Forks a line for each point, so that the imports are paid for once.
_KILLER = """
import os, signal, sys
from pathlib import Path
from line_project import png, read_config, without_http
from flawscope.runtime.line import line as line_module
from flawscope.runtime.line.swap import station_bundles

folder = Path(sys.argv[1])

def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def live(point, image):
    line = line_module.Line(without_http(read_config(folder / "line.yml")), lambda text: None)
    line.start()
    write = station_bundles.write_active
    station_bundles.write_active = kill if point == "before" else lambda *arguments: (write(*arguments), kill())
    line.swaps.set_threshold("top", None, image, "scratches of lot 7", "eva", "engineer")

for point, image in (("before", 110.0), ("after", 120.0)):
    child = os.fork()
    if child == 0:
        try:
            live(point, image)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        sys.exit("was not killed: " + point)
"""


@pytest.mark.long
def test_killed_before_its_event_a_threshold_in_force_gets_one_at_the_next_start(folder: Path) -> None:
    """Once before the active file is written, and once after it; the next start of each tells it."""
    read_line(folder)
    environment = {"PYTHONPATH": str(Path(__file__).parents[3] / "helpers"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", _KILLER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for _ in range(2):
        with running(folder) as line:
            assert verdict_of(line, 125).threshold == 120.0
    events = events_of(folder, "threshold", "generation")
    told = [event for event in events if event["action"] == "threshold"]
    assert [(event["actor"], event["role"], event["new"]) for event in told] == [
        ("line", "", "110 (revision 1)"),
        ("line", "", "120 (revision 2)"),
    ]
    assert all("in force and not on record, found at the start: revision" in event["reason"] for event in told)
    assert all("by eva: scratches of lot 7" in event["reason"] for event in told)
    assert told[0]["object"].startswith("station top view cam0 bundle ")


def test_what_if_counts_the_scores_on_record(folder: Path) -> None:
    with running(folder) as line:
        swaps = swaps_of(line)
        for value in (100, 120, 140, 160):
            verdict_of(line, value)
        top(line).push({"cam0": b"no image"})
        line.journal.flush()
        found = swaps.what_if("top", None, 130.0, 100)
        assert (found.parts, found.accept, found.reject) == (4, 2, 2)
        assert found.scores == [160.0, 140.0, 120.0, 100.0]
        assert found.changed == [{"seq": 3, "score": 140.0, "verdict": "accept", "would_be": "reject"}]
        assert (found.threshold, found.limits) == (150.0, {"low": 90.0, "high": 220.0})
        # Strictly above, as the line decides.
        assert swaps.what_if("top", None, 140.0, 100).reject == 1
        assert swaps.what_if("top", None, 130.0, 2).parts <= 2
        # Scores of another bundle are no answer.
        write_bundle_at(folder / "other.flaw", 100.0)
        assert swapped(line, swaps.add(folder / "other.flaw"))["state"] == "done"
        assert swaps.what_if("top", None, 130.0, 100).parts == 0


def test_a_threshold_that_was_in_force_and_is_gone_is_not_passed_over(folder: Path) -> None:
    with running(folder) as line:
        assert verdict_of(line, 120).verdict == "accept"
        swaps_of(line).set_threshold("top", None, 110.0, "scratches of lot 7")
        assert verdict_of(line, 120).verdict == "reject"
        digest = line.stations["top"].measures["cam0"].bundle
    (overlay,) = (folder / "state" / "thresholds").rglob("*.json")
    overlay.unlink()
    with running(folder) as line:
        station = line.stations["top"]
        wait_until(lambda: station.readiness.state == "error")
        assert "expected the thresholds of revision 1" in station.readiness.reason
        record = verdict_of_any(line, 120)
        assert (record.verdict, record.reason) == ("fault", "not_ready")
        # Who puts it in force again has decided so.
        assert swapped(line, digest)["state"] == "done"
        assert verdict_of(line, 120).verdict == "accept"
    with running(folder) as line:
        assert verdict_of(line, 120).verdict == "accept"


def verdict_of_any(line: Line, value: int) -> PartRecord:
    """Push an image to a station that need not be ready, and return what is on record of it."""
    seq = line.stations["top"].push({"cam0": png(value)})
    wait_until(lambda: line.journal.part_of(seq) is not None)
    record = line.journal.part_of(seq)
    assert record is not None
    return record
