"""Builds the settings of a method from layers: file or preset, `--set` assignments, options."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from flawscope import methods
from flawscope.config.method_settings import MethodConfig
from flawscope.config.other_names import Renamed, known_elsewhere, rename
from flawscope.config.setting_parts import check, flatten, from_flat, parts_of, places_of
from flawscope.errors import ArgumentError
from flawscope.near_names import did_you_mean


class SettingsTable(Mapping[str, type[MethodConfig]]):
    """Method name -> struct of its settings, from the table of methods; a struct is imported when it is looked up.

    A view, not a copy: a method that is registered later is here too.
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
"""Keys of QualityInspector files that belong to other verbs or options: accepted and reported, not used."""


_REASONS = {
    "cross_fit": "A method that is trained in epochs would be trained once for every fold, and scores of networks from "
    "different trainings are on no common scale; hold images out instead (held_out)."
}
"""Setting -> why methods that lack it do."""


MEANT = {
    # The steps of a sampling have the name that other programs give to the length of a training.
    "steps": "epochs",
    "width": "widths",
    "widths": "width",
    "train_encoder": "train_decoder",
    "train_decoder": "train_encoder",
}
"""Setting -> what who names it for a method that lacks it may mean."""


def build_config(method: str, *layers: Mapping[str, Any]) -> tuple[MethodConfig, tuple[str, ...]]:
    """Merge layers of settings (the later wins) into the settings of a method.

    Keys of QualityInspector files are understood: `crop_size`, `k` with `method`, `lr`, `device: gpu`; and the names of
    other systems (`flawscope.config.other_names`).

    Returns:
        The settings, and the names of keys that belong to other verbs and were left out.

    Raises:
        ArgumentError: If the method is unknown, it has no setting of a given name, or a value does not fit.
    """
    if method not in CONFIGS:
        raise ArgumentError(f"method: expected one of {', '.join(CONFIGS)}, got {method!r}.")
    merged: dict[str, Any] = {}
    unused: list[str] = []
    for layer in layers:
        renamed = rename_settings(method, layer, [merged])
        unused += renamed.left_out
        for key, value in _translate(method, renamed.settings).items():
            if key in _OTHER_TOOLS_KEYS:
                unused.append(key)
            else:
                merged[key] = value
    kind = CONFIGS[method]
    for key, value in merged.items():
        check_key(method, kind, key, CONFIGS)
        merged[key] = as_word(kind, key, value)
    # Not strict: YAML reads 1e-4 as text, because its floats need a point.
    return from_flat(kind, merged, strict=False), tuple(unused)


def rename_settings(method: str, layer: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> Renamed:
    """Return a layer of settings with names of reference systems as they are called here; other names stay.

    Args:
        method: Name of the method.
        layer: The layer.
        earlier: Renamed layers before it: an option may be one number of a list that they set.

    Raises:
        ArgumentError: If a value has no equivalent, or two names of one setting are given.
    """
    values = dict(collections.ChainMap(*(dict(one) for one in reversed(earlier)), flatten(CONFIGS[method]())))
    return rename(
        method, layer, {name: tuple(value) for name, value in values.items() if isinstance(value, list | tuple)}
    )


def check_key(method: str, kind: type[msgspec.Struct], key: str, others: Mapping[str, type[msgspec.Struct]]) -> None:
    """Raise ArgumentError unless settings have a key; the message names the methods that have it.

    Args:
        method: Name of the method, for the message.
        kind: Struct of its settings.
        key: Flat name of a setting.
        others: Method name -> struct of its settings, to find users of a misplaced key.
    """
    places = places_of(kind)
    if key in places:
        return
    if users := [name for name, other in others.items() if name != method and key in places_of(other)]:
        near = f" (did you mean {MEANT[key]}?)" if MEANT.get(key) in places else ""
        raise ArgumentError(
            f"{key}: is no setting of {method}. It would have no effect: expected a setting that {method} uses{near}, "
            f"got one of {', '.join(users)}. {_REASONS[key] + ' ' if key in _REASONS else ''}"
            f"Leave it out: flawscope train {method} --help lists the settings."
        )
    if elsewhere := known_elsewhere(str(key)):
        raise ArgumentError(f"{key}: is no setting of {method}. {elsewhere}")
    raise ArgumentError(
        f"{key}: is no setting of {method}. "
        + (did_you_mean(key, places).strip() or f"Known: {', '.join(sorted(places))}.")
    )


def as_word(kind: type[msgspec.Struct], key: str, value: Any) -> Any:
    """Return the checked value of an enumerated setting; values of other settings are returned unchanged.

    `--set` reads `none` as null; for an enumerated setting it is the word `none` again.
    """
    part = places_of(kind)[key]
    # get_type_hints, not __annotations__: annotations are text here (`from __future__ import annotations`).
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
    except (ValueError, RecursionError):  # not JSON, an integer of thousands of digits, or nested too deeply
        pass
    if "," in text:
        # After JSON: `[1,2]` and `{"a":1,"b":2}` have commas too.
        return [_parse_value(part.strip()) for part in text.split(",") if part.strip()]
    # JSON knows lower case alone; YAML and Python spell True, None.
    return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)


def _translate(method: str, layer: Mapping[str, Any]) -> dict[str, Any]:
    """Rename keys of QualityInspector files, and expand single numbers to sizes and lists."""
    settings = dict(layer)
    if "crop_size" in settings:
        settings["crop"] = settings.pop("crop_size")
    # There `method` is how features are reduced and `k` by how much: percent of patches, or number of channels.
    reduction, percentage = settings.pop("method", None), settings.pop("k", None)
    if reduction not in (None, method, "coreset"):
        raise ArgumentError(f"method: expected {method} or coreset in the settings of {method}, got {reduction!r}.")
    if percentage is not None:
        if not isinstance(percentage, int | float) or isinstance(percentage, bool):
            raise ArgumentError(f"k: expected a number, got {percentage!r}.")
        if method == "patchcore" and not 0 < percentage <= 100:  # 200 would become a coreset of 2 patches
            raise ArgumentError(f"k: expected a percentage above 0 and up to 100, got {percentage!r}.")
        settings["coreset" if method == "patchcore" else "channels"] = (
            percentage / 100 if method == "patchcore" else percentage
        )
    if "lr" in settings:
        settings["learning_rate"] = settings.pop("lr")
    if settings.get("device") == "gpu":
        settings["device"] = "cuda"
    for key in ("resize", "crop", "tile"):
        value = settings.get(key)
        if isinstance(value, str):
            value = _parse_value(value)
        # bool is a subclass of int: `resize: true` must fail, not become 1 x 1.
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
    if isinstance(settings.get("scales"), int | float) and not isinstance(settings["scales"], bool):
        settings["scales"] = [settings["scales"]]
    for key in ("defects", "drawn"):
        if isinstance(settings.get(key), str):
            settings[key] = [settings[key]]
    if settings.get("crop") is not None and settings.get("crop") == settings.get("resize"):
        settings["crop"] = None  # a crop to the full size crops nothing
    return settings
