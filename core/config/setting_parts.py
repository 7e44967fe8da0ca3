"""Settings made of parts, and their conversion to and from the flat names that people write.

Code sees parts (`config.loop.epochs`); the command line, YAML files, `run.json` and bundles see names (`epochs`). Which
part a name belongs to follows from the structs alone; there is no second list of names to keep in step.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import msgspec

from flawscope.errors import ArgumentError


class SettingPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings that are used together; a method that has the part uses every one of them."""


_Part = TypeVar("_Part", bound=SettingPart)
_Config = TypeVar("_Config", bound=msgspec.Struct)


def check(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ArgumentError if a condition on a setting does not hold."""
    if not holds:
        raise ArgumentError(f"{name}: expected {expected}, got {got!r}.")


@functools.cache
def parts_of(kind: type[msgspec.Struct]) -> dict[str, type[SettingPart]]:
    """Return the parts of settings: field name -> struct of the part."""
    hints = get_type_hints(kind)
    return {
        name: hints[name]
        for name in kind.__struct_fields__
        if isinstance(hints[name], type) and issubclass(hints[name], SettingPart)
    }


@functools.cache
def places_of(kind: type[msgspec.Struct]) -> dict[str, str | None]:
    """Return where each setting lies: flat name -> field of its part, or None for one of the method's own.

    The method's own come first, then part after part.

    Raises:
        TypeError: If a name occurs twice: the flat form could not tell the two apart.
    """
    parts = parts_of(kind)
    places: dict[str, str | None] = {name: None for name in kind.__struct_fields__ if name not in parts}
    for part, struct in parts.items():
        for name in struct.__struct_fields__:
            if name in places:
                # A mistake of whoever writes a settings struct, not of a user: hence no ArgumentError.
                raise TypeError(f"{kind.__name__}: the setting {name} occurs twice, in {part} and in {places[name]}")
            places[name] = part
    return places


def flatten(config: msgspec.Struct) -> dict[str, Any]:
    """Return settings by their flat names as plain data that JSON can hold; `method` comes first where there is one."""
    flat: dict[str, Any] = msgspec.to_builtins(config)
    for part in parts_of(type(config)):
        # `places_of` has refused names that occur in two parts, so nothing is overwritten.
        flat |= flat.pop(part)
    return flat


def nest(kind: type[msgspec.Struct], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by parts, as plain data; settings that are not named take the method's defaults.

    Raises:
        KeyError: If there is no setting of a name.
    """
    places = places_of(kind)
    # From the method's defaults, not those of the part's struct: an embedding has 80 epochs, LoopSettings 100.
    nested: dict[str, Any] = msgspec.to_builtins(kind())
    for name, value in flat.items():
        part = places[name]
        (nested if part is None else nested[part])[name] = value
    return nested


def from_flat(kind: type[_Config], flat: Mapping[str, Any], *, strict: bool = True, what: str = "") -> _Config:
    """Return settings from their flat names; those that are not named take their defaults.

    Args:
        kind: Struct of the settings.
        flat: Flat name -> value.
        strict: Refuse text where a number belongs.
        what: What the settings are for, in errors; empty for the name of the method.

    Raises:
        ArgumentError: If a name is not known, or a value does not fit.
    """
    what = what or tag_of(kind)
    for name in flat:
        if name not in places_of(kind):
            raise ArgumentError(f"{name}: expected a setting of {what}, got one that it does not have.")
    try:
        return msgspec.convert(_with_tag(kind, nest(kind, flat)), kind, strict=strict)
    except msgspec.ValidationError as err:
        # msgspec turns an ArgumentError of __post_init__ (a ValueError) into its own type, with our text.
        raise ArgumentError(f"settings of {what}: {without_parts(kind, str(err))}") from err


def change_settings(config: _Config, changes: Mapping[str, Any]) -> _Config:
    """Return settings with some values changed, by flat names; all checks run again.

    Raises:
        ArgumentError: If a name is not known, or a value does not fit.
    """
    flat = flatten(config)
    flat.pop("method", None)
    # Not structs.replace: it cannot reach into parts, and it does not check types.
    return from_flat(type(config), {**flat, **changes})


def find_part(config: msgspec.Struct, kind: type[_Part]) -> _Part | None:
    """Return the part of settings that is a `kind`, or None where they have none."""
    values = (getattr(config, name) for name in parts_of(type(config)))
    return next((value for value in values if isinstance(value, kind)), None)


def part_of(config: msgspec.Struct, kind: type[_Part]) -> _Part:
    """Return the part of settings that is a `kind`.

    Raises:
        ArgumentError: If they have none.
    """
    part = find_part(config, kind)
    if part is None:
        raise ArgumentError(f"config: expected settings with {kind.__name__}, got those of {tag_of(type(config))}.")
    return part


def tag_of(kind: type[msgspec.Struct]) -> str:
    """Return the name of the method that settings are for."""
    return str(kind.__struct_config__.tag)


def without_parts(kind: type[msgspec.Struct], message: str) -> str:
    """Return a message of msgspec with settings named as people write them: `$.epochs`, not `$.loop.epochs`."""
    parts = "|".join(parts_of(kind))
    if not parts:
        return message
    # Our own checks name the setting already, so the path to its part is dropped.
    message = re.sub(rf" - at `\$[\w.]*\.(?:{parts})`$", "", message)
    return re.sub(rf"(`\$[\w.]*?)\.(?:{parts})\.", r"\1.", message)


def _with_tag(kind: type[msgspec.Struct], nested: dict[str, Any]) -> dict[str, Any]:
    field = kind.__struct_config__.tag_field
    return nested if field is None else {**nested, field: kind.__struct_config__.tag}
