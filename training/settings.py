"""Training settings from YAML files and the presets that come with flawscope."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from flawscope.errors import ArgumentError, MissingExtra


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that come with flawscope."""
    folder = resources.files("flawscope.training") / "presets"
    return tuple(sorted(entry.name.removesuffix(".yml") for entry in folder.iterdir() if entry.name.endswith(".yml")))


def read_settings(name: str) -> dict[str, Any]:
    """Read the settings of a preset or a YAML file.

    Raises:
        ArgumentError: If there is no such file or preset, or it is no YAML mapping.
        MissingExtra: If PyYAML is not installed.
    """
    # Presets win over a file of the same name in the working directory: `--config NAME` means the same everywhere.
    if name in preset_names():
        text = (resources.files("flawscope.training") / "presets" / f"{name}.yml").read_text()
    else:
        path = Path(name)
        if not path.is_file():
            raise ArgumentError(
                f"--config {name}: expected a YAML file or one of {', '.join(preset_names())}, got no such file."
            )
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as err:
            raise ArgumentError(f"--config {name}: could not be read: {err}.") from err
    try:
        # msgspec loads YAML with PyYAML's safe loader: a settings file cannot construct objects.
        settings = msgspec.yaml.decode(text)
    except ImportError as err:
        raise MissingExtra("reading YAML settings", "PyYAML", "train") from err
    except msgspec.DecodeError as err:
        raise ArgumentError(f"--config {name}: is no valid YAML: {err}.") from err
    if settings is None:  # an empty file, or one of comments alone
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ArgumentError(f"--config {name}: expected KEY: VALUE lines, got {type(settings).__name__}.")
    return settings
