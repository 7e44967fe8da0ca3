"""`--threshold-overlay FILE` and `--no-overlay`, for commands that decide by thresholds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def threshold_overlay_options(command: _Command) -> _Command:
    """Add both options to a click command, as its arguments `threshold_overlay` and `no_overlay`."""
    named = click.option(
        "--threshold-overlay",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Threshold overlay.  [default: the one beside the bundle, NAME.flaw.thresholds.json, if there is one]",
    )
    without = click.option("--no-overlay", is_flag=True, help="Decide by the bundle's own thresholds.")
    return named(without(command))
