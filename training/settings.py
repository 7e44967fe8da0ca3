"""Training settings from YAML files and the presets that come with flawscope, and their names in other systems."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from flawscope.config import CONFIGS, rename_settings
from flawscope.errors import ArgumentError
from flawscope.near_names import did_you_mean
from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.yaml_file import read_yaml


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that come with flawscope."""
    folder = resources.files("flawscope.training") / "presets"
    return tuple(sorted(entry.name.removesuffix(".yml") for entry in folder.iterdir() if entry.name.endswith(".yml")))


def read_settings(name: str) -> dict[str, Any]:
    """Read the settings of a preset or a YAML file.

    Raises:
        ArgumentError: If there is no such file or preset, it is larger than 64 KiB, or no YAML mapping of different
            names to finite numbers, texts, lists and mappings.
        MissingExtra: If PyYAML is not installed.
    """
    # Presets win over a file of the same name in the working directory: `--config NAME` means the same everywhere.
    if name in preset_names():
        data = (resources.files("flawscope.training") / "presets" / f"{name}.yml").read_bytes()
    else:
        path = Path(name)
        if not path.is_file():
            raise ArgumentError(
                f"--config {name}: expected a YAML file or one of {', '.join(preset_names())}, got no such file."
                + did_you_mean(name, preset_names())
            )
        try:
            data = read_regular(path, SETTINGS_BYTES)
        except OSError as err:
            raise ArgumentError(f"--config {name}: could not be read: {err.strerror or err}.") from err
    return read_yaml(data, f"--config {name}", feature="reading YAML settings", extra="train")


def rename_layers(method: str, *layers: Mapping[str, Any]) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """Return layers with the names of reference systems as they are called here, and what to say of them.

    `build_config` would do as well; but who looks at what was set, by its names, does so before.

    Raises:
        ArgumentError: If a value has no equivalent, or two names of one setting are given.
    """
    if method not in CONFIGS:  # `auto` has no names of its own yet
        return layers, ()
    renamed, notes = list[Mapping[str, Any]](), list[str]()
    for layer in layers:
        own = rename_settings(method, layer, renamed)
        renamed.append(own.settings)
        notes += own.notes
    return tuple(renamed), tuple(dict.fromkeys(notes))
