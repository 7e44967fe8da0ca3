"""Folders of the user, where a service may have none: no HOME, and no entry in the list of users."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "XDG_CACHE_HOME"
"""Environment variable with the folder for what can be made again."""


def home_folder() -> Path | None:
    """Return the home folder of the user, absolute, or None where there is none."""
    try:
        home = Path.home()
    except (RuntimeError, KeyError):  # no HOME, and a user id without an entry, as services and containers have
        return None
    # A relative HOME would be another folder after every chdir.
    return home if home.is_absolute() else None


def cache_folder() -> Path | None:
    """Return the folder for what can be made again: `XDG_CACHE_HOME`, or `.cache` in the home folder, or None."""
    return _xdg(CACHE_VARIABLE, ".cache")


def config_folder() -> Path | None:
    """Return the folder for what the user sets: `XDG_CONFIG_HOME`, or `.config` in the home folder, or None."""
    return _xdg("XDG_CONFIG_HOME", ".config")


def data_folder() -> Path | None:
    """Return the folder for what belongs to the user's programs: `XDG_DATA_HOME`, or `.local/share` in the home folder.

    It is None where the user has no home folder.
    """
    return _xdg("XDG_DATA_HOME", ".local/share")


def _xdg(variable: str, below_home: str) -> Path | None:
    named = Path(os.environ.get(variable, ""))
    # The XDG base directory specification: a relative path is invalid and has to be ignored.
    if named.is_absolute():
        return named
    home = home_folder()
    return None if home is None else home / below_home
