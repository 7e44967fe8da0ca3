"""The command root: `flawscope VERB`, with every verb imported only when it is called.

`flawscope score` must start fast and must not import torch, so every group knows its verbs by the names of
`flawscope.verbs` alone.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from flawscope import __version__
from flawscope.errors import FlawscopeError
from flawscope.verbs import VERBS, Alias, Group, Row


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called, not when they are listed.

    It overrides each method of click that would import every command to show a list of them: a list takes names and
    lines from the table.

    Args:
        rows: Name -> row of `flawscope.verbs`. By default those of the root.
        attributes: What click.Group takes.
    """

    def __init__(self, *, rows: Mapping[str, Row] = VERBS, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.rows = rows

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the table, without their earlier names."""
        return [name for name, _ in self._lines()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb, also by an earlier name."""
        row = self.rows.get(cmd_name)
        if row is None:
            return None
        if isinstance(row, Alias):
            return self.get_command(ctx, row.alias_of)
        if isinstance(row, Group):
            return LazyGroup(name=cmd_name, rows=row.rows, help=inspect.cleandoc(row.text or row.line))
        module, _, attribute = row.place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that was typed; an earlier name becomes the present one."""
        name, command, rest = super().resolve_command(ctx, args)
        # Click names help, errors and environment variables after what was typed, not after the command found.
        row = None if name is None else self.rows.get(name)
        return (row.alias_of if isinstance(row, Alias) else name), command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs with their one-liners, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(self._lines())

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the verbs that begin like this, without importing any of them."""
        verbs = [CompletionItem(name, help=line) for name, line in self._lines() if name.startswith(incomplete)]
        # Not super(): click.Group would add the verbs once more, and import each to do so.
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def _lines(self) -> list[tuple[str, str]]:
        return [(name, row.line) for name, row in self.rows.items() if not isinstance(row, Alias)]


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "FLAWSCOPE"})
@click.version_option(__version__, prog_name="flawscope")
def root() -> None:
    """Learn good parts, ship one bundle, decide on the line."""


# A group called alone shows its help. Click before 8.2 prints it itself and has no such exception: () catches nothing.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


def main(arguments: Sequence[str] | None = None, **extra: Any) -> None:
    """Run the command line and exit: 0 done, 1 a gate or check failed, 2 the request was wrong."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; a user's mistake becomes one line on stderr."""
    try:
        status = root.main(args=arguments, prog_name="flawscope", standalone_mode=False)
    except _NO_ARGUMENTS as err:
        click.echo(err.format_message(), err=True)
        return 2
    except click.UsageError as err:
        where = f" (see flawscope {err.ctx.command_path.partition(' ')[2]} --help)" if err.ctx else ""
        return _fail(err.format_message().replace("\n", " ") + where, 2)
    except click.ClickException as err:
        return _fail(err.format_message(), 2)
    except click.Abort:
        return _fail("interrupted", 130)
    except click.exceptions.Exit as err:
        return err.exit_code
    except FlawscopeError as err:
        return _fail(str(err), err.exit_status)
    except SystemExit as err:
        # Click leaves like this where the reader of our output went away (`flawscope score ... | head`).
        return err.code if isinstance(err.code, int) else 1
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return status
