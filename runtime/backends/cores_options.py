"""The options `--threads` and `--streams` of commands that load a bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--threads",
        type=int,
        help="Threads of graph and kernels, on cpu and openvino.  [default: all cores it may use]",
    ),
    click.option(
        "--streams", type=int, help="Images of a batch that openvino infers at once.  [default: as it chooses]"
    ),
)


def cores_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--threads` and `--streams`, the arguments `threads` and `streams` of a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
