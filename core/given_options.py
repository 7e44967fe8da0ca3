"""Which options of a command were typed: those without effect are refused, and never by their values."""

from __future__ import annotations

from collections.abc import Collection

import click
from click.core import ParameterSource


def is_given(parameter: str) -> bool:
    """Return whether the running command got a parameter, from the command line or the environment."""
    # Not by its value: an option without effect is refused even where its default was typed.
    return click.get_current_context().get_parameter_source(parameter) is not ParameterSource.DEFAULT


def given_option(parameters: Collection[str]) -> str | None:
    """Return the first option of the running command that is one of these parameters and was given, as `--name`."""
    options = (one for one in click.get_current_context().command.params if isinstance(one, click.Option))
    return next((one.opts[0] for one in options if one.name in parameters and is_given(one.name)), None)
