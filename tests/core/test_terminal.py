"""Output: one way out, which escapes, and streams that fail in one line."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from datetime import datetime, timedelta

import pytest
from project_paths import ROOMS, ROOT
from rich.table import Table

from flawscope.errors import StorageError
from flawscope.rich_console import PlainConsole
from flawscope.terminal import (
    command_line,
    default_reporting,
    echo,
    echo_json,
    guarded_streams,
    notes_on_stderr,
    report_as,
)

EVIL = "a\x1b]52;c;aGk=\x07\nb\u202e" + os.fsdecode(b"\xff") + ".png"
SHOWN = r"a\x1b]52;c;aGk=\x07\x0ab\u202e\xff.png"


@pytest.mark.parametrize("err", [False, True])
def test_a_line_stays_one_line_of_plain_text(err, capsys):
    echo(f"fault   {EVIL}", err=err)
    printed = capsys.readouterr()
    assert (printed.err if err else printed.out) == f"fault   {SHOWN}\n"


def test_json_is_escaped_too(capsys):
    echo_json({"image": EVIL})
    assert capsys.readouterr().out == '{"image":"a\\u001b]52;c;aGk=\\u0007\\nb\\u202e\\\\xff.png"}\n'


def test_a_table_shows_names_of_strangers(capsys):
    table = Table("[bold]name", box=None)
    table.add_row("\x1b2\x9b")
    console = PlainConsole(soft_wrap=True)
    console.print(table)
    console.print(f"left out: [red]{EVIL}")
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines] == ["[bold]name", r"\x1b2\x9b", f"left out: [red]{SHOWN}"]


def test_a_record_can_keep_any_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["flawscope", "score", os.fsdecode(b"\xff.flaw")])
    assert command_line().encode() == rb"flawscope score '\xff.flaw'"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_a_terminal_of_another_encoding_gets_escapes(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with guarded_streams():
        echo("部品.png")
    assert sys.stdout is stream
    assert stream.buffer.getvalue() == rb"\u90e8\u54c1.png" + b"\n"


@pytest.mark.parametrize("fail", ["write", "flush"])
def test_a_stdout_that_fails_is_an_error_and_a_stderr_is_not(fail, monkeypatch):
    class Full(io.StringIO):
        calls = 0

    def refuse(self, *text):
        self.calls += 1
        raise OSError(28, "No space left on device")

    setattr(Full, fail, refuse)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Full())
    full = sys.stderr
    with guarded_streams():
        with pytest.raises(StorageError, match=r"^standard output: could not be written: No space left on device\."):
            echo("a")
        for _ in range(3):
            echo("note", err=True)
    assert full.calls == 1
    # What ends the process flushes both: nothing may fail a second time.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        stream.close()


def flawscope(arguments, shell):
    code = "import sys; from flawscope.cli import main; main(sys.argv[1:])"
    script = f'"$0" -c "$1" {arguments} {shell}'
    command = ["bash", "-o", "pipefail", "-c", script, sys.executable, code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arguments", ["--help", "--version", "data inspect {data}", "data inspect {data} --json"])
@pytest.mark.parametrize("shell", ["> /dev/full", ">&-", "> >(exec <&-; sleep 2)"])
def test_a_process_without_stdout_says_so_in_one_line(arguments, shell, tiny_root):
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("this system has no /dev/full")
    if "exec" in shell:
        arguments = f"{arguments.format(data=tiny_root)}"
        shell = "| (exec <&-; sleep 0)"
    done = flawscope(arguments.format(data=tiny_root), shell)
    lines = done.stderr.splitlines()
    # A reader may also have taken all before it left.
    if "exec" in shell and done.returncode == 0:
        return
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert lines[0].startswith("error: standard output: could not be written: ")


@pytest.mark.parametrize("shell", ["2> /dev/full", "2>&-"])
def test_a_process_without_stderr_goes_on(shell, tiny_root):
    done = flawscope("bundle info nothing.flaw", shell)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = flawscope(f"data inspect {tiny_root}", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "steel" in done.stdout


@pytest.mark.parametrize(
    ("word", "homes"),
    [
        (r"click\.(echo|secho|prompt|confirm)\(", ["core/cli.py"]),  # help
        (r"^\s*print\(", ["runtime/bench/cold_start.py"]),  # in the text of a child process
        (r"\bConsole\(", ["core/progress_display.py"]),  # bars
        (r"sys\.(stdout|stderr)\.(write|buffer)", []),
        (
            r"msgspec\.json\.encode\(",
            ["core/text.py", "runtime/scale/inputs/items.py"],
        ),  # names as they are, to be opened again
    ],
)
def test_there_is_one_way_out(word, homes):
    modules = [path for room in ("core", *ROOMS) for path in (ROOT / room).rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in modules if re.search(word, path.read_text("utf-8"), re.MULTILINE)]
    assert sorted(found) == homes


def test_quiet_leaves_errors_faults_and_warnings(capsys):
    with default_reporting():
        report_as(quiet=True)
        for line in ("error: a", "fault: b", "warning: c", "note: d", "backend cpu", "estimate: e", "progress: f"):
            echo(line, err=True)
        echo("result")
    assert capsys.readouterr() == ("result\n", "error: a\nfault: b\nwarning: c\n")
    echo("note: d", err=True)  # afterwards as before
    assert capsys.readouterr().err == "note: d\n"


def test_as_json_every_line_is_an_object_with_time_level_and_message(capsys):
    with default_reporting(), notes_on_stderr():
        report_as(json=True)
        echo(f"note: {EVIL}", err=True)
        echo("backend cpu (asked for)", err=True)
        logging.getLogger("flawscope.somewhere").warning("of a %s", "module")
        # What a library logs that has set up nothing, where no test runner has either.
        assert logging.lastResort is not None
        logging.lastResort.handle(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "of\na library"}))
        with warnings.catch_warnings():  # of pytest's making errors of them
            warnings.simplefilter("always")
            report_as(json=True)
            warnings.warn("of Python\nitself", RuntimeWarning, stacklevel=1)
        echo("result")
    out, err = capsys.readouterr()
    assert out == "result\n"
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["level"] for line in lines] == ["note", "info", "note", "note", "note"]
    assert lines[0]["message"].startswith("a\x1b]52")  # the text itself, escaped in JSON's way
    assert [line["message"] for line in lines[1:4]] == ["backend cpu (asked for)", "of a module", "of\na library"]
    assert lines[4]["message"] == "RuntimeWarning: of Python itself"
    for line in lines:
        assert set(line) == {"time", "level", "message"}
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
