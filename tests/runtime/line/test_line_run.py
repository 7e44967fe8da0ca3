"""A whole line: configuration, bundle, sources in their children, journal, outputs, sinks, commands."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from line_stand_ins import WAIT_S, wait_until
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.runtime import Inspector
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.line import Line, run

COMMAND = [sys.executable, "-m", "flawscope"]
"""The command line, in a process of its own."""


def picture(value: int, seed: int = 0) -> np.ndarray:
    """Return an image near one brightness; each seed is another image."""
    noise = np.random.default_rng(seed).integers(0, 3, (40, 40, 3))
    return np.clip(value + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Write the configuration of a line with the tiny bundle, which rejects what is brighter than 150."""
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())

    def write(source: str, *, more: str = "", station: str = "") -> Path:
        path = tmp_path / "line.yml"
        path.write_text(
            "line: {name: press-3, state: state}\n"
            f"{more or 'http: null'}\n"
            "stations:\n"
            f"  - name: top\n    deadline_ms: 20000\n    {station or 'depth: 4'}\n"
            "    views:\n"
            f"      - {{name: cam0, source: {source}, bundle: tiny.flaw, backend: cpu}}\n"
        )
        return path

    return write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Make a folder of images: dark ones, bright ones, and one that is broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / f"{number:02}.png"), picture(60 if number % 2 else 230, number))
    whole = (folder / "00.png").read_bytes()
    (folder / "08.png").write_bytes(whole[: len(whole) // 2])
    return folder


def parts_of(folder: Path) -> list[tuple[object, ...]]:
    """Return the parts that are on record, as a script reads them."""
    with sqlite3.connect(folder / "state" / "journal.db") as connection:
        rows = connection.execute("SELECT seq, part_id, verdict, reason, score FROM part ORDER BY seq").fetchall()
    connection.close()
    return rows


@pytest.mark.long
def test_a_folder_gives_what_score_gives(config: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    path = config("{kind: folder, path: images, watch: false, settle_ms: 0}", station="record: before_accept")
    path.write_text(path.read_text() + "sinks: [{kind: jsonl, path: results}]\n")
    done = subprocess.run([*COMMAND, "line", "run", path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "9 parts = 4 accept + 4 reject + 1 fault + 0 open" in done.stderr
    rows = parts_of(tmp_path)
    assert [row[0] for row in rows] == list(range(1, 10))
    with Inspector.load(tmp_path / "tiny.flaw", "cpu") as inspector:
        for _, name, verdict, reason, score in rows:
            result = inspector(images / str(name))
            assert (verdict, score) == (result.decision, result.score), name
            assert (reason == "unreadable_image") == (name == "08.png")
    sent = [json.loads(line) for file in (tmp_path / "results").iterdir() for line in file.read_text().splitlines()]
    # In the order of their verdicts: what is broken is known before what has to be scored.
    assert sorted(entry["seq"] for entry in sent if entry["kind"] == "part") == [row[0] for row in rows]
    assert [entry["link"] for entry in sent] == list(range(1, len(sent) + 1))
    # A second run finds nothing new: each file is a part once.
    again = subprocess.run([*COMMAND, "line", "run", path], capture_output=True, text=True, timeout=120, check=False)
    assert "0 parts" in again.stderr, again.stderr
    assert parts_of(tmp_path) == rows


@pytest.mark.long
def test_a_line_that_is_killed_goes_on_without_a_gap(config: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(300):
        cv2.imwrite(str(folder / f"{number:03}.png"), picture(60 if number % 2 else 230, number))
    path = config("{kind: folder, path: images, watch: false, settle_ms: 0}")
    database = tmp_path / "state" / "journal.db"
    for kills in range(4):
        process = subprocess.Popen([*COMMAND, "line", "run", path], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda goal=40 * (kills + 1): database.is_file() and last_seq(database) >= goal, 60)
        finally:
            process.kill()
            process.wait(WAIT_S)
    done = subprocess.run([*COMMAND, "line", "run", path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = parts_of(tmp_path)
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    # Each file has a verdict, at least once; what was open at a kill is a fault on record as well.
    assert {row[1] for row in rows} == {f"{number:03}.png" for number in range(300)}
    for _, name, verdict, reason, _ in rows:
        expected = "accept" if int(str(name)[:3]) % 2 else "reject"
        assert verdict == expected or reason == "interrupted"


def last_seq(database: Path) -> int:
    """Return the last number on record while a line runs."""
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        with connection:
            row = connection.execute("SELECT max(seq) FROM part").fetchone()
        connection.close()
    except sqlite3.Error:
        return 0
    return row[0] or 0


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(
    config: Callable[..., Path], images: Path, tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("{kind: folder, path: images, settle_ms: 0}")
    process = subprocess.Popen([*COMMAND, "line", "run", path], stderr=subprocess.PIPE, text=True)
    try:
        database = tmp_path / "state" / "journal.db"
        wait_until(lambda: database.is_file() and last_seq(database) == 9, 60)
        # The state is written once a second.
        wait_until(lambda: cli.run(["line", "status", str(path), "--json"]) == 0 and parts_said(capsys) == (9, 4))
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(WAIT_S)
    assert process.returncode == 0, said
    assert "9 parts = 4 accept + 4 reject + 1 fault + 0 open" in said
    assert cli.run(["line", "status", str(path)]) == 1
    assert "not running" in capsys.readouterr().out


def parts_said(capsys: pytest.CaptureFixture[str]) -> tuple[int, int]:
    """Return parts and accepts of the state that was printed last."""
    station = json.loads(capsys.readouterr().out.splitlines()[-1])["stations"][0]
    return station["parts"], station["accept"]


@pytest.fixture
def pushed(config: Callable[..., Path]) -> Iterator[Line]:
    """Run a line whose images are pushed."""
    path = config("{kind: push}", more='http: {listen: "127.0.0.1:0"}')
    line = Line(read_config(path), lambda text: None)
    line.start()
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(line, stop.is_set), kwargs={"wait": stop.wait})
    thread.start()
    yield line
    stop.set()
    thread.join(WAIT_S)
    line.stop()


def png(value: int, seed: int = 0) -> bytes:
    """Return an image file."""
    return cv2.imencode(".png", picture(value, seed))[1].tobytes()


def test_a_thousand_parts_from_four_threads_are_on_record_once_each(pushed: Line) -> None:
    station = pushed.stations["top"]
    wait_until(lambda: station.readiness.is_ready)
    numbers: list[int] = []

    def push(first: int) -> None:
        for number in range(first, 1000, 4):
            while station.counters.now().open >= 3 and number % 7:  # now and then it is overrun
                time.sleep(0.0005)
            numbers.append(station.push({"cam0": png(60 if number % 2 else 230, number)}, str(number)))

    threads = [threading.Thread(target=push, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(numbers) == list(range(1, 1001))
    wait_until(lambda: station.counters.now().unrecorded == 0 and station.counters.now().open == 0, 60)
    counts, recorded = station.counters.now(), pushed.journal.counts()
    assert counts.holds
    assert {verdict: recorded.get(("top", verdict), 0) for verdict in ("accept", "reject", "fault")} == {
        "accept": counts.accept,
        "reject": counts.reject,
        "fault": counts.fault,
    }
    for record in pushed.journal.parts(limit=1000):
        expected = "accept" if int(record.part_id) % 2 else "reject"
        assert record.verdict == expected or record.reason == "overrun"
    pushed.turn()
    assert pushed.status().account_holds


def test_a_start_that_fails_closes_everything_and_can_be_done_again(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    path = config("{kind: push}", more='http: {listen: "127.0.0.1:0"}')
    good = (tmp_path / "tiny.flaw").read_bytes() if (tmp_path / "tiny.flaw").is_file() else None
    write_tiny_bundle(tmp_path / "bare.flaw")
    path.write_text(path.read_text().replace("tiny.flaw", "bare.flaw"))
    before = threading.active_count()
    for _ in range(2):
        line = Line(read_config(path), lambda text: None)
        with pytest.raises(ArgumentError, match="expected a bundle with thresholds"):
            line.start()
        line.stop()
    wait_until(lambda: threading.active_count() == before)
    path.write_text(path.read_text().replace("bare.flaw", "tiny.flaw"))
    line = Line(read_config(path), lambda text: None)
    line.start()
    other = Line(read_config(path), lambda text: None)
    with pytest.raises(FlawscopeError):
        other.start()
    line.stop()
    assert good is None or good == (tmp_path / "tiny.flaw").read_bytes()


def test_check_says_what_is_right_and_what_is_not(
    config: Callable[..., Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config("{kind: folder, path: images, watch: false, settle_ms: 0}")
    assert cli.run(["line", "check", str(path), "--images", str(tmp_path / "first")]) == 0
    assert "ok   top/cam0 image: reject" in capsys.readouterr().out
    assert (tmp_path / "first" / "top-cam0.png").is_file()
    # Nothing is kept, and no file counts as seen.
    assert not (tmp_path / "state").exists()
    path.write_text(path.read_text().replace("deadline_ms: 20000", "deadline_ms: 0.01"))
    assert cli.run(["line", "check", str(path)]) == 1
    assert "FAIL top times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected"),
        ("line: [", "is no valid YAML"),
        ("line: {name: a, state: s}\nstations: []", "stations"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "status"])
def test_a_wrong_configuration_is_one_line(tmp_path: Path, text: str, words: str, command: str) -> None:
    path = tmp_path / "line.yml"
    path.write_text(text)
    done = subprocess.run([*COMMAND, "line", command, path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["line.yml"]


def test_the_line_imports_no_torch_and_score_no_starlette() -> None:
    code = (
        "import sys, flawscope.runtime.line.line, flawscope.runtime.line.http.app\n"
        "assert not {'torch', 'diffusers', 'transformers', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    code = (
        "import sys, flawscope.runtime.score_command\n"
        "assert not {'starlette', 'uvicorn', 'yaml', 'pymodbus', 'sqlite3'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
