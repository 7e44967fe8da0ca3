"""Help on the settings of a method: type, default and one line each, from the structs and their docstrings."""

from __future__ import annotations

import inspect
import json
import re
import types
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from flawscope.config.assembly import CONFIGS
from flawscope.config.setting_parts import flatten, parts_of, places_of
from flawscope.errors import ArgumentError

_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    dict: "mapping",
    type(None): "null",
}


class SettingLine(NamedTuple):
    """One setting in the help.

    Attributes:
        part: Title of the group it is listed in, without a full stop.
        key: Flat name.
        words: Type in words.
        default: Default, as it would be written after `--set KEY=`.
        line: What it does.
    """

    part: str
    key: str
    words: str
    default: str
    line: str


def describe_settings(method: str) -> list[SettingLine]:
    """Return the settings of a method for its help: its own first, then part by part.

    Raises:
        ArgumentError: If the method is unknown.
    """
    if method not in CONFIGS:
        raise ArgumentError(f"method: expected one of {', '.join(CONFIGS)}, got {method!r}.")
    kind = CONFIGS[method]
    parts, defaults = parts_of(kind), flatten(kind())
    lines = []
    for key, part in places_of(kind).items():
        struct = kind if part is None else parts[part]
        title = f"Settings of {method} alone" if part is None else _summary(struct)
        words = _type_words(get_type_hints(struct)[key])
        lines.append(SettingLine(title, key, words, _default_text(defaults[key]), _documented(struct).get(key, "")))
    return lines


def _summary(struct: type[msgspec.Struct]) -> str:
    return (inspect.getdoc(struct) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")


def _documented(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return setting -> its text in the `Attributes` section of the docstring, or in that of a base class."""
    lines: dict[str, str] = {}
    # Bases first, so that a subclass may document an inherited setting anew.
    for base in reversed(struct.__mro__):
        key = ""
        # From __dict__, as inspect.getdoc would inherit; `or ""`, because python -OO strips docstrings.
        for line in inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2].splitlines():
            if start := re.match(r"    (\w+): (.*)", line):
                key = start[1]
                lines[key] = start[2]
            elif key:
                lines[key] += f" {line.strip()}"
    return lines


def _type_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    # `X | None` has the origin UnionType, Optional[X] has Union.
    if origin in (Union, types.UnionType):
        return " or ".join(_type_words(argument) for argument in arguments)
    if origin is tuple:
        each = _type_words(arguments[0])
        return f"list ({each})" if arguments[-1] is Ellipsis else f"{len(arguments)} values ({each})"
    # A KeyError here means a setting of a new type: give it words above.
    return _WORDS[origin or hint]


def _default_text(value: object) -> str:
    # Without the quotes of JSON, which --set does not need.
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value:
        return ",".join(str(entry) for entry in value)
    return json.dumps(value)
