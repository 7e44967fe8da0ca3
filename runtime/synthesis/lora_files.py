"""Files of low-rank adapters (LoRA, arXiv:2106.09685): those of diffusers, peft and kohya, read and written.

W becomes W + scale * alpha / rank * B @ A. The three differ in names and in where alpha is: kohya stores a number for
each layer, peft a setting in `adapter_config.json`, diffusers the same in the metadata, or nothing, which means alpha =
rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.errors import ArgumentError, DataError
from flawscope.files import atomic_file, atomic_folder, check_new_file, write_text
from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.runtime.synthesis.checkpoint_kinds import Kind, kind_of
from flawscope.tensor_files import TensorEntry, TensorFile, open_tensors, write_tensors
from flawscope.text import NOT_JSON

Form = Literal["diffusers", "peft", "kohya"]
"""Whose names and settings a file has."""

PEFT_SETTINGS, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of an adapter of peft, which is a folder."""

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
"""Name under which diffusers looks for an adapter in a folder."""

_MAX_BYTES = 4 << 30
_METADATA = "lora_adapter_metadata"  # as diffusers since 0.34 keeps rank and alpha
_PREFIXES = {"unet.": "unet", "text_encoder.": "text"}
_TEXT_NAMES = ("text_model.", "model.")  # of CLIP, and of the BERT of LDM
_KOHYA = {"lora_unet_": "unet", "lora_te_": "text"}
# Of kohya, of diffusers today, of its first releases, and of peft with the name of its adapter.
_MATRIX = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<ab>[AB])(?:\.[\w-]+)?|\.lora_(?P<kohya>down|up)"
    r"|\.lora\.(?P<old>down|up)|\.lora_linear_layer\.(?P<linear>down|up)|_lora\.(?P<oldest>down|up))\.weight"
)


class _Settings(msgspec.Struct):
    """What decides about the scale, of the settings of an adapter of peft."""

    peft_type: str = "LORA"
    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    use_dora: bool = False


@dataclass(frozen=True)
class LoraLayer:
    """The low-rank change of one layer.

    Attributes:
        place: Part that it changes, `unet` or `text`; empty where the file does not say, which is the UNet.
        name: Layer, with dots; with underscores in their place for kohya.
        down: Matrix A, [rank, inputs], or of a convolution [rank, inputs, k, k].
        up: Matrix B, [outputs, rank], or [outputs, rank, 1, 1].
        alpha: Number that is divided by the rank.
    """

    place: str
    name: str
    down: TensorEntry
    up: TensorEntry
    alpha: float


@dataclass(frozen=True)
class LoraFile:
    """A file of low-rank changes.

    Attributes:
        path: The file.
        form: Whose names it has.
        layers: Its layers, in the order of their names.
    """

    path: Path
    form: Form
    layers: tuple[LoraLayer, ...]


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA of kohya, diffusers or peft; nothing is unpickled.

    Args:
        path: The file, or the folder of an adapter of peft or diffusers.

    Raises:
        DataError: If it is something else, broken or not whole.
    """
    place = path
    if path.is_dir():
        found = [path / name for name in (PEFT_WEIGHTS, DIFFUSERS_NAME) if (path / name).is_file()]
        if not found:
            raise DataError(
                f"{path}: expected {PEFT_WEIGHTS} or {DIFFUSERS_NAME} in the folder of a LoRA, got neither. Check the "
                "path."
            )
        place = found[0]
    file = open_tensors(place, _MAX_BYTES)
    kind = kind_of(file.tensors)
    if kind is not Kind.LORA:
        got = kind.value if isinstance(kind, Kind) else kind
        raise DataError(f"{place}: expected a LoRA of kohya, diffusers or peft, got {got}. Name another file.")
    is_kohya = any(name.startswith(tuple(_KOHYA)) for name in file.tensors)
    peft = place.with_name(PEFT_SETTINGS) if place.name == PEFT_WEIGHTS else None
    form: Form = "kohya" if is_kohya else "peft" if peft is not None else "diffusers"
    settings = _peft_settings(peft) if peft is not None else _diffusers_settings(file)
    return LoraFile(place, form, _layers(file, settings))


def _layers(file: TensorFile, settings: Mapping[str, _Settings]) -> tuple[LoraLayer, ...]:
    matrices: dict[tuple[str, str], dict[str, TensorEntry]] = {}
    alphas: dict[tuple[str, str], float] = {}
    for name, entry in file.tensors.items():
        if name.endswith(".alpha"):
            if math.prod(entry.shape) != 1:
                raise DataError(f"{file.path}: {name}: expected one number, got {list(entry.shape)}. Get it again.")
            alphas[_place(name.removesuffix(".alpha"))] = float(entry.read().reshape(-1)[0])
            continue
        match = _MATRIX.fullmatch(name)
        if match is None:
            raise DataError(
                f"{file.path}: expected the matrices of a LoRA and their alpha alone, got {name}. Name another file."
            )
        side = {"A": "down", "B": "up"}.get(match["ab"] or "") or next(
            match[group] for group in ("kohya", "old", "linear", "oldest") if match[group]
        )
        layer = match["layer"]
        if match["oldest"]:  # `attn1.processor.to_out_lora.up.weight`
            layer = re.sub(r"\.to_out$", ".to_out.0", layer.replace(".processor.", "."))
        matrices.setdefault(_place(layer), {})[side] = entry
    layers = []
    for (place, name), pair in sorted(matrices.items()):
        if len(pair) != 2:
            raise DataError(f"{file.path}: expected both matrices of each layer, got one for {name}. Get it again.")
        down, up = pair["down"], pair["up"]
        rank = down.shape[0] if down.shape else 0
        fits = len(down.shape) == len(up.shape) in (2, 4) and up.shape[1] == rank > 0 and set(up.shape[2:]) <= {1}
        if not fits or down.dtype.kind != "f" or up.dtype.kind != "f":
            raise DataError(
                f"{file.path}: {name}: expected matrices [rank, inputs] and [outputs, rank], got {list(down.shape)} "
                f"and {list(up.shape)}. Name another file."
            )
        alpha = alphas.get((place, name), _alpha(settings, place, name, rank))
        if not math.isfinite(alpha):
            raise DataError(f"{file.path}: {name}: expected a finite alpha, got {alpha}. Get the file again.")
        layers.append(LoraLayer(place, name, down, up, alpha))
    return tuple(layers)


def _place(layer: str) -> tuple[str, str]:
    """Return the part that a layer belongs to, and its name there."""
    for prefix, place in _KOHYA.items():
        if layer.startswith(prefix):
            return place, layer.removeprefix(prefix)
    layer = layer.removeprefix("base_model.model.")
    for prefix, place in _PREFIXES.items():
        if layer.startswith(prefix):
            return place, layer.removeprefix(prefix)
    return ("text" if layer.startswith("text_model.") else ""), layer


def _alpha(settings: Mapping[str, _Settings], place: str, name: str, rank: int) -> float:
    """Return alpha by the settings of peft for a part of the model."""
    own = settings.get(place) or _Settings()
    pattern = own.alpha_pattern
    value = next((pattern[key] for key in pattern if name == key or name.endswith(f".{key}")), own.lora_alpha)
    if value is None:
        return float(rank)
    # alpha / sqrt(rank) in place of alpha / rank (arXiv:2312.03732).
    return value * math.sqrt(rank) if own.use_rslora else value


def _peft_settings(path: Path) -> dict[str, _Settings]:
    """Return the settings of an adapter of peft, which say of no part; they hold for all."""
    try:
        settings = msgspec.json.decode(read_regular(path, SETTINGS_BYTES), type=_Settings)
    except (OSError, *NOT_JSON) as err:
        raise DataError(f"{path}: expected the settings of an adapter of peft, got: {err}. Get it again.") from err
    if settings.peft_type != "LORA" or settings.use_dora:
        got = "DoRA" if settings.use_dora else settings.peft_type
        raise DataError(f"{path}: expected an adapter of the type LORA, got {got}. Take another.")
    return dict.fromkeys(("", *_PREFIXES.values()), settings)


def _diffusers_settings(file: TensorFile) -> dict[str, _Settings]:
    """Return the settings for each part that are in the metadata."""
    try:
        stored = msgspec.json.decode(file.metadata.get(_METADATA, "{}"), type=dict[str, Any])
        by_part = {
            place: {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            for prefix, place in _PREFIXES.items()
        }
        return {place: msgspec.convert(values, _Settings) for place, values in by_part.items()}
    except NOT_JSON as err:
        raise DataError(f"{file.path}: expected settings in its metadata, got: {err}. Get it again.") from err


def write_lora(
    path: Path,
    unet: Mapping[str, Float32Array],
    alpha: float,
    form: Form,
    *,
    text: Mapping[str, Float32Array] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the LoRA of a UNet and a text encoder, whole or not at all.

    Args:
        path: The file (.safetensors) to write; for peft a folder.
        unet: Layer with dots + `.lora_A.weight` or `.lora_B.weight` -> float32 matrix.
        alpha: Alpha of all layers.
        form: Whose names and settings the file gets.
        text: The same for the text encoder.
        overwrite: Whether an earlier one that lies there may be replaced.

    Raises:
        ArgumentError: If `path` is taken, or the form is that of peft, which holds one network, and there are two.
        StorageError: If the system refuses to write.
    """
    # Versions of transformers differ in whether they name the model before its layers; files of LoRA do.
    named = {
        name if name.startswith(_TEXT_NAMES) else f"text_model.{name}": value for name, value in (text or {}).items()
    }
    if form == "peft":
        if named:
            raise ArgumentError(
                "form: expected diffusers or kohya for a LoRA of UNet and text encoder, got peft, whose files hold one "
                "network."
            )
        plain = {"peft_type": "LORA", "bias": "none", "inference_mode": True, "lora_dropout": 0.0}
        tensors = {f"base_model.model.{name}": _held(matrix) for name, matrix in unet.items()}
        with atomic_folder(path, replace_if=PEFT_SETTINGS, overwrite=overwrite) as unfinished:
            content = json.dumps({**plain, **_written_settings(unet, alpha)}, indent=2, sort_keys=True)
            write_text(unfinished / PEFT_SETTINGS, content + "\n")
            write_tensors(unfinished / PEFT_WEIGHTS, tensors, {"format": "pt"})
        return
    check_new_file(path, overwrite=overwrite)
    parts = {"unet": unet, **({"text": named} if named else {})}
    if form == "diffusers":
        prefixes = {place: prefix for prefix, place in _PREFIXES.items()}
        tensors = {prefixes[place] + name: _held(part[name]) for place, part in parts.items() for name in part}
        settings = {
            prefixes[place] + key: value
            for place, part in parts.items()
            for key, value in _written_settings(part, alpha).items()
        }
        texts = {_METADATA: json.dumps(settings, sort_keys=True)}
    else:
        prefixes = {place: prefix for prefix, place in _KOHYA.items()}
        tensors = {}
        for place, part in parts.items():
            for name, matrix in part.items():
                layer, _, side = name.removesuffix(".weight").rpartition(".")
                flat = prefixes[place] + layer.replace(".", "_")
                tensors[f"{flat}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = _held(matrix)
                tensors[f"{flat}.alpha"] = _held(np.array(alpha, np.float32))
        rank = _written_settings(unet, alpha)["r"]
        texts = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    with atomic_file(path) as temporary:
        write_tensors(temporary, tensors, {"format": "pt", **texts})


def _written_settings(matrices: Mapping[str, Float32Array], alpha: float) -> dict[str, Any]:
    """Return rank, alpha and the ends of the layers' names, as peft looks for them."""
    layers = {name.removesuffix(".weight").rpartition(".")[0] for name in matrices}
    ends = {".".join(layer.split(".")[-2:]) if layer[-1].isdigit() else layer.rpartition(".")[2] for layer in layers}
    rank = max((len(matrix) for name, matrix in matrices.items() if name.endswith(".lora_A.weight")), default=1)
    return {"r": rank, "lora_alpha": alpha, "target_modules": sorted(ends)}


def _held(matrix: Float32Array) -> TensorEntry:
    return TensorEntry(matrix.dtype, matrix.shape, lambda: matrix)
