"""What a key of a line's configuration takes, in words: for messages and for docs/line-configuration.md alike."""

from __future__ import annotations

import re
from typing import Any

from msgspec import inspect

from flawscope.text import printable

PATTERNS: dict[str, str] = {
    r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z": "name of at most 64 letters, digits, `_`, `.` and `-`, no sign first",
    r"^(env|file):.+$": "`env:VARIABLE` or `file:PATH`, never the secret itself",
    r"^.+:[0-9]{1,5}$": "`ADDRESS:PORT`",
    r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\Z": "name of a machine",
    r"^rtsps?://[^@]+$": "`rtsp://HOST/...` without user and password, which are named by `user` and `password`",
    r"^https?://[^@]+$": "`http://...` or `https://...` without user and password",
    r"^(start|swap|camera|([01][0-9]|2[0-3]):[0-5][0-9])\Z": '`start`, `swap`, `camera`, or a time as `"06:00"`',
    r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z": "tag of at most 128 letters, digits, `_`, `.` and `-`",
    r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z": 'time as `"22:00"`',
    r"^oci(\+http)?://[^@]+$": "`oci://HOST:PORT/NAME` without user and password",
    r"^[^+#\0]+$": "topic without `+` and `#`",
}
"""Pattern of a text -> what it asks for. A test demands words for every pattern of the configuration."""

_HIDDEN = frozenset({r"^(env|file):.+$", r"^rtsps?://[^@]+$", r"^https?://[^@]+$", r"^oci(\+http)?://[^@]+$"})
"""Patterns of texts that may hold a secret where they are wrong: what was got is not shown."""

_LONGEST = 60
"""Characters of a value that are shown."""


def words_of(kind: inspect.Type) -> str:
    """Return what values of a type are, in words."""
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        name = "whole number" if isinstance(kind, inspect.IntType) else "number"
        return " ".join([name, _range_words(kind)]).strip()
    if isinstance(kind, inspect.StrType):
        return "text" if kind.pattern is None else PATTERNS[kind.pattern]
    if isinstance(kind, inspect.LiteralType):
        # In order of the letters: that of msgspec is another one in each process.
        values = sorted(str(value) for value in kind.values)
        return f"`{values[0]}`" if len(values) == 1 else f"one of {', '.join(values)}"
    if isinstance(kind, inspect.CustomType):
        return "path"
    if isinstance(kind, inspect.NoneType):
        return "null"
    return _compound_words(kind)


def _compound_words(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.UnionType):
        structs = [one for one in kind.types if isinstance(one, inspect.StructType)]
        if len(structs) > 1:
            return f"mapping with `kind`: {', '.join(sorted(str(one.tag) for one in structs))}"
        # null last: it is the exception.
        parts = sorted(kind.types, key=lambda one: isinstance(one, inspect.NoneType))
        words = [words_of(one) for one in parts]
        # "list of 4: a, b, c, d or null" would read as one entry of the list.
        return ("; or " if any(", " in one for one in words[:-1]) else " or ").join(words)
    if isinstance(kind, inspect.TupleType):
        each = [words_of(one) for one in kind.item_types]
        return f"list of {len(each)}: " + (f"each a {each[0]}" if len(set(each)) == 1 else ", ".join(each))
    if isinstance(kind, inspect.VarTupleType | inspect.ListType):
        return f"list of at least {kind.min_length}" if kind.min_length else "list"
    if isinstance(kind, inspect.DictType):
        return f"mapping of names to values: {words_of(kind.value_type)}"
    if isinstance(kind, inspect.StructType):
        return "mapping"
    raise TypeError(f"{kind}: a new type of key, give it words here")


def _range_words(kind: inspect.IntType | inspect.FloatType) -> str:
    low, high = kind.ge, kind.le
    if low is not None and high is not None:
        return f"from {_plain(low)} to {_plain(high)}"
    words = []
    if kind.gt is not None:
        words.append(f"above {_plain(kind.gt)}")
    if low is not None:
        words.append(f"of at least {_plain(low)}")
    if high is not None:
        words.append(f"at most {_plain(high)}")
    return ", ".join(words)


def _plain(number: float) -> str:
    return f"{number:.15g}"  # 3600000, not 3.6e+06


def shown(value: Any, kind: inspect.Type | None = None) -> str:
    """Return a value that is wrong, for a message: short, without control characters, and without what may be secret.

    Args:
        value: As YAML gave it.
        kind: The type that was expected of it.
    """
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    if any(isinstance(one, inspect.StrType) and one.pattern in _HIDDEN for one in kinds):
        return "something else (not shown, as it may be secret)"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    text = re.sub(r"//[^/@\s]*@", "//...@", printable(repr(value)))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
