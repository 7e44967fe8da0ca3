"""Making the outputs of a station."""

from __future__ import annotations

import importlib
from typing import Any

from flawscope.runtime.line.outputs.output import Output
from flawscope.runtime.line.outputs.table import OUTPUTS


def open_output(options: Any, station: str) -> Output:
    """Return an output, which is not started yet.

    Raises:
        MissingExtra: If what it needs is not installed.
    """
    module, _, attribute = OUTPUTS[type(options)].place.partition(":")
    output: Output = getattr(importlib.import_module(module), attribute)(options, station)
    return output
