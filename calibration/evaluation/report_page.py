"""Pages of an evaluation: one HTML file each, with styles and script in it, that asks for nothing from outside."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flawscope import __version__
from flawscope.calibration.evaluation import rounding
from flawscope.calibration.evaluation.drift_text import span_of
from flawscope.calibration.extras import require
from flawscope.text import printable

_TEMPLATES = Path(__file__).parent / "templates"
_FEATURE = "writing the report"
_SEPARATED = re.compile(r"(?<=[^/\\_,:=-][/\\_,:=-])(?=[^/\\_,:=-])")
"""Where a name may go on in the next line: behind its separators, but for one at its beginning."""


def check_report_packages() -> None:
    """Raise MissingExtra unless the report can be drawn; called before the long part of an evaluation."""
    require("matplotlib", "matplotlib", _FEATURE)
    require("jinja2", "jinja2", _FEATURE)


def markup(text: str) -> Any:
    """Return text that is put into a page as it is: our own SVG and script alone, never a name."""
    return require("markupsafe", "jinja2", _FEATURE).Markup(text)


def breakable(text: str) -> Any:
    """Return the name of a file, escaped, that breaks behind separators and not in the middle of a word."""
    escape = require("markupsafe", "jinja2", _FEATURE).escape
    return markup("<wbr>").join(escape(part) for part in _SEPARATED.split(printable(text)))


def command_text(text: str) -> Any:
    """Return a command line, escaped, whose options stay whole and whose names break behind separators."""
    words = []
    for word in text.split(" "):
        option, equals, value = word.partition("=")
        if not option.startswith("-"):
            option, equals, value = "", "", word
        # A hyphen is a place to break at: `--` would end one line, and the name of the option begin the next.
        whole = markup('<span class="word">{}</span>').format(printable(option) + equals) if option else ""
        words.append(whole + breakable(value))
    return markup(" ").join(words)


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """Return a page as HTML; the same context gives the same text.

    Args:
        template: Name of a file in `templates`.
        context: What it shows; strings are escaped.
    """
    text: str = _environment().get_template(template).render(context)
    return text


@functools.cache
def _environment() -> Any:
    """Return what reads the templates; kept, as it takes longer than a page."""
    jinja2 = require("jinja2", "jinja2", _FEATURE)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        finalize=_shown,
        autoescape=True,  # against script injection: names of files and defect types may hold markup
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error instead of a gap in the report
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{name: getattr(rounding, name) for name in ("percent", "figure", "number", "span", "share", "limits")},
        "ends": span_of,
        "breakable": breakable,
        "command": command_text,
    }
    script: str = environment.loader.get_source(environment, "report.js")[0]
    # The browser runs this script and no other, and loads nothing: a name that got past the escaping would do nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    environment.globals |= {"script": markup(script), "policy": policy, "version": __version__}
    return environment


def _shown(value: Any) -> Any:
    """Escape control characters of names in the report; our own SVG is markup and passes."""
    return printable(value) if type(value) is str else value
