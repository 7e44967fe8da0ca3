"""The command root: exit statuses, one line for every mistake, and what commands share."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import subprocess
import sys
import time
import types

import click
import pytest

from flawscope import __version__, cli, errors, terminal
from flawscope.cli import LazyGroup, main, run
from flawscope.verbs import VERBS, Alias, Group, Verb


def flawscope(*arguments, **options):
    """Run the command line as a process of its own."""
    code = "import sys; from flawscope.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, **options
    )


@pytest.fixture
def verb(monkeypatch):
    """Return a function that installs a command named `probe` with a given body."""

    def install(body):
        probe = click.Command("probe", callback=body, params=[click.Option(["--number"], type=int)])
        monkeypatch.setattr(cli.root, "get_command", lambda context, name: probe if name == "probe" else None)

    return install


def raiser(error):
    def body(number):
        raise error

    return body


# --- done


def test_a_verb_that_returns_is_done(verb, capsys):
    verb(lambda number: click.echo(f"got {number}"))
    assert run(["probe", "--number", "3"]) == 0
    assert capsys.readouterr() == ("got 3\n", "")


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_verb_may_return_its_status(verb, status):
    verb(lambda number: status)
    assert run(["probe"]) == status


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_verb_may_exit_with_a_status(verb, status):
    verb(lambda number: click.get_current_context().exit(status))
    assert run(["probe"]) == status


def test_the_version_is_shown(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr() == (f"flawscope, version {__version__}\n", "")


def places(rows=VERBS, path=()):
    """Return the words that are typed -> row, of every verb, group and earlier name."""
    listed = {}
    for name, row in rows.items():
        listed[(*path, name)] = row
        if isinstance(row, Group):
            listed |= places(row.rows, (*path, name))
    return listed


ROWS = places()
GROUPS = {(): Group("", VERBS)} | {path: row for path, row in ROWS.items() if isinstance(row, Group)}
COMMANDS = {path: row for path, row in ROWS.items() if isinstance(row, Verb)}


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("path", GROUPS, ids=" ".join)
def test_help_lists_every_verb_without_importing_one(path, flag):
    code = (
        "import sys; from flawscope.cli import run; status = run(sys.argv[1:]);"
        "ours = {name for name in sys.modules if name.startswith('flawscope.')};"
        "loaded = ours - {'flawscope.' + name for name in 'cli errors terminal text time_limit verbs'.split()};"
        "sys.exit(f'{status} {loaded}' if status or loaded else 0)"
    )
    process = subprocess.run([sys.executable, "-c", code, *path, flag], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")
    lines = process.stdout.partition("Commands:")[2].splitlines()
    listed = [line.split()[0] for line in lines if line.strip() and not line.startswith("     ")]
    assert listed == [name for name, row in GROUPS[path].rows.items() if not isinstance(row, Alias)]


@pytest.mark.parametrize(
    ("typed", "offered"), [("ex", ["export", "export-triton", "explain"]), ("synth d", ["describe", "dataset"])]
)
def test_a_shell_that_completes_a_verb_imports_none(typed, offered):
    code = (
        "import sys; from flawscope.cli import run; run([]);"
        "ours = {name for name in sys.modules if name.startswith('flawscope.')};"
        "loaded = ours - {'flawscope.' + name for name in 'cli errors terminal text time_limit verbs'.split()};"
        "print(*loaded, file=sys.stderr, end='')"
    )
    typed_line = f"flawscope {typed}"
    environment = {
        **os.environ,
        "_FLAWSCOPE_COMPLETE": "bash_complete",
        "COMP_WORDS": typed_line,
        "COMP_CWORD": str(typed_line.count(" ")),
    }
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (process.stdout.split(), process.stderr) == ([f"plain,{name}" for name in offered], "")


@pytest.mark.parametrize("path", [path for path, row in ROWS.items() if not isinstance(row, Alias)], ids=" ".join)
def test_every_verb_has_one_short_line_of_help(path):
    line = ROWS[path].line
    assert line.endswith(".")
    assert len(line) < 80


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_row_names_a_command_that_is_called_like_it(path):
    module, _, attribute = COMMANDS[path].place.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert not isinstance(command, click.Group), "a group is rows of the table"
    assert command.name == path[-1]


def test_an_earlier_name_is_one_of_a_verb_in_its_group():
    for path, group in GROUPS.items():
        for name, row in group.rows.items():
            if isinstance(row, Alias):
                assert isinstance(group.rows.get(row.alias_of), Verb | Group), (*path, name)


@pytest.fixture
def renamed(monkeypatch):
    """A table with a verb and a group that had other names before."""
    module = types.ModuleType("renamed_command")
    module.fresh = click.Command(
        "fresh", callback=lambda number: click.echo(f"got {number}"), params=[click.Option(["--number"], type=int)]
    )
    monkeypatch.setitem(sys.modules, "renamed_command", module)
    fresh = Verb("renamed_command:fresh", "A verb.")
    rows = {"fresh": fresh, "stale": Alias("fresh"), "box": Group("A group.", {"fresh": fresh}), "crate": Alias("box")}
    monkeypatch.setattr(cli.root, "rows", rows)


@pytest.mark.parametrize("typed", [["fresh"], ["stale"], ["box", "fresh"], ["crate", "fresh"]])
def test_an_earlier_name_of_a_verb_goes_on_working(renamed, capsys, typed):
    assert run([*typed, "--number", "3"]) == 0
    assert capsys.readouterr() == ("got 3\n", "")


def test_an_earlier_name_takes_the_environment_of_the_present_one(renamed, capsys, monkeypatch):
    monkeypatch.setenv("FLAWSCOPE_FRESH_NUMBER", "4")
    assert run(["stale"]) == 0
    assert capsys.readouterr().out == "got 4\n"


def test_an_earlier_name_is_in_no_list_and_leads_to_the_present_one(renamed, capsys):
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2].split()
    assert listed == ["fresh", "A", "verb.", "box", "A", "group."]
    assert run(["stale", "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: flawscope fresh [OPTIONS]")
    assert run(["crate", "nope"]) == 2
    assert capsys.readouterr().err.endswith("(see flawscope box --help)\n")
    assert [item.value for item in LazyGroup(rows=cli.root.rows).shell_complete(click.Context(cli.root), "")][:2] == [
        "fresh",
        "box",
    ]


# --- a mistake is one line


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.FlawscopeError("wrong"), 2),
        (errors.ArgumentError("wrong"), 2),
        (errors.DataError("wrong"), 2),
        (errors.ImageError("wrong"), 2),
        (errors.RunError("wrong"), 2),
        (errors.BundleError("wrong"), 2),
        (errors.BackendError("wrong"), 2),
        (errors.DeviceError("wrong"), 2),
        (errors.StorageError("wrong"), 2),
        (errors.GateError("wrong"), 1),
        (click.ClickException("wrong"), 2),
    ],
)
def test_an_error_of_ours_is_one_line_and_its_status(verb, capsys, error, status):
    verb(raiser(error))
    assert run(["probe"]) == status
    assert capsys.readouterr() == ("", "error: wrong\n")


def test_a_missing_extra_names_the_command_that_installs_it(verb, capsys):
    verb(raiser(errors.MissingExtra("training", "torch", "train")))
    assert run(["probe"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: training needs the package torch, which is not installed. "
        'Install it with: pip install "flawscope[train]"\n'
    )


def test_a_message_of_several_lines_becomes_one(verb, capsys):
    verb(raiser(errors.DataError("a\n  b\tc\r\nd")))
    assert run(["probe"]) == 2
    assert capsys.readouterr().err == "error: a b c d\n"


def test_a_message_of_megabytes_keeps_both_ends(verb, capsys):
    verb(raiser(errors.ArgumentError(f"name: expected another, got {'x' * 1_000_000}. Mend it.")))
    assert run(["probe"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: name: expected another, got xxx")
    assert shown.endswith("xxx. Mend it.\n")
    assert len(shown) < 9000


def test_every_error_of_the_tree_is_caught_here():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 14
    for kind in kinds:
        assert issubclass(kind, errors.FlawscopeError)
        assert kind.exit_status == (1 if kind is errors.GateError else 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "error: No such command 'nope'"),
        (["--nope"], "error: No such option"),
        (["bundle", "nope"], "error: No such command 'nope'"),
        (["bundle", "info"], "error: Missing argument 'BUNDLE'"),
        (["bundle", "info", "a", "b"], "error: Got unexpected extra argument (b)"),
        (["bundle", "info", "a", "--nope"], "error: No such option"),
        (["bundle", "pack", "a"], "error: Missing option '--out'"),
        (["bundle", "pack", "a", "--out"], "error: Option '--out' requires an argument"),
    ],
)
def test_a_usage_mistake_is_one_line_with_status_2(capsys, arguments, message):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["nope"], "(see flawscope --help)"), (["bundle", "info"], "(see flawscope bundle info --help)")],
)
def test_a_usage_mistake_says_where_the_help_is(capsys, arguments, hint):
    run(arguments)
    assert capsys.readouterr().err.rstrip().endswith(hint)


def test_a_value_of_the_wrong_type_is_a_usage_mistake(verb, capsys):
    verb(lambda number: None)
    assert run(["probe", "--number", "many"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: --number: expected a whole number, got 'many'. (see flawscope probe")


@pytest.mark.parametrize("arguments", [[], ["bundle"]])
def test_a_group_called_alone_shows_its_help_and_is_no_success(capsys, arguments):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: flawscope")
    assert "\nCommands:\n" in err
    assert err.count("\n") > 5


def test_an_interrupt_is_one_word_and_status_130(verb, capsys):
    verb(raiser(KeyboardInterrupt()))
    assert run(["probe"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip() == "error: interrupted"


def test_a_pipe_that_broke_is_status_1_and_nothing_is_said(verb, capsys, monkeypatch):
    for name in ("stdout", "stderr"):  # click replaces both, so that flushing them at exit fails silently
        monkeypatch.setattr(sys, name, getattr(sys, name))
    verb(raiser(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert run(["probe"]) == 1
    assert capsys.readouterr() == ("", "")


def test_a_file_that_the_system_refuses_is_one_line_and_an_error_without_a_file_is_a_bug(verb, capsys):
    verb(raiser(PermissionError(errno.EACCES, "Permission denied", "/some/file")))
    assert run(["probe"]) == 2
    assert capsys.readouterr().err == (
        "error: /some/file: Permission denied. Check that it is there and may be read or written.\n"
    )
    verb(raiser(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        run(["probe"])


def test_a_bug_is_not_hidden(verb):
    verb(raiser(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        run(["probe"])


# --- as a process


def test_main_exits_with_the_status(verb):
    verb(lambda number: 1)
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["probe"])


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--version"], 0), (["nope"], 2), (["bundle", "info", "none.flaw"], 2)]
)
def test_a_process_ends_with_the_status_and_without_a_traceback(arguments, status):
    process = flawscope(*arguments)
    assert process.returncode == status
    assert "Traceback" not in process.stderr
    assert process.stderr.count("\n") == (1 if status else 0)


def test_a_reader_that_went_away_costs_one_line():
    code = "import sys; from flawscope.cli import main; sys.stdin.read(); main(['--help'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # before the process writes: it waits for its input to end
    process.stdin.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 2
    assert error.startswith(b"error: standard output: could not be written: Broken pipe.")
    assert error.count(b"\n") == 1


# --- what commands share


def test_a_signal_that_foreign_code_makes_another_error_of_is_still_told_as_the_signal():
    code = """
import signal
from flawscope import cli
from flawscope.errors import BackendError

def work(**options):
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException as err:
        raise BackendError("tensorrt: initialization failed.") from err

cli.root.main = work
cli.main([])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (143, "error: terminated\n")


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGINT, 130, "error: interrupted"), (signal.SIGTERM, 143, "error: terminated")],
)
def test_a_signal_ends_a_command_in_one_line_and_leaves_nothing(tmp_path, number, status, message):
    code = "import sys; from flawscope.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "data", "demo", str(tmp_path / "demo"), "--train", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any(tmp_path.rglob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert any(tmp_path.rglob("*.png"))  # it was in the midst of writing
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    # Click begins a new line after the terminal's ^C.
    assert (process.returncode, out, err.strip()) == (status, "", message)
    assert list(tmp_path.iterdir()) == []


def test_a_termination_that_is_to_be_ignored_stays_ignored(tmp_path):
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "from flawscope import cli\n"
        "cli.run = lambda arguments: signal.raise_signal(signal.SIGTERM) or 7\n"
        "cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/usr/bin/flawscope", "score", "b.flaw", "a b.png"], "flawscope score b.flaw 'a b.png'"),
        (["/x/flawscope/__main__.py", "doctor"], "flawscope doctor"),
        (["tool.py", "it's"], "tool.py 'it'\"'\"'s'"),
    ],
)
def test_the_command_line_can_be_typed_again(monkeypatch, argv, line):
    monkeypatch.setattr(sys, "argv", argv)
    assert terminal.command_line() == line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_silent_where_nobody_watches(capsys):
    with terminal.progress_bars() as report:
        report("reading", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_is_drawn_on_a_terminal_and_only_on_stderr(monkeypatch, capsys):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal.progress_bars() as report:
        report("reading", 1, 2)
        report("scoring", 0, 3)
        report("reading", 2, 2)
    drawn = screen.getvalue()
    assert "reading" in drawn
    assert "2/2" in drawn
    assert "0/3" in drawn
    assert capsys.readouterr().out == ""


def test_an_empty_path_is_never_the_working_folder():
    """As of a variable of the shell that is not set: `--data "$DATA"`."""
    checked = 0
    for path in COMMANDS:
        context = click.Context(cli.root)
        command = cli.root
        for name in path:
            assert isinstance(command, click.Group)
            command = command.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                with pytest.raises(click.BadParameter, match="expected a path, got an empty text"):
                    parameter.type.convert("", parameter, context)
                checked += 1
            assert "Path" not in type(parameter.type).__name__ or isinstance(parameter.type, click.Path)
    assert checked > 100


def test_an_empty_path_is_told_with_the_name_of_its_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "padim", "--data", "", "--out", "run"]) == 2
    assert "error: --data: expected a path, got an empty text. Name it, or leave it out." in capsys.readouterr().err
