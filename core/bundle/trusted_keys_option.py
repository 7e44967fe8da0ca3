"""`--trusted-keys PATH`, for every command that runs a bundle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from flawscope.bundle.trusted_keys import VARIABLE, find_trusted_keys

_Command = TypeVar("_Command", bound=Callable[..., Any])


def trusted_keys_option(command: _Command) -> _Command:
    """Add `--trusted-keys` to a click command: while it runs, these keys take the place of all settings."""
    return click.option(
        "--trusted-keys",
        type=click.Path(),
        metavar="PATH",
        expose_value=False,
        is_eager=True,
        callback=_trust,
        help="File or folder of public keys; a bundle that none of them signed is refused.",
    )(command)


def _trust(context: click.Context, option: click.Parameter, path: str | None) -> None:
    if path is not None:
        # Not an argument that every function hands on: the first that forgets it would run anything.
        context.with_resource(_trusting(Path(path)))
        find_trusted_keys()


@contextlib.contextmanager
def _trusting(path: Path) -> Iterator[None]:
    """Trust these keys in this process and in those that it starts."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(path.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
