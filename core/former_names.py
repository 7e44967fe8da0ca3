"""Former names of options and of their values: they still work, no help shows them, and a note names the new ones.

docs/stability.md says for how long; then a row goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from flawscope.terminal import echo


class CommandWithFormerNames(click.Command):
    """A command some of whose options had other names.

    Args:
        arguments: As of click.Command.
        former: Former name of an option -> its present one, each with its dashes.
        attributes: As of click.Command.
    """

    def __init__(self, *arguments: Any, former: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.former = former

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line, with present names in place of former ones."""
        return super().parse_args(ctx, self._renamed(args, is_said=not ctx.resilient_parsing))

    def _renamed(self, args: Sequence[str], *, is_said: bool) -> list[str]:
        renamed = list(args)
        for place, argument in enumerate(args):
            if argument == "--":  # what follows are names of files, whatever they look like
                break
            name, equals, value = argument.partition("=")
            if (present := self.former.get(name)) is not None:
                renamed[place] = f"{present}{equals}{value}"
                if is_said:
                    _say(name, present)
        return renamed


class ChoiceWithFormerNames(click.Choice[str]):
    """A choice some of whose values had other names.

    Args:
        choices: The values.
        former: Former name of a value -> its present one.
    """

    def __init__(self, choices: Iterable[str], former: Mapping[str, str]) -> None:
        super().__init__(tuple(choices))
        self.former = former

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value by its present name."""
        if (present := self.former.get(value)) is not None:
            option = "" if param is None else f"{param.opts[0]} "
            _say(f"{option}{value}", f"{option}{present}")
            return present
        return super().convert(value, param, ctx)


def _say(former: str, present: str) -> None:
    echo(f"note: {former} is now called {present}; the old name will go in a later version", err=True)
