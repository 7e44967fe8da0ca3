"""Weights of a timm network from a safetensors file: mapped by timm, and none of the network's tensors left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from flawscope.config import FeatureSettings
from flawscope.errors import RunError
from flawscope.open_files import regular_path
from flawscope.training.features.timm_network import COUNTER, create_network, feature_shapes, first_line, plain_shapes

_PREFIXES = ("module.", "model.", "backbone.", "body.")
"""What training code and wrappers put before every name."""
_MISMATCH = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) from checkpoint, "
    r"the shape in current model is torch\.Size\(\[(.*?)\]\)"
)

State = dict[str, Tensor]


def read_state(path: Path, name: str) -> State:
    """Return the tensors of a weights file, floating-point ones as float32.

    Args:
        path: The file.
        name: Name of the network, for errors.

    Raises:
        RunError: If it is missing, no safetensors file, cut off, or holds NaN or infinity.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise RunError(f"{path}: expected a weights file for {name}, got {got}. Check --weights.")
    try:
        state = safetensors.torch.load_file(regular_path(path))
    except (SafetensorError, OSError) as err:
        raise RunError(
            f"{path}: expected a safetensors file with timm's names, got {err}. "
            "Files that need unpickling (.pth, .bin) are not read: convert them to safetensors."
        ) from err
    # float32: tables of positions are resampled, which half precision would round twice.
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    for key, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise RunError(f"{path}: {key}: expected finite weights, got NaN or infinity. Get the file again.")
    return state


def load_network(settings: FeatureSettings, path: Path, size: tuple[int, int] | None = None) -> nn.Module:
    """Return the network that resolved settings name with the weights of a file.

    The file may have timm's names, those of the file that timm publishes, or those of timm's feature networks, in which
    runs keep their weights; with or without a classifier, and with `model.`, `module.` or `backbone.` before each name.

    Args:
        settings: Name the network, its stages and, where it has one, its image size.
        path: Safetensors file.
        size: Height and width in pixels of the images, for tables of positions; None for those of the network.

    Raises:
        ArgumentError: If timm cannot build the network.
        RunError: If the file cannot be read, or is not of this network.
    """
    state = read_state(path, settings.backbone)
    if not state:
        raise RunError(f"{path}: expected weights of {settings.backbone}, got a file without tensors.")
    shapes = plain_shapes(settings)
    whole = _without_prefixes(state, shapes)
    _check_depth(whole, shapes, settings.backbone, path)
    expected = feature_shapes(settings)
    for named in (state, whole):
        if all(key in named and tuple(named[key].shape) == shape for key, shape in expected.items()):
            network = create_network(settings)
            network.load_state_dict(named, strict=False)
            return network
    state = _resampled(whole, shapes, size)
    try:
        loaded = create_network(settings, state)
        # Timm says nowhere which tensors a file lacked. One in which each value is NaN leaves the others in sight.
        marked = create_network(settings, {key: _mark(value) for key, value in state.items()}).state_dict()
    # Filters of timm are written for one published file each: at others they may raise anything.
    except Exception as err:
        raise RunError(_misfit(err, settings.backbone, path, state, shapes)) from err
    missing = [
        key
        for key, value in marked.items()
        if value.is_floating_point() and not bool(value.isnan().any()) and not key.endswith(COUNTER)
    ]
    if missing:
        raise RunError(_lacking(path, settings.backbone, missing, len(marked)))
    return loaded


def _mark(value: Tensor) -> Tensor:
    return torch.full_like(value, float("nan")) if value.is_floating_point() else value


def _without_prefixes(state: State, shapes: Mapping[str, object]) -> State:
    """Return a state whose names begin as timm's do."""
    while not state.keys() & shapes.keys():
        for prefix in _PREFIXES:
            inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            # Most, not all: a classifier or a counter beside the backbone has no prefix, and is left behind.
            if 2 * len(inner) > len(state) or inner.keys() & shapes.keys():
                state = inner
                break
        else:
            break  # names of the published file, perhaps: timm's filter knows them
    return state


def _check_depth(state: Mapping[str, Tensor], shapes: Mapping[str, object], name: str, path: Path) -> None:
    """Refuse a file with more blocks than the network has: its first ones would load, and say nothing of the rest."""
    kinds = {re.sub(r"\d+", "#", key) for key in shapes}
    further = [
        key
        for key in state
        if key not in shapes
        and key != (kind := re.sub(r"\d+", "#", key))
        and kind in kinds
        and not key.endswith(COUNTER)
    ]
    # In the published file's own names every tensor looks further; timm's names have to be there for it to mean depth.
    known = sum(key in state for key in shapes)
    if further and known > len(shapes) // 2:
        raise RunError(
            f"{path}: expected weights of {name}, got a file with {len(further)} tensors of further layers (the first "
            f"is {further[0]}). Are they of a deeper network? Name it with --backbone."
        )


def _resampled(state: State, shapes: Mapping[str, tuple[int, ...]], size: tuple[int, int] | None) -> State:
    """Return a state whose table of positions has the network's length, for tables that timm does not resample."""
    table, target = state.get("pos_embed"), shapes.get("pos_embed")
    # Hiera alone has a table of plain shape that timm loads without resampling; its class token is none.
    if size is None or table is None or target is None or table.ndim != 3 or "cls_token" in shapes:
        return state
    if table.shape[1] == target[1] or table.shape[2] != target[2]:
        return state
    from timm.layers.pos_embed import resample_abs_pos_embed

    stride = ((size[0] * size[1]) / target[1]) ** 0.5
    grid = [round(side / stride) for side in size]
    if grid[0] * grid[1] != target[1] or round(table.shape[1] ** 0.5) ** 2 != table.shape[1]:
        return state
    return {**state, "pos_embed": resample_abs_pos_embed(table, new_size=grid, num_prefix_tokens=0)}


def _misfit(
    err: Exception, name: str, path: Path, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Return what is wrong with a file that timm could not load."""
    absent = [key for key in shapes if key not in state and not key.endswith(COUNTER)]
    found = _MISMATCH.search(str(err))
    if found and len(absent) <= len(shapes) // 2:
        key, got, expected = found.groups()
        return f"{path}: {key}: expected [{expected}] for {name}, got [{got}]. {_other(key)}"
    if absent:
        return _lacking(path, name, absent, len(shapes))
    return (
        f"{path}: expected weights of {name}, got a file that timm cannot map to it ({type(err).__name__}: "
        f"{first_line(err)}). Are they of another architecture?"
    )


def _lacking(path: Path, name: str, missing: list[str], total: int) -> str:
    return (
        f"{path}: expected weights of {name}, got a file without {len(missing)} of its {total} tensors "
        f"(the first is {missing[0].removeprefix('model.')}). Are they of another architecture?"
    )


def _other(key: str) -> str:
    if any(word in key for word in ("pos_embed", "attention_bias", "relative_position", "rel_pos")):
        return (
            "Are they of another architecture? Where it is the same, timm cannot bring this table to another image "
            "size: take the --image-size that the weights were trained on."
        )
    return "Are they of another architecture?"
