"""Training settings from YAML files and the presets that come with flawscope."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.open_files import SETTINGS_BYTES, read_regular

_MOST_LEVELS = 16
_STRING = "tag:yaml.org,2002:str"


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
            )
        try:
            data = read_regular(path, SETTINGS_BYTES)
        except OSError as err:
            raise ArgumentError(f"--config {name}: could not be read: {err.strerror or err}.") from err
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ArgumentError(f"--config {name}: expected text in UTF-8, got {err}. Save it as UTF-8.") from err
    try:
        _check(text, name)
        # msgspec loads YAML with PyYAML's safe loader: a settings file cannot construct objects.
        settings = msgspec.yaml.decode(text)
    except ImportError as err:
        raise MissingExtra("reading YAML settings", "PyYAML", "train") from err
    # The safe loader raises whatever Python does for dates and numbers that do not exist.
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as err:
        if isinstance(err, ArgumentError):
            raise
        raise ArgumentError(f"--config {name}: is no valid YAML: {' '.join(str(err).split())}.") from err
    if settings is None:  # an empty file, or one of comments alone
        return {}
    if not isinstance(settings, dict):
        raise ArgumentError(f"--config {name}: expected KEY: VALUE lines, got {type(settings).__name__}.")
    if any(isinstance(value, float) and not math.isfinite(value) for value in _leaves(settings)):
        raise ArgumentError(f"--config {name}: expected finite numbers, got NaN or infinity. Mend the file.")
    return settings


def _check(text: str, name: str) -> None:
    """Refuse what settings do not need, and what makes loading them slow or ambiguous, before anything is built.

    Aliases let a few lines stand for gigabytes, integers as keys can be chosen so that a dictionary of them takes
    minutes, and of a name that stands twice the first value is dropped without a word.
    """
    import yaml  # here, as it is no dependency of a device

    try:
        levels = 0
        for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
                line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
                raise ArgumentError(
                    f"--config {name}: {line}expected plain values, got an anchor (&), an alias (*) or a tag "
                    "(!). Write the value out."
                )
            opens = isinstance(event, yaml.CollectionStartEvent)
            levels += opens - isinstance(event, yaml.CollectionEndEvent)
            if levels > _MOST_LEVELS:
                raise ArgumentError(f"--config {name}: expected at most {_MOST_LEVELS} levels, got more. Mend it.")
        # Nodes are no dictionaries yet, and after the loop above they cannot nest deeply or share parts.
        pending = [yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
        while pending:
            node = pending.pop()
            if isinstance(node, yaml.SequenceNode):
                pending += node.value
            if isinstance(node, yaml.MappingNode):
                _check_keys([key for key, _ in node.value], name)
                pending += [value for _, value in node.value]
    except yaml.YAMLError as err:
        raise ArgumentError(f"--config {name}: is no valid YAML: {' '.join(str(err).split())}.") from err


def _check_keys(keys: Iterable[Any], name: str) -> None:
    seen = set()
    for key in keys:
        line = key.start_mark.line + 1
        if key.tag != _STRING:
            raise ArgumentError(f"--config {name}: line {line}: expected KEY: VALUE lines, got a key that is no name.")
        if key.value in seen:
            raise ArgumentError(f"--config {name}: line {line}: expected every name once, got {key.value!r} again.")
        seen.add(key.value)


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value
