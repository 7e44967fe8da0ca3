from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from memory_journal import event_entry, head_entry, part_entry
from project_paths import ROOT

from flawscope.runtime.line.sinks.jsonl import JsonLines
from flawscope.runtime.line.sinks.sink import SinkError
from flawscope.runtime.line.sinks.table import JsonlSink


def sink_of(folder: Path, rotate: Literal["hourly", "daily", "never"] = "never") -> JsonLines:
    return JsonLines(JsonlSink(path=folder, rotate=rotate), "press")


def links_of(path: Path) -> list[int]:
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line)["link"] for line in data.splitlines()]


def test_entries_are_appended_one_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "parts"
    sink = sink_of(folder)
    sink.send([part_entry(1), event_entry(2)])
    sink.send([head_entry(3)])
    sink.close()
    sink_of(folder).send([part_entry(4)])
    (path,) = folder.iterdir()
    assert path.name == "press.jsonl"
    assert links_of(path) == [1, 2, 3, 4]
    assert json.loads(path.read_text().splitlines()[0]) == part_entry(1)


@pytest.mark.parametrize(
    ("rotate", "names"),
    [
        ("daily", ["press-2026-11-30.jsonl", "press-2026-12-01.jsonl"]),
        ("hourly", ["press-2026-11-30T22.jsonl", "press-2026-11-30T23.jsonl", "press-2026-12-01T00.jsonl"]),
        ("never", ["press.jsonl"]),
    ],
)
def test_a_new_file_begins_with_the_hour_or_day_of_the_entries(
    tmp_path: Path, rotate: Literal["hourly", "daily", "never"], names: list[str]
) -> None:
    times = [
        "2026-11-30T22:59:59.999Z",
        "2026-11-30T23:00:00.000Z",
        "2026-11-30T23:59:59.999Z",
        "2026-12-01T00:00:00.000Z",
    ]
    # The last part was triggered before midnight and recorded after it: its file goes by its own time.
    entries = [part_entry(link, utc=utc) for link, utc in enumerate([*times, times[2]], start=1)]
    sink = sink_of(tmp_path, rotate)
    sink.send(entries)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert sorted(link for path in tmp_path.iterdir() for link in links_of(path)) == [1, 2, 3, 4, 5]
    sink.send(entries[3:])  # sent again: to the same files
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_an_entry_without_a_time_is_kept(tmp_path: Path) -> None:
    sink_of(tmp_path, "daily").send([part_entry(1, utc="../../x")])
    assert links_of(tmp_path / "press-undated.jsonl") == [1]


@pytest.mark.parametrize("length", [1, 40, 70_000, 200_000])
@pytest.mark.parametrize("whole", [0, 2])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, length: int, whole: int) -> None:
    path = tmp_path / "press.jsonl"
    line = json.dumps(part_entry(1)).encode() + b"\n"
    torn = json.dumps({"text": "x" * 300_000}).encode()[:length]
    path.write_bytes(line * whole + torn)
    sink_of(tmp_path).send([part_entry(2)])
    assert links_of(path) == [1] * whole + [2]


def test_a_last_line_that_lacks_its_end_alone_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "press.jsonl"
    path.write_bytes(json.dumps(part_entry(1)).encode())
    sink_of(tmp_path).send([part_entry(2)])
    assert links_of(path) == [1, 2]


def test_zeros_that_a_power_cut_left_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "press.jsonl"
    path.write_bytes(json.dumps(part_entry(1)).encode() + b"\n" + bytes(4096))
    sink_of(tmp_path).send([part_entry(2)])
    assert links_of(path) == [1, 2]


def test_lines_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "press.jsonl"
    path.write_bytes(b"# kept by hand\n")
    sink_of(tmp_path).send([part_entry(2)])
    assert path.read_bytes().startswith(b"# kept by hand\n{")


@pytest.mark.parametrize("written", [0, 10, 700])
def test_a_full_disk_is_an_error_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    sink = sink_of(tmp_path)
    sink.send([part_entry(1)])
    real = os.write
    state: dict[str, Any] = {"is_full": True, "left": written}

    def write(handle: int, data: bytes) -> int:
        if not state["is_full"]:
            return real(handle, data)
        if not state["left"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(handle, bytes(data)[: state["left"]])
        state["left"] = 0
        return count

    monkeypatch.setattr("flawscope.runtime.line.sinks.jsonl.os.write", write)
    with pytest.raises(SinkError, match=r"press\.jsonl: could not be written: No space left on device"):
        sink.send([part_entry(2), part_entry(3), part_entry(4)])
    assert links_of(tmp_path / "press.jsonl") == [1]
    state["is_full"] = False
    sink.send([part_entry(2), part_entry(3), part_entry(4)])
    assert links_of(tmp_path / "press.jsonl") == [1, 2, 3, 4]


def test_a_disk_that_does_not_store_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("flawscope.runtime.line.sinks.jsonl.os.fsync", fsync)
    with pytest.raises(SinkError, match="Input/output error"):
        sink_of(tmp_path).send([part_entry(1)])


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "file_as_folder"])
def test_what_is_no_file_is_not_written(tmp_path: Path, kind: str) -> None:
    folder, path = tmp_path / "parts", tmp_path / "parts" / "press.jsonl"
    if kind == "file_as_folder":
        folder.write_text("mine")
    else:
        folder.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(SinkError, match="could not be written"):
        sink_of(folder).send([part_entry(1)])
    assert not (tmp_path / "elsewhere").exists()


_KILLED = """
import sys
from pathlib import Path
from memory_journal import part_entry
from flawscope.runtime.line.sinks.jsonl import JsonLines
from flawscope.runtime.line.sinks.table import JsonlSink
sink = JsonLines(JsonlSink(path=Path(sys.argv[1]), rotate="never"), "press")
link = 0
while True:
    sink.send([part_entry(link := link + 1)])
    print(link, flush=True)
"""


def test_what_was_sent_before_a_kill_is_there(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/helpers")}
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        while int(child.stdout.readline()) < 20:
            pass
        child.send_signal(signal.SIGKILL)
        sent = [int(line) for line in child.stdout.read().split()]
    last = max(sent, default=20)
    sink_of(tmp_path).send([part_entry(10**6)])
    links = links_of(tmp_path / "press.jsonl")
    assert links[:last] == list(range(1, last + 1))
    assert len(links) in (last + 1, last + 2)
