"""`flawscope line run`, `check` and `status`: signals, and what a person is told who asks for the wrong thing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import yaml
from error_lines import refused
from line_project import png, write_line
from line_stand_ins import WAIT_S, wait_until

from flawscope import cli
from flawscope.runtime.line import check
from flawscope.runtime.line.clock import SystemClock, boot_id
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.status import STATUS, LineStatus

FOLDER = {"kind": "folder", "path": "images", "settle_ms": 0.0, "poll_ms": 10.0}


def with_images(folder: Path, *values: int) -> Path:
    """Write a line that reads a folder of images; returns its configuration."""
    (folder / "images").mkdir()
    for number, value in enumerate(values):
        (folder / "images" / f"{number}.png").write_bytes(png(value))
    return write_line(folder, source=FOLDER)


def status_of(**changes: object) -> bytes:
    now = SystemClock()
    said = LineStatus("press", "2026-01-01T00:00:00.000Z", 1, True, 0, "", True, (), (), now.mono_ns(), boot_id())
    return msgspec.json.encode(msgspec.structs.replace(said, **changes))


class TestStatus:
    def test_of_a_line_that_never_ran(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = refused(["line", "status", str(write_line(tmp_path))], capsys)
        assert "was never started. Start it: flawscope line run" in said

    @pytest.mark.parametrize("command", ["status", "check", "run"])
    @pytest.mark.parametrize("name", ["none.yml", "none/none.yml", "."])
    def test_of_no_configuration(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
    ) -> None:
        said = refused(["line", command, str(tmp_path / name)], capsys)
        assert "expected the YAML file of a line, which could not be read: " in said

    @pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[]", b'{"line": 1}', b"{" * 5000])
    def test_of_a_broken_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
        config = write_line(tmp_path)
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / STATUS).write_bytes(data)
        assert "expected the state of a line" in refused(["line", "status", str(config)], capsys)

    def test_of_a_state_folder_that_is_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = write_line(tmp_path)
        (tmp_path / "state").write_bytes(b"")
        refused(["line", "status", str(config)], capsys)

    @pytest.mark.parametrize(
        ("changes", "is_running"),
        [
            ({}, True),
            ({"is_running": False}, False),
            ({"mono_ns": SystemClock().mono_ns() - 60 * 10**9}, False),
            ({"boot_id": "another"}, False),
            # The wall clock was set while the line ran: nothing depends on it.
            ({"utc": "1970-01-01T00:00:00.000Z"}, True),
        ],
    )
    def test_of_a_line_that_crashed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], is_running: bool
    ) -> None:
        config = write_line(tmp_path)
        (tmp_path / "state").mkdir()
        path = tmp_path / "state" / STATUS
        path.write_bytes(status_of(**changes))
        os.utime(path, (0, 0))
        assert cli.run(["line", "status", str(config)]) == (0 if is_running else 1)
        assert ("not running" not in capsys.readouterr().out) is is_running


class TestCheck:
    def test_of_a_good_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = with_images(tmp_path, 50)
        assert cli.run(["line", "check", str(config), "--images", str(tmp_path / "seen")]) == 0
        found = capsys.readouterr().out
        assert "ok   state: " in found
        assert "ok   top/cam0 image: accept, score 50 of 150" in found
        assert (tmp_path / "seen" / "top-cam0.png").is_file()
        # Nothing is kept.
        assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "line.yml", "seen", "tiny.flaw"]

    def test_of_the_state_of_another_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = with_images(tmp_path, 50)
        Journal.open(tmp_path / "state", "another", SystemClock()).close()
        assert cli.run(["line", "check", str(config)]) == 1
        assert "FAIL state: " in capsys.readouterr().out

    def test_of_an_address_that_is_taken(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = with_images(tmp_path, 50)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            settings = yaml.safe_load(config.read_text())
            config.write_text(yaml.safe_dump({**settings, "http": {"listen": address}}))
            assert cli.run(["line", "check", str(config)]) == 1
            assert f"FAIL http: http.listen: expected a free address, got {address}" in capsys.readouterr().out
            # A line that runs has the address itself.
            journal = Journal.open(tmp_path / "state", "press", SystemClock())
            try:
                assert cli.run(["line", "check", str(config)]) == 0
            finally:
                journal.close()

    @pytest.mark.parametrize("broken", ["file", "journal"])
    def test_of_a_state_that_is_none(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str) -> None:
        config = with_images(tmp_path, 50)
        if broken == "file":
            (tmp_path / "state").write_bytes(b"")
        else:
            (tmp_path / "state").mkdir()
            (tmp_path / "state" / "journal.db").write_bytes(b"no journal" * 1000)
        assert cli.run(["line", "check", str(config)]) == 1
        assert "FAIL state: " in capsys.readouterr().out

    @pytest.mark.parametrize("bundle", ["none", "file", "folder", "link"])
    def test_of_a_bundle_that_is_none(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bundle: str
    ) -> None:
        monkeypatch.setattr(check, "_WAIT_S", 0.3)
        config = with_images(tmp_path)
        path = tmp_path / "tiny.flaw"
        path.rename(tmp_path / "away")
        if bundle == "file":
            path.write_bytes(b"no bundle")
        elif bundle == "folder":
            path.mkdir()
        elif bundle == "link":
            path.symlink_to("nowhere")
        assert cli.run(["line", "check", str(config)]) == 1
        said = capsys.readouterr()
        assert "FAIL top/cam0 bundle: " in said.out
        assert "Traceback" not in said.out + said.err

    def test_of_a_folder_that_is_not_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check, "_WAIT_S", 1.0)
        config = with_images(tmp_path)
        (tmp_path / "images").rmdir()
        assert cli.run(["line", "check", str(config)]) == 1
        assert "FAIL top/cam0 source: no image within 1 s: " in capsys.readouterr().out

    def test_of_a_source_that_is_not_open_in_time(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check, "_WAIT_S", 0.0)
        assert cli.run(["line", "check", str(with_images(tmp_path, 50))]) == 1
        assert "FAIL top/cam0 source: no image within 0 s: it was not open by then" in capsys.readouterr().out


class Run:
    """`flawscope line run` in a process of its own."""

    def __init__(self, config: Path, before: str = "") -> None:
        program = f"import sys\nfrom flawscope import cli\n{before}\nsys.exit(cli.run(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "line", "run", str(config)], stderr=subprocess.PIPE, text=True
        )
        self.state = config.parent / "state"

    def parts(self) -> int:
        try:
            reader = JournalReader(self.state)
        except Exception:
            return 0
        found = len(reader.parts())
        reader.close()
        return found

    def children(self) -> list[int]:
        pid = self.process.pid
        found = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def end(self) -> str:
        """Wait for its end and return what it said."""
        return self.process.communicate(timeout=WAIT_S)[1]


@pytest.fixture
def runs() -> Iterator[Callable[..., Run]]:
    with contextlib.ExitStack() as stack:

        def run(config: Path, before: str = "") -> Run:
            started = Run(config, before)
            stack.enter_context(started.process)
            stack.callback(started.process.kill)
            return started

        yield run


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: Callable[..., Run], number: signal.Signals
) -> None:
    config = with_images(tmp_path, 50, 200, 60)
    run = runs(config)
    wait_until(lambda: run.parts() == 3)
    children = run.children()
    assert children
    wait_until(lambda: cli.run(["line", "status", str(config)]) == 0)
    begun = time.monotonic()
    run.process.send_signal(number)
    said = run.end()
    assert time.monotonic() - begun < WAIT_S
    assert run.process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0), said
    wait_until(lambda: not any(_is_there(child) for child in children))
    if number != signal.SIGKILL:
        assert "3 parts = 2 accept + 1 reject + 0 fault + 0 open" in said
        assert cli.run(["line", "status", str(config)]) == 1
        assert "not running" in capsys.readouterr().out
    else:
        wait_until(lambda: cli.run(["line", "status", str(config)]) == 1)
        # The files are not inspected a second time.
        again = runs(config)
        (tmp_path / "images" / "new.png").write_bytes(png(50))
        wait_until(lambda: run.parts() == 4)
        again.process.terminate()
        again.end()
        assert run.parts() == 4


@pytest.mark.long
def test_a_second_signal_ends_what_hangs(tmp_path: Path, runs: Callable[..., Run]) -> None:
    hangs = (
        "from flawscope.runtime.line.line import Line\n"
        "import ctypes\n"
        "def stop(self):\n    print('stopping', file=sys.stderr, flush=True)\n    ctypes.PyDLL(None).sleep(60)\n"
        "Line.stop = stop"
    )
    run = runs(with_images(tmp_path, 50), hangs)
    wait_until(lambda: run.parts() == 1)
    run.process.terminate()
    assert run.process.stderr is not None
    while "stopping" not in (line := run.process.stderr.readline()):
        assert line
    run.process.terminate()
    run.end()
    assert run.process.returncode == -signal.SIGTERM


@pytest.mark.long
def test_it_ends_with_its_folders(tmp_path: Path, runs: Callable[..., Run]) -> None:
    (tmp_path / "images").mkdir()
    for number in range(30):
        (tmp_path / "images" / f"{number:02}.png").write_bytes(png(50 + 5 * number))
    config = write_line(tmp_path, source={**FOLDER, "watch": False, "after": "move"}, depth=8)
    run = runs(config)
    said = run.end()
    assert run.process.returncode == 0, said
    assert "30 parts = 21 accept + 9 reject + 0 fault + 0 open" in said
    assert list((tmp_path / "images").iterdir()) == []
