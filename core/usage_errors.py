"""What is said of a command line that cannot be understood: click's mistakes, in one line and in our wording."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import click

from flawscope.methods import METHODS
from flawscope.near_names import did_you_mean, nearest
from flawscope.verbs import VERBS, Alias, Group, Row

_NO_CHOICE = re.compile(r"(?P<value>'.*'|\".*\") is not (one of )?'", re.DOTALL)
_NO_NUMBER = re.compile(r"(?P<value>'.*'|\".*\") is not a valid (?P<kind>integer|float)\.", re.DOTALL)
_NUMBERS = {"integer": "a whole number", "float": "a number"}
ROOT_OPTIONS = ("--quiet", "--no-progress", "--log-format")
"""Options that stand before the verb, where some look for them behind it."""


def usage_message(err: click.UsageError) -> str:
    """Return one line on a mistake: what was expected, what was given, what was probably meant, where the help is."""
    where = f" (see flawscope {err.ctx.command_path.partition(' ')[2]} --help)" if err.ctx else ""
    return (_misplaced(err) or _wording(err) + _dataset_hint(err)) + where


def no_such_verb(typed: str, rows: Mapping[str, Row], above: str = "") -> str:
    """Return what is said of a verb that is not there, with the one that was probably meant.

    Args:
        typed: What was typed.
        rows: The verbs of the group that was called.
        above: Words of that group, as `bundle`; empty for the root.
    """
    message = f"No such command {typed!r}."
    # Somebody who types `flawscope inspect` knows the verb and not its group.
    places = list(_places(VERBS))
    elsewhere = [place for place in places if place.split()[-1] == typed]
    listed = [name for name, row in rows.items() if not isinstance(row, Alias)]
    if not elsewhere and typed in METHODS:
        elsewhere = [f"train {typed}"]
    if not elsewhere and (near := nearest(typed, listed)):
        elsewhere = [f"{above} {near}".strip()]
    if not elsewhere and (near := nearest(typed, (place.split()[-1] for place in places))):
        elsewhere = [place for place in places if place.split()[-1] == near]
    if elsewhere:
        return f"{message} Did you mean {' or '.join(f'flawscope {place}' for place in elsewhere)}?"
    return f"{message} Expected one of {', '.join(listed)}."


def _places(rows: Mapping[str, Row], above: str = "") -> Iterator[str]:
    for name, row in rows.items():
        if isinstance(row, Group):
            yield from _places(row.rows, f"{above}{name} ")
        elif not isinstance(row, Alias):
            yield above + name


def _misplaced(err: click.UsageError) -> str:
    if not isinstance(err, click.NoSuchOption) or err.option_name not in ROOT_OPTIONS or err.ctx is None:
        return ""
    verb = err.ctx.command_path.partition(" ")[2]
    return f"{err.option_name}: expected it before the verb, got it behind. Type flawscope {err.option_name} ... {verb}"


def _wording(err: click.UsageError) -> str:
    if isinstance(err, click.NoSuchOption) and err.ctx is not None:
        known = [name for parameter in err.ctx.command.params for name in parameter.opts if name.startswith("--")]
        return f"No such option {err.option_name}.{did_you_mean(err.option_name, known)}"
    if isinstance(err, click.BadParameter) and err.param is not None:
        name, kind = _name(err.param, _ctx(err)), err.param.type
        if isinstance(kind, click.Choice) and (found := _NO_CHOICE.match(err.message)):
            choices = [str(choice) for choice in kind.choices]
            near = did_you_mean(found["value"][1:-1], choices)
            return f"{name}: expected one of {', '.join(choices)}, got {found['value']}.{near}"
        if isinstance(kind, click.Path) and err.message.startswith("expected "):
            return f"{name}: {err.message} Name it, or leave it out."
        if found := _NO_NUMBER.match(err.message):
            return f"{name}: expected {_NUMBERS[found['kind']]}, got {found['value']}."
    if err.message == "Missing command.":
        return "expected a verb, got none."
    message = err.format_message().replace("\n", " ")
    return message if message.endswith((".", "?", "!")) else f"{message}."


def _name(parameter: click.Parameter, ctx: click.Context) -> str:
    if not isinstance(parameter, click.Option):
        return parameter.make_metavar(ctx)
    # Names of other tools are further ones behind its own, which may be shorter.
    return next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])


def _ctx(err: click.UsageError) -> click.Context:
    return err.ctx or click.get_current_context()


def _dataset_hint(err: click.UsageError) -> str:
    """Return where the dataset goes, for a command that was given it as an argument; empty for other mistakes."""
    is_missing = isinstance(err, click.MissingParameter) and err.param is not None and err.param.name == "data"
    if err.ctx is None or not (is_missing or err.message.startswith("Got unexpected extra argument")):
        return ""
    takes_data = any("--data" in parameter.opts for parameter in err.ctx.command.params)
    return " The dataset goes behind --data." if takes_data else ""
