"""The command line: `flawscope VERB`, where the module of a verb is imported only when it is called.

`flawscope score` must start fast and must not import torch, so groups list their verbs from the strings in
`flawscope.verbs`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from flawscope import __version__
from flawscope.errors import FlawscopeError, refused_by_the_system, shortened
from flawscope.terminal import default_reporting, guarded_streams, is_json, notes_on_stderr, report, report_as
from flawscope.time_limit import is_left_behind
from flawscope.verbs import VERBS, Alias, Group, Row


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called, not when they are listed.

    It overrides each method of click that would import every command only to list it; names and lines come from the
    table instead.

    Args:
        rows: Name -> row of `flawscope.verbs`; by default those of the root.
        attributes: Arguments of click.Group.
    """

    def __init__(self, *, rows: Mapping[str, Row] = VERBS, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.rows = rows

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the table, without aliases."""
        return [name for name, _ in self._lines()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb, also by an alias."""
        row = self.rows.get(cmd_name)
        if row is None:
            return None
        if isinstance(row, Alias):
            return self.get_command(ctx, row.alias_of)
        if isinstance(row, Group):
            return LazyGroup(name=cmd_name, rows=row.rows, help=inspect.cleandoc(row.text or row.line))
        module, _, attribute = row.place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        for parameter in command.params:
            if type(parameter.type) is click.Path:
                parameter.type = NamedPath.of(parameter.type)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that was typed; an alias becomes the present name.

        Raises:
            click.UsageError: If there is none of that name.
        """
        if self.get_command(ctx, args[0]) is None and args[0][:1] not in ("", "-") and not ctx.resilient_parsing:
            from flawscope.usage_errors import no_such_verb

            ctx.fail(no_such_verb(args[0], self.rows, ctx.command_path.partition(" ")[2]))
        name, command, rest = super().resolve_command(ctx, args)
        # Click would name help, errors and environment variables after the alias that was typed.
        row = None if name is None else self.rows.get(name)
        return (row.alias_of if isinstance(row, Alias) else name), command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Call the verb."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError) as err:
            if is_json():  # click would begin a new line, as behind the ^C of a terminal, which is no JSON
                raise click.Abort from err
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs with their lines, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(self._lines())

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the verbs that begin like this, without importing any of them."""
        verbs = [CompletionItem(name, help=line) for name, line in self._lines() if name.startswith(incomplete)]
        # Not super(): click.Group would add the verbs once more, and import each to do so.
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def _lines(self) -> list[tuple[str, str]]:
        return [(name, row.line) for name, row in self.rows.items() if not isinstance(row, Alias)]


class NamedPath(click.Path):
    """A path that has a name: an empty text, as of a variable that is not set, is not the working folder."""

    @classmethod
    def of(cls, path: click.Path) -> NamedPath:
        """Return the same with a check."""
        named = cls.__new__(cls)
        vars(named).update(vars(path))
        return named

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            click.UsageError: If it is empty, or as click.Path.
        """
        if value in ("", b""):
            self.fail("expected a path, got an empty text.", param, ctx)
        return super().convert(value, param, ctx)


def _chosen(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    # In a callback and not in the group's body: mistakes behind it, such as a verb that is not there, come before that.
    if not ctx.resilient_parsing:
        if parameter.name == "log_format":
            report_as(json=value == "json")
        elif parameter.name == "quiet":
            report_as(quiet=value)
        else:
            report_as(progress=not value)
    return value


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "FLAWSCOPE"})
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_chosen,
    help="Print only results, errors, faults and warnings: no notes, no progress.",
)
@click.option(
    "--no-progress",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_chosen,
    help="Leave out bars, lines and estimates of progress.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    is_eager=True,
    expose_value=False,
    callback=_chosen,
    help="json: notes, progress and errors as one JSON object a line, on stderr.",
)
@click.version_option(__version__, prog_name="flawscope")
def root() -> None:
    """Visual anomaly detection: train on normal images, ship one bundle, inspect parts."""


# Raised by a group that is called alone, to show its help. Click before 8.2 prints the help itself and lacks this
# exception: `except ()` catches nothing.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())

_TERMINATED = 128 + signal.SIGTERM  # as shells report it
_terminating = threading.Event()
"""Set by SIGTERM. Foreign code may make another error of it: an import of a compiled module says that it has failed."""


def main(arguments: Sequence[str] | None = None, **extra: Any) -> None:
    """Run the command line and exit: 0 success, 1 a gate or check failed, 2 the request was wrong."""
    # Only here, in a process that is the command line: a program that calls `run` has handlers of its own. What whoever
    # started us lets us ignore stays ignored. Python takes handlers from the main thread alone.
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    status = run(arguments)
    if is_left_behind():
        # A thread in foreign code, which nothing can end: leaving in the usual way could wait for it, or crash in it.
        os._exit(status)
    sys.exit(status)


def _terminate(number: int, frame: object) -> None:
    """Unwind as for Ctrl-C, so that nothing unfinished is left behind."""
    # A second one must not interrupt the cleaning up; SIGKILL still ends it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _terminating.set()
    raise SystemExit(_TERMINATED)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; an error of the user becomes one line on stderr."""
    with guarded_streams(), default_reporting(), notes_on_stderr():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        # Not standalone: click would print tracebacks of our errors and usage errors over several lines.
        status = root.main(args=arguments, prog_name="flawscope", standalone_mode=False)
    except _NO_ARGUMENTS as err:
        if is_json():
            return _fail("expected a verb, got none. (see flawscope --help)", 2)
        click.echo(err.format_message(), err=True)  # help over several lines, with no text of strangers
        return 2
    except click.UsageError as err:
        # Here and not at the top: only mistakes need it.
        from flawscope.usage_errors import usage_message

        return _fail(usage_message(err), 2)
    except click.ClickException as err:
        return _fail(err.format_message(), 2)
    except click.Abort:
        # 128 + SIGINT, as shells report it.
        return _fail("interrupted", 130)
    except click.exceptions.Exit as err:
        return err.exit_code
    except FlawscopeError as err:
        return _fail(str(err), err.exit_status)
    except OSError as err:
        # A file or folder of the user's that the system refuses; one without a name is a fault of ours.
        if err.filename is None:
            raise
        return _fail(refused_by_the_system(err), 2)
    except SystemExit as err:
        if err.code == _TERMINATED:
            return _fail("terminated", _TERMINATED)
        # Click exits like this when the reader of our output is gone (`flawscope score ... | head`).
        return err.code if isinstance(err.code, int) else 1
    # A command may return its status. Not standalone, click hands it over in place of exiting.
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    if _terminating.is_set():
        message, status = "terminated", _TERMINATED
    # Not all messages are ours: those of click and of the system quote names of any length too.
    report("error", shortened(" ".join(message.split())), status=status)
    return status
