"""The settings of every detector and their defaults: here and nowhere else.

Precedence: `--set` and options, then the YAML file or preset, then the defaults below. The run and the bundle record
the values that were used.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from flawscope.errors import ArgumentError
from flawscope.images import Preprocessing
from flawscope.tiles import Tiling


class DetectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all detectors share.

    Attributes:
        backbone: `scattering` (fixed filters, no download), or the name of any timm model.
        stages: Feature stages; stage s has stride 2^(s+1): 1 is /4, 2 is /8, 3 is /16.
        backbone_options: Further arguments of `timm.create_model`, for example {"pad_type": "same"}.
        mean: Per-channel mean on [0, 1] that the backbone expects; None takes the backbone's own.
        std: Per-channel deviation, as `mean`.
        resize: Height and width in pixels after the resize.
        crop: Height and width of a centre crop that follows, or None.
        tile: Height and width in pixels of the tiles that pictures are cut into, each resized to `resize`; None takes
            pictures whole. Export, thresholds and the line use the same tiles.
        tile_overlap: Share of a tile that its neighbour has too, on the line; training takes tiles side by side.
        upsample: How coarser stages reach the grid of the finest.
        standardize: What patches are multiplied with, measured on good ones: `none`, `scale` (one over every
            channel's deviation), `whiten` (decorrelated, principal axes at equal deviation), or `auto`, which is
            `none` but for `scattering`, whose channels have no learned scale.
        sigma: Standard deviation of the anomaly map's Gaussian, in input pixels.
        held_out: Share of the good training images that is kept for calibration.
        held_out_minimum: At least so many, where there are enough images.
        batch_size: Images per forward pass.
        num_workers: Threads that decode and resize.
        device: `auto`, `cpu` or `cuda`, for training only.
        memory_budget_mb: Upper bound of the patch matrix held in memory during fitting.
        seed: Seed of every random choice.
    """

    backbone: str = "scattering"
    stages: tuple[int, ...] = (1, 2, 3)
    backbone_options: dict[str, Any] = {}
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: tuple[int, int] = (256, 256)
    crop: tuple[int, int] | None = None
    tile: tuple[int, int] | None = None
    tile_overlap: float = 0.25
    upsample: Literal["nearest", "bilinear"] = "nearest"
    standardize: Literal["auto", "none", "scale", "whiten"] = "auto"
    sigma: float = 4.0
    held_out: float = 0.1
    held_out_minimum: int = 20
    batch_size: int = 8
    num_workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_budget_mb: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or not self.stages[0] >= 0:
            raise ArgumentError(f"stages: expected rising stage numbers such as 1,2,3, got {list(self.stages)}.")
        _check(0.0 <= self.held_out < 1.0, "held_out", "a share from 0 to below 1", self.held_out)
        _check(self.held_out_minimum >= 0, "held_out_minimum", "a count of at least 0", self.held_out_minimum)
        _check(0.0 <= self.sigma <= 1000.0, "sigma", "0 to 1000 pixels", self.sigma)
        _check(1 <= self.batch_size <= 1024, "batch_size", "1 to 1024", self.batch_size)
        _check(1 <= self.num_workers <= 64, "num_workers", "1 to 64", self.num_workers)
        _check(self.memory_budget_mb >= 16, "memory_budget_mb", "at least 16", self.memory_budget_mb)
        _check(self.seed >= 0, "seed", "a number of at least 0", self.seed)
        if self.mean is not None:
            _check(all(map(math.isfinite, self.mean)), "mean", "finite numbers", list(self.mean))
        if self.std is not None:
            _check(all(0.0 < one < math.inf for one in self.std), "std", "positive numbers", list(self.std))
        _ = self.preprocessing  # refuses impossible sizes
        _check(0.0 <= self.tile_overlap <= 0.5, "tile_overlap", "a share from 0 to 0.5", self.tile_overlap)
        if self.tiling is not None:
            _check(self.crop is None, "crop", "none with tiles", self.crop)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing these settings ask for."""
        return Preprocessing(resize=self.resize, crop=self.crop)

    @property
    def tiling(self) -> Tiling | None:
        """How pictures are cut, or None where they are taken whole."""
        return None if self.tile is None else Tiling(self.tile, self.tile_overlap)


class PatchcoreConfig(DetectorConfig, frozen=True, kw_only=True, tag_field="method", tag="patchcore"):
    """PatchCore (arXiv:2106.08265).

    Attributes:
        coreset: Share of all patches kept (up to 1), or their number (above 1).
        max_bank: Upper bound of the bank's rows, whatever `coreset` says.
        neighbors: b of equation 7; 1 switches the re-weighting off.
        reweight: `paper` (equation 7), `seed` (the test patch's own neighbours), or `none`.
        projection: Select the coreset in the full space (`none`), in a sparse random projection of
            Johnson-Lindenstrauss size (`jl`), or let the memory budget decide (`auto`).
    """

    stages: tuple[int, ...] = (2, 3)
    upsample: Literal["nearest", "bilinear"] = "bilinear"
    coreset: float = 0.01
    max_bank: int = 16384
    neighbors: int = 9
    reweight: Literal["paper", "seed", "none"] = "paper"
    projection: Literal["auto", "none", "jl"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0.0 < self.coreset < math.inf, "coreset", "a share up to 1 or a count above 1", self.coreset)
        _check(1 <= self.max_bank <= 1_000_000, "max_bank", "1 to 1,000,000", self.max_bank)
        _check(1 <= self.neighbors <= 64, "neighbors", "1 to 64", self.neighbors)


class PadimConfig(DetectorConfig, frozen=True, kw_only=True, tag_field="method", tag="padim"):
    """PaDiM (arXiv:2011.08785).

    Attributes:
        channels: Number of channels kept; the choice is stored in the run.
        reduction: How they are kept, under the seed: `sample` draws them at random (the paper), `ortho` projects all
            onto as many random orthonormal directions (arXiv:2105.14737), so that no channel is lost entirely.
        regularization: Added to the diagonal of every covariance.
    """

    channels: int = 100
    reduction: Literal["sample", "ortho"] = "sample"
    regularization: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(1 <= self.channels <= 4096, "channels", "1 to 4096", self.channels)
        _check(0.0 < self.regularization < math.inf, "regularization", "a positive number", self.regularization)


class TrainedConfig(DetectorConfig, frozen=True, kw_only=True):
    """What everything shares that has epochs.

    Attributes:
        epochs: Passes over the good pictures.
        learning_rate: Rate after the warm-up.
        schedule: `constant`, or `cosine` to zero at the end.
        warmup_steps: Steps in which the rate rises to its value.
        accumulate: Batches whose gradients are summed before a step of the optimizer.
        clip_norm: Largest norm of the gradients; 0 does not limit it.
        ema: Decay of the averaged parameters that are validated and kept; 0 keeps the parameters themselves.
        mixed_precision: `no`, `bf16` or `fp16`.
        validation: Share of the training pictures that chooses the best epoch. They count as learned: thresholds are
            never set on them.
        checkpoint_every: Epochs between checkpoints.
        preview_every: Epochs between preview pictures.
    """

    epochs: int = 100
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    accumulate: int = 1
    clip_norm: float = 0.0
    ema: float = 0.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    validation: float = 0.2
    checkpoint_every: int = 1
    preview_every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(1 <= self.epochs <= 1_000_000, "epochs", "1 to 1,000,000", self.epochs)
        _check(0.0 < self.learning_rate < math.inf, "learning_rate", "a positive number", self.learning_rate)
        _check(self.warmup_steps >= 0, "warmup_steps", "a count of at least 0", self.warmup_steps)
        _check(1 <= self.accumulate <= 4096, "accumulate", "1 to 4096", self.accumulate)
        _check(0.0 <= self.clip_norm < math.inf, "clip_norm", "a number of at least 0", self.clip_norm)
        _check(0.0 <= self.ema < 1.0, "ema", "a decay from 0 to below 1", self.ema)
        _check(0.0 < self.validation < 1.0, "validation", "a share above 0 and below 1", self.validation)
        _check(self.checkpoint_every >= 1, "checkpoint_every", "at least 1", self.checkpoint_every)
        _check(self.preview_every >= 1, "preview_every", "at least 1", self.preview_every)


class StfpmConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="stfpm"):
    """Student-teacher feature pyramid matching (arXiv:2103.04257).

    The teacher is the backbone with its weights, the student the same architecture from a random start.

    Attributes:
        momentum: Of the stochastic gradient descent.
        weight_decay: Of the stochastic gradient descent.
        loss: `paper` has half the squared distance of a position (equation 3), `seed` the whole, which is a rate twice
            as large.
    """

    backbone: str = "resnet18"
    upsample: Literal["nearest", "bilinear"] = "bilinear"
    sigma: float = 0.0
    batch_size: int = 32
    learning_rate: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    loss: Literal["paper", "seed"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0.0 <= self.momentum < 1.0, "momentum", "0 to below 1", self.momentum)
        _check(0.0 <= self.weight_decay < math.inf, "weight_decay", "a number of at least 0", self.weight_decay)
        _check(self.backbone != "scattering", "backbone", "a network that can be trained, with weights", self.backbone)


CONFIGS: dict[str, type[DetectorConfig]] = {
    "patchcore": PatchcoreConfig,
    "padim": PadimConfig,
    "stfpm": StfpmConfig,
}
"""Method name -> its settings."""

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


def build_config(method: str, *layers: Mapping[str, Any]) -> tuple[DetectorConfig, tuple[str, ...]]:
    """Merge layers of settings (the later wins) into the settings of a method.

    Keys of QualityInspector files are understood: `crop_size`, `k` with `method`, `lr`, `device: gpu`.

    Returns:
        The settings, and the names of keys that belong to other verbs and were left out.

    Raises:
        ArgumentError: If the method, a key or a value is not known, or a value does not fit.
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
    known = kind.__struct_fields__
    for key, value in merged.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)  # YAML has keys that are no text
            raise ArgumentError(
                f"{key}: is no setting of {method}. "
                + (f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(known))}.")
            )
        merged[key] = _as_word(kind, key, value)
    try:
        config = msgspec.convert({**merged, "method": method}, kind, strict=False)
    except msgspec.ValidationError as err:
        # msgspec reports errors of __post_init__ with its own type and our text.
        raise ArgumentError(f"settings of {method}: {err}") from err
    return config, tuple(unused)


def _as_word(kind: type[DetectorConfig], key: str, value: Any) -> Any:
    """Return the value of a setting that is one of a few words, checked; the value of any other as it is.

    `--set` reads `none` as null: here it is a word again.
    """
    hint = get_type_hints(kind)[key]
    if get_origin(hint) is not Literal:
        return value
    if value is None:
        value = "none"
    _check(value in get_args(hint), key, f"one of {', '.join(get_args(hint))}", value)
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
    if isinstance(settings.get("stages"), int):
        settings["stages"] = [settings["stages"]]
    if settings.get("crop") is not None and settings.get("crop") == settings.get("resize"):
        settings["crop"] = None  # a crop to the same size is none
    return settings


def _check(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ArgumentError(f"{name}: expected {expected}, got {got!r}.")
