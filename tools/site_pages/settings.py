"""The reference of settings: every setting of every method, with type, default, range and meaning."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from flawscope import methods
from flawscope.config import CONFIGS, SettingLine, change_settings, describe_settings
from flawscope.config.setting_parts import parts_of, places_of
from flawscope.errors import ArgumentError
from site_pages.page import Page, code, escaped, table

FOLDER = "reference/settings"
_ODD: tuple[Any, ...] = (
    -(10**9),
    -1,
    0,
    1,
    10**9,
    -math.inf,
    -1.0,
    0.0,
    2.0,
    1e30,
    math.inf,
    "",
    " ",
    [],
    [-1],
    [10**9],
)
"""Values that a setting with a range refuses, each for its reason; those of another type are refused without one."""


def pages() -> Iterator[Page]:
    """Return a page for each method that has settings, and one that lists them."""
    rows = []
    for name in CONFIGS:
        yield Page(f"{FOLDER}/{name}.md", _method_page(name))
        rows.append([f"[`{name}`]({name}.md)", escaped(methods.METHODS[name].line), str(len(describe_settings(name)))])
    text = f"""# Settings

One page for each method: `--set KEY=VALUE` and the lines of a file for `--config` name them, and
`flawscope train METHOD --help` lists them in the terminal. A method refuses a setting that it does not use.
Which method suits what: [training](../../training.md#which-method).

{table(["method", "what it does", "settings"], rows)}
"""
    yield Page(f"{FOLDER}/index.md", text)


def _method_page(name: str) -> str:
    row = methods.METHODS[name]
    page = row.docs.removeprefix("docs/")
    parts = [
        f"---\ntitle: {name}\n---\n# Settings of {name}\n\n{escaped(row.line)} How it works: "
        f"[{page.removesuffix('.md')}](../../{page}).\n"
    ]
    for title, lines in itertools.groupby(describe_settings(name), lambda line: line.part):
        parts.append(f"## {escaped(title)}\n")
        parts += [_setting(name, line) for line in lines]
    return "\n".join(parts)


def _setting(method: str, line: SettingLine) -> str:
    facts = [f"**Type** {escaped(line.words)}", f"**default** {code(line.default) or 'empty'}"]
    if limits := allowed(method, line.key):
        facts.append(f"**range** {'; '.join(map(escaped, limits))}")
    return f"### `{line.key}`\n\n{' · '.join(facts)}\n\n{escaped(line.line)}\n"


def allowed(method: str, key: str) -> tuple[str, ...]:
    """Return what a setting may be, in the words of its own error messages; empty where its type says all.

    The checks themselves are asked, by values that they refuse: there is no second list of ranges that could be wrong.
    """
    config = CONFIGS[method]()
    found: dict[str, None] = {}
    for value in _values(method, key):
        try:
            change_settings(config, {key: value})
        except ArgumentError as err:
            match = re.search(rf"(?:^|[\s:]){re.escape(key)}: expected (.*), got .*\.$", str(err), re.DOTALL)
            if match is not None:
                found[match[1]] = None
    return tuple(found)


def _values(method: str, key: str) -> Iterator[Any]:
    kind = CONFIGS[method]
    part = places_of(kind)[key]
    hint = str(get_type_hints(kind if part is None else parts_of(kind)[part])[key])
    yield from _ODD
    if "tuple" in hint:
        yield from ([-1, -1], [10**9, 10**9], [0, 0], [3, 1], [math.inf] * 2, [0.0] * 3, [math.inf] * 3)
