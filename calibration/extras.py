"""Import of the optional packages of this room, with one message where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from flawscope.errors import MissingExtra


def require(module: str, package: str, feature: str) -> ModuleType:
    """Import and return `module`.

    Args:
        module: Import name, for example `sklearn.metrics`.
        package: The distribution that brings it, for example `scikit-learn`.
        feature: What needs it, as a noun phrase.

    Raises:
        MissingExtra: If it is not installed.
    """
    # Called inside functions, never at the top of a module: --help and devices that only score do without the extra.
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise MissingExtra(feature, package, "calibrate") from err
