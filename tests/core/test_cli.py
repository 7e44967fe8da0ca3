"""The command root: exit statuses, one line for every mistake, and what commands share."""

from __future__ import annotations

import errno
import io
import subprocess
import sys

import click
import pytest

from flawscope import __version__, cli, errors, terminal
from flawscope.cli import VERBS, main, run


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


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_verb_without_importing_one(flag):
    code = (
        "import sys; from flawscope.cli import run; status = run(sys.argv[1:]);"
        "from flawscope.cli import VERBS;"
        "loaded = {place.partition(':')[0] for place, _ in VERBS.values()} & set(sys.modules);"
        "sys.exit(f'{status} {loaded}' if status or loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == list(VERBS)


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_has_one_short_line_of_help(name):
    line = VERBS[name][1]
    assert line.endswith(".")
    assert len(line) < 80


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


def test_every_error_of_the_tree_is_caught_here():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 11
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
    assert err.startswith("error: Invalid value for '--number': 'many' is not a valid integer. (see flawscope probe")


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
    done = flawscope(*arguments)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (1 if status else 0)


def test_a_reader_that_went_away_is_told_nothing():
    code = "import sys; from flawscope.cli import main; sys.stdin.read(); main(['--help'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # before the process writes: it waits for its input to end
    process.stdin.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert error == b""


# --- what commands share


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
