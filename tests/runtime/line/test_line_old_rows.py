"""A whole line with `journal_days`: old rows and their images go, and nothing that counts parts notices."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from line_stand_ins import WAIT_S, wait_until
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.errors import ArgumentError
from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.gallery.paths import IMAGES
from flawscope.runtime.line.journal import keeping
from flawscope.runtime.line.journal.reviews import ACTION, object_of
from flawscope.runtime.line.journal.verify import verify
from flawscope.runtime.line.line import Line, run

DAY_NS = 24 * 3600 * 10**9
PARTS = 12


class ClockOf(SystemClock):
    """The clock of so many days ago."""

    def __init__(self, days_ago: int) -> None:
        self._ago_ns = days_ago * DAY_NS

    def utc_ns(self) -> int:
        return super().utc_ns() - self._ago_ns


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    path = tmp_path / "line.yml"
    path.write_text(
        "line: {name: press-3, state: state, journal_days: 30}\n"
        'http: {listen: "127.0.0.1:0"}\n'
        "images: {keep: all}\n"
        "sinks: [{kind: jsonl, path: results, required: true}]\n"
        "stations:\n"
        "  - name: top\n    deadline_ms: 20000\n"
        "    views:\n      - {name: cam0, source: {kind: push}, bundle: tiny.flaw, backend: cpu}\n"
    )
    return path


@contextmanager
def running(config: Path, days_ago: int) -> Iterator[Line]:
    line = Line(read_config(config), lambda text: None, ClockOf(days_ago))
    line.start()
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(line, stop.is_set), kwargs={"wait": stop.wait})
    thread.start()
    try:
        wait_until(lambda: line.stations["top"].readiness.is_ready)
        yield line
    finally:
        stop.set()
        thread.join(WAIT_S)
        line.stop()


def push(line: Line, count: int) -> None:
    """Push dark and bright images in turn, each when the one before it has its verdict and its images."""
    station = line.stations["top"]
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 3, (40, 40, 3))
        image = np.clip((60 if number % 2 else 230) + noise, 0, 255).astype(np.uint8)
        station.push({"cam0": cv2.imencode(".png", image)[1].tobytes()}, str(number))
        wait_until(lambda: station.counters.now().open == 0)
    # A reject is given out before its record is queued: to flush the journal is not enough.
    wait_until(lambda: station.counters.now().unrecorded == 0)
    assert line.journal.flush(WAIT_S)
    assert line.gallery is not None
    stored = line.gallery.store
    wait_until(lambda: stored.counts.waiting == 0)


def asked(line: Line, path: str, body: object = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(line.page + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode()


def images(folder: Path) -> set[int]:
    # Not `glob`, which raises where the line removes a folder meanwhile.
    found = [name for _, _, names in os.walk(folder / "state" / IMAGES) for name in names]
    return {int(name.split("-")[0]) for name in found if name.endswith(".png")}


@pytest.mark.long
def test_old_rows_and_their_images_go_and_the_account_holds(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SETTLE_S", 0.0)
    with running(config, 40) as line:
        push(line, PARTS)
        generation = line.journal.parts()[0].generation
    assert images(tmp_path) == set(range(1, PARTS + 1))
    with running(config, 0) as line:
        push(line, PARTS)
        # All of the first run goes while the second one counts its parts.
        wait_until(lambda: [part.seq for part in line.journal.parts()] == list(range(PARTS + 1, 2 * PARTS + 1)), 60)
        wait_until(lambda: images(tmp_path) == set(range(PARTS + 1, 2 * PARTS + 1)))
        assert sum(line.journal.counts().values()) == 2 * PARTS
        line.turn()
        assert line.status().account_holds
        assert line.status().stations[0].parts == PARTS
        for path, body in (
            ("/api/v1/parts/3", None),
            ("/api/v1/parts/3/cam0.png", None),
            ("/api/v1/parts/3/reviews", None),
            ("/api/v1/parts/3/review", {"label": "normal"}),
        ):
            status, words = asked(line, path, body)
            assert (status, "which is sealed: look into sealed/" in words) == (404, True), (path, words)
        assert "may still be open" in asked(line, f"/api/v1/parts/{3 * PARTS}")[1]
        assert json.loads(asked(line, "/api/v1/parts?after=0&order=oldest")[1])["parts"][0]["seq"] == PARTS + 1
        assert asked(line, "/metrics")[0] == 200
        events = [event["action"] for event in line.journal.events(0, 1000)]
        assert events.index("rows_sealed") < events.index("images_deleted")
        # A review that came late, of a part whose image is gone.
        line.journal.event(ACTION, object=object_of(2), new='{"view":"","label":"normal"}')
        line.journal.event(ACTION, object=object_of(PARTS + 2), new='{"view":"","label":"normal"}')
        line.journal.flush(WAIT_S)
    found = verify(tmp_path / "state")
    assert (found.is_whole, found.parts, found.missing) == (True, 2 * PARTS, ())
    # More than one where the required sink was told of the last old rows after the first look.
    assert found.sealed == len(list((tmp_path / "state" / "sealed").iterdir())) >= 1
    assert cli.run(["line", "audit", "verify", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sealed"] == found.sealed
    assert cli.run(["line", "export", str(config), str(tmp_path / "out")]) == 0
    assert "left out: 1 images: the row of the part is sealed" in capsys.readouterr().err
    results = sorted((tmp_path / "results").iterdir())
    sent = [json.loads(text) for file in results for text in file.read_text().splitlines()]
    assert [entry["link"] for entry in sent] == list(range(1, len(sent) + 1))
    # The third start knows of nothing but what was carried forward, and the numbers go on.
    with running(config, -80) as line:
        push(line, 1)
        assert line.journal.parts(limit=1, newest_first=True)[0].seq == 2 * PARTS + 1
        assert line.journal.parts(limit=1, newest_first=True)[0].generation == generation
    assert verify(tmp_path / "state").is_whole


def test_rows_stay_at_least_as_long_as_images_that_nobody_has_seen(config: Path) -> None:
    text = config.read_text()
    config.write_text(text.replace("journal_days: 30", "journal_days: 29"))
    with pytest.raises(ArgumentError, match=r"line\.journal_days: expected at least images\.min_days \(30\)"):
        read_config(config)
    config.write_text(text.replace("journal_days: 30", "journal_days: 1").replace("keep: all", "keep: none"))
    assert read_config(config).config.line.journal_days == 1
    config.write_text(text.replace("journal_days: 30", "journal_days: 0"))
    with pytest.raises(ArgumentError, match="journal_days: expected number from 1 to 36500"):
        read_config(config)
