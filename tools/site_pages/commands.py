"""The reference of commands: every verb with its arguments and options, from click itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click

from flawscope.cli import root
from site_pages.page import Page, code, escaped, table

FOLDER = "reference/commands"


def pages() -> Iterator[Page]:
    """Return a page for each verb, with the verbs below it, and one that lists them."""
    context = click.Context(root, info_name="flawscope")
    rows = []
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None, name
        yield Page(f"{FOLDER}/{name}.md", "\n".join(_sections(command, name, context, 1)))
        rows.append([f"[`{name}`]({name}.md)", escaped(_line(command))])
    shared = _parameters(root, context)
    text = f"""# Commands

`flawscope VERB --help` prints the same in the terminal. Exit status: 0 done; 1 a check failed, or an image was a fault;
2 the request was wrong, and one line says what to do.

{table(["verb", "what it does"], rows)}

## Options of `flawscope` itself

{shared}
"""
    yield Page(f"{FOLDER}/index.md", text)


def _sections(command: click.Command, name: str, parent: click.Context, level: int) -> Iterator[str]:
    """Return a command as Markdown: usage, text, arguments, options, and the commands below it."""
    context = click.Context(command, info_name=name, parent=parent)
    yield (
        f"{'#' * level} {context.command_path}\n"
        if level > 1
        else f"---\ntitle: {name}\n---\n# {context.command_path}\n"
    )
    yield f"```text\n{' '.join(_usage(command, context))}\n```\n"
    yield f"{escaped(inspect.cleandoc(command.help or ''))}\n"
    yield f"{_parameters(command, context)}\n"
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None, below
            yield from _sections(found, below, context, level + 1)


def _usage(command: click.Command, context: click.Context) -> list[str]:
    pieces = [piece if "|" not in piece else "METHOD" for piece in command.collect_usage_pieces(context)]
    return [context.command_path, *pieces]


def _parameters(command: click.Command, context: click.Context) -> str:
    """Return the tables of arguments and options: two columns, so that a phone shows them."""
    arguments, options = [], []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Argument):
            name = parameter.make_metavar(context)
            short = "METHOD" if "|" in name else name.strip("[]").removesuffix("...")
            more = [
                "needed" if parameter.required else "may be left out",
                *(["one or several"] * (parameter.nargs == -1)),
            ]
            arguments.append([code(short), f"{_type(parameter, context)} ({', '.join(more)})"])
        elif isinstance(parameter, click.Option) and not parameter.hidden and parameter.name != "help":
            options.append(_option(parameter, context))
    parts = []
    if arguments:
        parts.append(table(["argument", "takes"], arguments))
    if options:
        parts.append(table(["option", "meaning"], options))
    return "\n\n".join(parts)


def _option(option: click.Option, context: click.Context) -> list[str]:
    # The name that Python gives the value is no option: it has no dash.
    spellings = ", ".join(code(name) for name in option.opts if name.startswith("-"))
    if option.secondary_opts:
        spellings += " / " + ", ".join(code(name) for name in option.secondary_opts)
    # Some defaults are words; they stand at the end of the text.
    text, _, words = (option.help or "").partition("[default: ")
    default = f"default: {escaped(words.rstrip('] '))}" if words else _default(option)
    facts = [fact for fact in (_type(option, context), default) if fact]
    if option.multiple:
        facts.append("may be given again")
    return [spellings, f"{escaped(text.strip())} *({'; '.join(facts)})*".strip()]


def _type(parameter: click.Parameter, context: click.Context) -> str:
    kind = parameter.type
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return "flag"
    if isinstance(kind, click.Choice):
        return "one of " + ", ".join(code(str(choice)) for choice in kind.choices)
    shown = parameter.metavar or ""
    words = {"integer": "whole number", "float": "number", "text": "text", "path": "path", "boolean": "true or false"}
    name = words.get(kind.name.split(" ")[0], kind.name)
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        name = f"{words['integer' if isinstance(kind, click.IntRange) else 'float']}, {_range(kind)}"
    if isinstance(kind, click.Tuple):
        name = f"{len(kind.types)} values"
    return f"{code(shown)}: {name}" if shown and isinstance(parameter, click.Option) else name


def _range(kind: Any) -> str:
    low = "" if kind.min is None else f"{'above' if kind.min_open else 'from'} {kind.min}"
    high = "" if kind.max is None else f"{'below' if kind.max_open else 'to'} {kind.max}"
    return f"{low} {high}".strip()


def _default(option: click.Option) -> str:
    if option.required:
        return "**needed**"
    value = option.to_info_dict()["default"]
    if option.is_flag:
        return "on by default" if value is True else ""
    if value is None or repr(value).startswith("Sentinel") or value in ((), [], ""):
        return ""
    if isinstance(value, list | tuple):
        return f"default {code(' '.join(map(str, value)))}"
    return f"default {code(str(value))}" if not callable(value) else "default: set when called"


def _line(command: click.Command) -> str:
    text = inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")
    return text if text.endswith(".") else f"{text}."
