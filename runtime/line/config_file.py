"""Reading the configuration of a line: one YAML file, whose mistakes are told in one line each."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import inspect

from flawscope.errors import ArgumentError
from flawscope.near_names import did_you_mean
from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.runtime.line.config_checks import check_config
from flawscope.runtime.line.config_words import shown, words_of
from flawscope.runtime.line.line_config import LineConfig
from flawscope.runtime.line.options import Options, Secret
from flawscope.text import printable
from flawscope.yaml_file import read_yaml

_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


@dataclass(frozen=True)
class ReadConfig:
    """A configuration as it was read.

    Attributes:
        config: The configuration; its paths are absolute.
        path: The file.
        sha256: Hash of the file's bytes, in hex.
    """

    config: LineConfig
    path: Path
    sha256: str


def read_config(path: Path) -> ReadConfig:
    """Read the configuration of a line and check it as far as no device is needed.

    Relative paths in it are relative to the folder of the file, as it was named.

    Raises:
        ArgumentError: If it cannot be read, or is wrong: one line that says where, what was expected, and what to do.
        MissingExtra: If PyYAML is not installed.
    """
    try:
        data = read_regular(path, SETTINGS_BYTES)
    except OSError as err:
        raise ArgumentError(
            f"{path}: expected the YAML file of a line, which could not be read: {err.strerror or err}. Name "
            "another file."
        ) from err
    settings = read_yaml(data, str(path), feature="reading a line's configuration", extra="line")
    _check_texts(settings, "", path)
    folder = path.absolute().parent

    def absolute(kind: type, value: Any) -> Path:
        if kind is not Path or not isinstance(value, str) or not value:
            raise ValueError("no path")  # only where it stands counts: `_explained` has the words
        if value.startswith("~"):
            raise ValueError("~")
        return folder / value

    try:
        config = msgspec.convert(settings, LineConfig, dec_hook=absolute)
    except msgspec.ValidationError as err:
        raise ArgumentError(f"{path}: {_explained(str(err), settings)}") from err
    config = _with_absolute_secrets(config, folder)
    check_config(config, path)
    return ReadConfig(config, path, hashlib.sha256(data).hexdigest())


def _check_texts(value: Any, where: str, path: Path) -> None:
    """Refuse control characters: names and paths go into messages, topics and file names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_texts(key, where, path)
            _check_texts(inner, f"{where}.{key}" if where else key, path)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            _check_texts(inner, f"{where}[{place}]", path)
    elif isinstance(value, str) and printable(value) != value:
        raise ArgumentError(
            f"{path}: {printable(where) or 'keys'}: expected text in one line without control characters, "
            "got some. Mend it."
        )


def _with_absolute_secrets(options: Any, folder: Path) -> Any:
    """Return options whose secrets in files are named by absolute paths, as all other files are."""
    if isinstance(options, tuple):
        return tuple(_with_absolute_secrets(one, folder) for one in options)
    if not isinstance(options, Options):
        return options
    changed = {}
    for name, hint in _hints(type(options)).items():
        value = getattr(options, name)
        if isinstance(value, str) and value.startswith("file:") and (hint == Secret or Secret in get_args(hint)):
            changed[name] = f"file:{folder / value.removeprefix('file:')}"
        else:
            changed[name] = _with_absolute_secrets(value, folder)
    return msgspec.structs.replace(options, **changed)


@cache
def _hints(kind: type[Options]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _explained(message: str, settings: dict[str, Any]) -> str:
    """Return a message of msgspec in the words of operators: where, what was expected, what was got, what to do."""
    found = re.fullmatch(r"(.*) - at `(\$.*)`", message, re.DOTALL)
    what, place = (found[1], found[2]) if found else (message, "$")
    kind, value, where = _walk(place, settings)
    at = f"{where}: " if where else ""
    if key := re.match(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        return f"{at}{_unknown(key[1], _chosen(kind, value))}"
    if key := re.match(r"Object missing required field `(.*)`", what):
        struct = _chosen(kind, value)
        fields = {field.encode_name: field.type for field in struct.fields} if struct else {}
        words = words_of(fields[key[1]]) if key[1] in fields else _kinds(kind)
        return f"{at}expected the key {key[1]} ({words}), got none. Add it."
    if what == "~":
        return f"{at}expected a path without ~, which a service has no home for, got {shown(value)}. Write it out."
    if place.endswith(".kind"):
        return f"{at}expected {_kinds(kind)}, got {shown(value)}.{_near(value, _kinds(kind))}"
    words = words_of(kind)
    hint = _near(value, words) if words.startswith("one of") else " Mend it."
    return f"{at}expected {words}, got {shown(value, kind)}.{hint}"


def _walk(place: str, settings: dict[str, Any]) -> tuple[inspect.Type, Any, str]:
    """Return the type that is expected at a place, the value there, and the place as operators write it.

    A tag (`kind`) has no type of its own: it is that of its struct.
    """
    kind: inspect.Type = inspect.type_info(LineConfig)
    value: Any = settings
    where = ""
    for name, index in _STEP.findall(place):
        if name:
            where += f".{name}" if where else name
            struct = _chosen(kind, value)
            fields = {field.encode_name: field.type for field in struct.fields} if struct else {}
            kind = fields.get(name, kind)  # `kind` is no field
            value = value.get(name) if isinstance(value, dict) else None
        elif index == "...":
            kind, value, key = _wrong_entry(kind, value)
            where += f".{key}"
        else:
            where += f"[{index}]"
            kind = _item(kind, int(index))
            value = value[int(index)]
    return kind, value, where


def _parts(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _chosen(kind: inspect.Type, value: Any) -> inspect.StructType | None:
    """Return the struct that a mapping is read as; None where its `kind` says none."""
    structs = [one for one in _parts(kind) if isinstance(one, inspect.StructType)]
    if len(structs) == 1:
        return structs[0]
    tag = value.get("kind") if isinstance(value, dict) else None
    return next((one for one in structs if one.tag == tag), None)


def _item(kind: inspect.Type, index: int) -> inspect.Type:
    for one in _parts(kind):
        if isinstance(one, inspect.TupleType):
            return one.item_types[index]
        if isinstance(one, inspect.VarTupleType | inspect.ListType):
            return one.item_type
    return kind


def _wrong_entry(kind: inspect.Type, value: Any) -> tuple[inspect.Type, Any, str]:
    """Return type, value and name of the first wrong entry of a mapping with free names: msgspec gives none."""
    (mapping,) = (one for one in _parts(kind) if isinstance(one, inspect.DictType))
    plain = (bool, int, float, str)
    name = next((name for name, one in value.items() if not isinstance(one, plain)), "")
    return mapping.value_type, value.get(name), str(name)


def _kinds(kind: inspect.Type) -> str:
    tags = sorted(str(one.tag) for one in _parts(kind) if isinstance(one, inspect.StructType))
    return f"one of {', '.join(tags)}"


def _unknown(key: str, struct: inspect.StructType | None) -> str:
    names = [field.encode_name for field in struct.fields] if struct else []
    if struct and struct.tag_field:
        names.append(struct.tag_field)
    hint = did_you_mean(key, names).strip() or "Leave it out."
    return f"expected one of the keys {', '.join(names)}, got {shown(key)}. {hint}"


def _near(value: Any, words: str) -> str:
    return did_you_mean(value, words.removeprefix("one of ").split(", ")) or " Mend it."
