"""LoRA merged into the weights of a base: what is written is a model like any other, for training and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.errors import DataError
from flawscope.runtime.synthesis.ldm_layout import ModelPart
from flawscope.runtime.synthesis.lora_files import LoraFile, LoraLayer, read_lora
from flawscope.tensor_files import TensorEntry

_PLACES = {"unet": "unet", "text_encoder": "text", "bert": "text"}
"""Folder -> the part of a model, as LoRA files call it."""


@dataclass(frozen=True)
class LoraScale:
    """A LoRA and how much of it is added.

    Attributes:
        path: Its file or folder.
        scale: Factor of its change.
    """

    path: Path
    scale: float = 1.0


def merged_parts(parts: Mapping[str, ModelPart], loras: Sequence[LoraScale]) -> dict[str, ModelPart]:
    """Return the parts of a model with LoRAs added to their weights, which are computed when they are read.

    Args:
        parts: Folder -> part.
        loras: The LoRAs, added one after another.

    Raises:
        DataError: If one of them is broken, or of another base.
    """
    merged = dict(parts)
    for lora in loras:
        file = read_lora(lora.path)
        layers = {folder: _weights_by_layer(part, file) for folder, part in merged.items() if folder in _PLACES}
        for layer in file.layers:
            wanted = [folder for folder in layers if _PLACES[folder] == (layer.place or "unet")]
            found = [(folder, layers[folder].get(_key(layer.name, file))) for folder in wanted]
            folder, name = found[0] if found else ("", None)
            if name is None:
                where = "text encoder" if layer.place == "text" else "UNet"
                raise DataError(
                    f"{file.path}: expected layers that the base has, got {layer.name}, of "
                    f"{_outputs(layer)} x {_inputs(layer)}, which its {where} has not. Is it of another base?"
                )
            part = merged[folder]
            changed = _merged(file, layer, name, part.tensors[name], lora.scale)
            merged[folder] = replace(part, tensors={**part.tensors, name: changed})
    return merged


def _weights_by_layer(part: ModelPart, file: LoraFile) -> dict[str, str]:
    """Return layer as the LoRA's file writes it -> name of its weight."""
    ends = ".weight"
    return {_key(name.removesuffix(ends), file): name for name in part.tensors if name.endswith(ends)}


def _key(layer: str, file: LoraFile) -> str:
    # Versions of transformers differ in whether they write the name of the model before those of its layers.
    layer = layer.replace(".", "_") if file.form == "kohya" else layer
    return layer.removeprefix("text_model_").removeprefix("text_model.")


def _outputs(layer: LoraLayer) -> int:
    return layer.up.shape[0]


def _inputs(layer: LoraLayer) -> int:
    return int(np.prod(layer.down.shape[1:]))


def _merged(file: LoraFile, layer: LoraLayer, name: str, weight: TensorEntry, scale: float) -> TensorEntry:
    shape = weight.shape
    # A 1 x 1 convolution may have been adapted as a matrix, and the reverse.
    rows, columns = shape[0] if shape else 0, int(np.prod(shape[1:]))
    if (rows, columns) != (_outputs(layer), _inputs(layer)):
        raise DataError(
            f"{file.path}: {layer.name}: expected a change of {rows} x {columns}, as {name} of the base is "
            f"{list(shape)}, got {_outputs(layer)} x {_inputs(layer)}. Is it of another base?"
        )
    factor = scale * layer.alpha / layer.down.shape[0]

    def read() -> npt.NDArray[Any]:
        down = layer.down.read().astype(np.float32).reshape(layer.down.shape[0], -1)
        up = layer.up.read().astype(np.float32).reshape(rows, -1)
        # What becomes infinity or NaN is refused below.
        with np.errstate(over="ignore", invalid="ignore"):
            # In float32, whatever the model is stored in: the change is small beside the weights.
            summed = weight.read().astype(np.float32) + np.float32(factor) * (up @ down).reshape(shape)
            values: npt.NDArray[Any] = summed.astype(weight.dtype)
        if not np.isfinite(values).all():
            raise DataError(
                f"{file.path}: {layer.name}: expected finite weights with it, got NaN or infinity. Lower its scale."
            )
        return values

    return TensorEntry(weight.dtype, shape, read)
