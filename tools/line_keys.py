"""Write the tables of docs/line-configuration.md from the structs that read a line's configuration.

    python tools/line_keys.py [--check]

Types, ranges and defaults are those of the structs, the texts those of their docstrings. With --check nothing is
written, and the exit status is 1 if the page is not the code's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from typing import Any

import msgspec
from linktree import ROOT

from flawscope.runtime.line.config_words import words_of
from flawscope.runtime.line.line_config import (
    ChallengeOptions,
    DriftOptions,
    HttpOptions,
    ImageOptions,
    LineConfig,
    LineOptions,
    RollbackOptions,
    SceneLimits,
    StationOptions,
    SwapOptions,
    ViewOptions,
)
from flawscope.runtime.line.outputs.table import OUTPUTS
from flawscope.runtime.line.rollout.table import PLACES, RolloutOptions
from flawscope.runtime.line.sinks.table import SINKS, Tls
from flawscope.runtime.line.sources.table import SOURCES

PAGE = ROOT / "docs" / "line-configuration.md"
BEGIN, END = "<!-- keys: written by `python tools/line_keys.py` -->", "<!-- end of keys -->"


def tables() -> str:
    """Return all tables as Markdown."""
    parts = [
        ("The file", LineConfig),
        ("`line`", LineOptions),
        ("A station", StationOptions),
        ("`challenge`", ChallengeOptions),
        ("A view", ViewOptions),
        ("`scene`", SceneLimits),
        ("`drift`", DriftOptions),
        ("`rollout`", RolloutOptions),
    ]
    parts += [(f"Releases `{_tag(kind)}`", kind) for kind in PLACES]
    parts += [(f"Source `{_tag(kind)}`", kind) for kind in SOURCES]
    parts += [(f"Output `{_tag(kind)}`", kind) for kind in OUTPUTS]
    parts += [(f"Sink `{_tag(kind)}`", kind) for kind in SINKS]
    parts += [("`images`", ImageOptions), ("`swap`", SwapOptions), ("`rollback`", RollbackOptions)]
    parts += [("`http`", HttpOptions), ("`tls`", Tls)]
    return "\n".join([BEGIN, "", *(table(title, kind) for title, kind in parts), END])


def _tag(kind: type[Any]) -> str:
    return str(kind.__struct_config__.tag)


def table(title: str, kind: type[Any]) -> str:
    """Return heading, summary and keys of a struct as Markdown."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    lines = [f"### {title}", "", summary, ""]
    texts = documented(kind)
    if info.fields:
        lines += ["| key | takes | default | what |", "|---|---|---|---|"]
    for field in info.fields:
        text = re.sub(r"\bNone\b", "null", texts[field.encode_name])
        lines.append(f"| `{field.encode_name}` | {words_of(field.type)} | {_default(field)} | {text} |")
    return "\n".join([*lines, ""] if info.fields else lines)


def documented(kind: type[Any]) -> dict[str, str]:
    """Return key -> its text in the `Attributes` section of the docstring, or in that of a base class."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        key = ""
        for line in inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2].splitlines():
            if start := re.match(r"    (\w+): (.*)", line):
                key = start[1]
                texts[key] = start[2]
            elif key and line.strip():
                texts[key] += f" {line.strip()}"
    return texts


def _default(field: msgspec.inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "its own"
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    if isinstance(value, float):
        return f"`{value:.15g}`"
    return f"`{json.dumps(value)}`" if isinstance(value, tuple | dict) else f"`{value}`"


def page(text: str) -> str:
    """Return the page with its tables written anew."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    if not after:
        raise SystemExit(f"{PAGE}: expected the lines {BEGIN} and {END}, got none. Put them back.")
    return before + tables() + after


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is not the code's")
    wanted = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    new = page(text)
    if wanted:
        if new != text:
            print(f"{PAGE}: is not what the code says. Run python tools/line_keys.py.", file=sys.stderr)
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
