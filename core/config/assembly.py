"""Builds the settings of one method from layers: files, presets, assignments, options."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from flawscope import methods
from flawscope.config.method_settings import MethodConfig
from flawscope.config.setting_parts import check, from_flat, parts_of, places_of
from flawscope.errors import ArgumentError


class SettingsTable(Mapping[str, type[MethodConfig]]):
    """Method name -> its settings, out of the table of methods; a row's settings are imported when they are asked for.

    A view and no copy: a method that is registered later is here too.
    """

    def __getitem__(self, method: str) -> type[MethodConfig]:
        row = methods.METHODS.get(method)
        if row is None or row.settings is None:
            raise KeyError(method)
        kind: type[MethodConfig] = methods.load(row.settings)
        return kind

    def __iter__(self) -> Iterator[str]:
        return (name for name, row in methods.METHODS.items() if row.settings is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


CONFIGS = SettingsTable()

_OTHER_TOOLS_KEYS = frozenset(
    {
        "do_eval",
        "save_pic",
        "save_model",
        "compute_pro",
        "print_freq",
        "save_path",
        "model_path",
        "img_path",
        "threshold",
    }
)
"""Keys of QualityInspector files that ask for something other verbs or options do; accepted and reported, not used."""


def build_config(method: str, *layers: Mapping[str, Any]) -> tuple[MethodConfig, tuple[str, ...]]:
    """Merge layers of settings (the later wins) into the settings of a method.

    Keys of QualityInspector files are understood: `crop_size`, `k` with `method`, `lr`, `device: gpu`.

    Returns:
        The settings, and the names of keys that belong to other verbs and were left out.

    Raises:
        ArgumentError: If the method, a key or a value is not known, the method does not use a key, or a value does not
            fit.
    """
    if method not in CONFIGS:
        raise ArgumentError(f"method: expected one of {', '.join(CONFIGS)}, got {method!r}.")
    merged: dict[str, Any] = {}
    unused: list[str] = []
    for layer in layers:
        for key, value in _translate(method, layer).items():
            if key in _OTHER_TOOLS_KEYS:
                unused.append(key)
            else:
                merged[key] = value
    kind = CONFIGS[method]
    for key, value in merged.items():
        check_key(method, kind, key, CONFIGS)
        merged[key] = as_word(kind, key, value)
    return from_flat(kind, merged, strict=False), tuple(unused)


def check_key(method: str, kind: type[msgspec.Struct], key: str, others: Mapping[str, type[msgspec.Struct]]) -> None:
    """Raise ArgumentError unless a kind of settings has a key; say which other kinds have it.

    Args:
        method: What the settings are for, for the error.
        kind: The settings.
        key: Flat name of a setting.
        others: Further kinds of settings by their name.
    """
    known = places_of(kind)
    if key in known:
        return
    if users := [name for name, other in others.items() if name != method and key in places_of(other)]:
        raise ArgumentError(
            f"{key}: is no setting of {method}. It would have no effect: expected a setting that {method} uses, got "
            f"one of {', '.join(users)}. Leave it out: flawscope train {method} --help lists the settings."
        )
    close = difflib.get_close_matches(str(key), known, 1)  # YAML has keys that are no text
    raise ArgumentError(
        f"{key}: is no setting of {method}. "
        + (f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(known))}.")
    )


def as_word(kind: type[msgspec.Struct], key: str, value: Any) -> Any:
    """Return the checked value of an enumerated setting; any other value is returned unchanged.

    `--set` reads `none` as null: here it is a word again.
    """
    part = places_of(kind)[key]
    hint = get_type_hints(kind if part is None else parts_of(kind)[part])[key]
    if get_origin(hint) is not Literal:
        return value
    if value is None:
        value = "none"
    check(value in get_args(hint), key, f"one of {', '.join(get_args(hint))}", value)
    return value


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `KEY=VALUE`; the value is JSON, a list with commas, or plain text.

    Raises:
        ArgumentError: If there is no `=`.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ArgumentError(f"--set {text}: expected KEY=VALUE, for example --set coreset=0.01.")
    return key.strip(), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, brackets without end
        pass
    if "," in text:
        return [_parse_value(part.strip()) for part in text.split(",") if part.strip()]
    return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)


def _translate(method: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    """Rename keys of QualityInspector files and bring sizes and lists into one form."""
    settings = dict(layer)
    if "crop_size" in settings:
        settings["crop"] = settings.pop("crop_size")
    reduction, kept = settings.pop("method", None), settings.pop("k", None)
    if reduction not in (None, method, "coreset"):
        raise ArgumentError(f"method: expected {method} or coreset in the settings of {method}, got {reduction!r}.")
    if kept is not None:
        if not isinstance(kept, int | float) or isinstance(kept, bool):
            raise ArgumentError(f"k: expected a number, got {kept!r}.")
        if method == "patchcore" and not 0 < kept <= 100:  # 200 would become a count of 2
            raise ArgumentError(f"k: expected a percentage above 0 and up to 100, got {kept!r}.")
        settings["coreset" if method == "patchcore" else "channels"] = kept / 100 if method == "patchcore" else kept
    if "lr" in settings:
        settings["learning_rate"] = settings.pop("lr")
    if settings.get("device") == "gpu":
        settings["device"] = "cuda"
    for key in ("resize", "crop", "tile"):
        value = settings.get(key)
        if isinstance(value, str):
            value = _parse_value(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value, value]
        if key in settings:
            settings[key] = value
    for key in ("mean", "std"):
        if isinstance(settings.get(key), int | float):
            settings[key] = [settings[key]] * 3
    for key in ("stages", "attention", "widths", "hint_widths"):
        if isinstance(settings.get(key), int) and not isinstance(settings[key], bool):
            settings[key] = [settings[key]]
    if isinstance(settings.get("defects"), str):
        settings["defects"] = [settings["defects"]]
    if settings.get("crop") is not None and settings.get("crop") == settings.get("resize"):
        settings["crop"] = None  # a crop to the same size is none
    return settings
