"""What weights say about their use: mean, deviation, padding, licence; and how this and the settings become one.

A safetensors file may carry it as JSON under the key `flawscope` of its metadata; a file NAME.json beside
NAME.safetensors says the same:

    {"architecture": "mobilenetv2_100", "mean": [0.502, 0.502, 0.502], "std": [0.502, 0.502, 0.502],
     "pad_type": "same", "source": "https://...", "licence": "apache-2.0"}

Weights that are used with another mean or padding than they were trained with still give features, and every comparison
of a bundle with its run passes: nothing else tells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors
from safetensors import SafetensorError

from flawscope.config import FeatureSettings
from flawscope.errors import ArgumentError, RunError
from flawscope.open_files import RECORD_BYTES, read_regular, regular_path
from flawscope.text import NOT_JSON

METADATA = "flawscope"
"""Key of a safetensors file's metadata that holds the conditions, as JSON."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PADDINGS = ("same", "valid", "")
"""Values of timm's `pad_type`."""
_FREE = re.compile(r"apache|^mit\b|bsd|^cc0|^cc-by-4|^cc-by-sa|public domain|^isc\b", re.IGNORECASE)
_NO_COMMERCE = re.compile(r"\bnc\b|non-?commercial|research[- ]only|^apple-amlr$|^seer-license$", re.IGNORECASE)
"""Licences that forbid commercial use; the last two say so in their text alone."""

Triple = tuple[float, float, float]


class WeightConditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How weights want to be used; every entry may be left out.

    Attributes:
        architecture: Name of the timm model, with its tag where it has one (`resnet18.tv_in1k`).
        mean: Channel means in `input_range`.
        std: Channel standard deviations in `input_range`.
        input_range: Values that black and white pixels have before mean and deviation: [0, 1] unless said, [0, 255] or
            [-1, 1] elsewhere.
        pad_type: timm's `pad_type`: `same` for weights from TensorFlow, empty for PyTorch's symmetric padding.
        pooling: timm's `global_pool`, which decides in some transformers where the final normalization lies.
        options: Further arguments of `timm.create_model`.
        source: Where the weights come from.
        licence: Their licence, by its SPDX name where it has one.
    """

    architecture: str = ""
    mean: Triple | None = None
    std: Triple | None = None
    input_range: tuple[float, float] | None = None
    pad_type: str | None = None
    pooling: str | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if self.pad_type is not None:
            check_padding(self.pad_type)
            if self.options.get("pad_type", self.pad_type) != self.pad_type:
                raise ArgumentError(
                    f"pad_type: expected it once, got {self.pad_type!r} and, in options, {self.options['pad_type']!r}."
                )
        low, high = self.input_range or (0.0, 1.0)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ArgumentError(f"input_range: expected two rising numbers, got {[low, high]}.")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ArgumentError(f"mean: expected finite numbers, got {list(self.mean)}.")
        if self.std is not None and not all(0.0 < value < math.inf for value in self.std):
            raise ArgumentError(f"std: expected positive numbers, got {list(self.std)}.")
        # An image of other levels is black or white to the network, and every comparison would still pass.
        if self.mean is not None and not all(low <= value <= high for value in self.mean):
            raise ArgumentError(
                f"mean: expected numbers within the input_range {low:g} to {high:g}, got {list(self.mean)}. For pixels "
                "from 0 to 255 say input_range [0, 255]."
            )
        if self.std is not None and not all(0.002 <= value / (high - low) <= 2.0 for value in self.std):
            raise ArgumentError(
                f"std: expected shares of the input_range {low:g} to {high:g}, from 0.002 to twice it, got "
                f"{list(self.std)}. Say the range that mean and std are of."
            )

    @property
    def unit_mean(self) -> Triple | None:
        """Channel means for pixels in [0, 1], or None where nothing is said."""
        low, high = self.input_range or (0.0, 1.0)
        if self.mean is None and self.input_range is None:
            return None
        red, green, blue = ((value - low) / (high - low) for value in self.mean or (0.0, 0.0, 0.0))
        return red, green, blue

    @property
    def unit_std(self) -> Triple | None:
        """Channel standard deviations for pixels in [0, 1], or None where nothing is said."""
        low, high = self.input_range or (0.0, 1.0)
        if self.std is None and self.input_range is None:
            return None
        red, green, blue = (value / (high - low) for value in self.std or (1.0, 1.0, 1.0))
        return red, green, blue

    @property
    def network_options(self) -> dict[str, Any]:
        """Arguments of `timm.create_model`."""
        named = {"pad_type": self.pad_type, "global_pool": self.pooling}
        return {**self.options, **{name: value for name, value in named.items() if value is not None}}


def check_padding(value: object) -> None:
    """Raise ArgumentError unless a `pad_type` is one of timm's: it takes any other word for symmetric padding."""
    if not isinstance(value, str) or value not in PADDINGS:
        raise ArgumentError(
            f"pad_type: expected {', '.join(repr(name) for name in PADDINGS)} (empty is PyTorch's symmetric padding), "
            f"got {value!r}."
        )


@dataclass(frozen=True)
class ConditionsInForce:
    """Settings that weights and user agree on, and what is said about it.

    Attributes:
        settings: The settings, with mean and deviation.
        licence: Licence of the weights.
        lines: For the user and the record: what is in force and where it comes from, and what else has to be known.
    """

    settings: FeatureSettings
    licence: str
    lines: tuple[str, ...]


def read_conditions(path: Path) -> tuple[WeightConditions | None, str]:
    """Return what weights say about their use, and the file that says it; None where nothing does.

    Raises:
        RunError: If it cannot be understood, or metadata and the file beside say different things.
    """
    if not path.is_file():  # reading its tensors says so
        return None, ""
    beside = path.with_suffix(".json")
    found: list[tuple[WeightConditions, str]] = []
    try:
        with safetensors.safe_open(regular_path(path), "pt") as file:
            text = (file.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError):
        text = None  # no safetensors file: reading its tensors says so
    if text is not None:
        found.append((_decode(text.encode(), f"{path}: {METADATA} in its metadata"), str(path)))
    if beside != path and beside.exists():
        try:
            data = read_regular(beside, RECORD_BYTES)
        except OSError as err:
            raise RunError(f"{beside}: cannot be read: {err}. It says how {path.name} is used.") from err
        found.append((_decode(data, str(beside)), str(beside)))
    if len(found) == 2 and found[0][0] != found[1][0]:
        raise RunError(
            f"{beside}: expected what the metadata of {path.name} say, got something else. Remove the file, or make "
            "them equal."
        )
    return found[-1] if found else (None, "")


def apply_conditions(
    settings: FeatureSettings,
    conditions: WeightConditions | None,
    where: str,
    configuration: Mapping[str, Any],
    *,
    is_published: bool,
    takes_padding: bool,
) -> ConditionsInForce:
    """Fill in what settings leave open: by the conditions of the weights, else by timm's configuration of the name.

    Args:
        settings: The user's, which win.
        conditions: What the weights say.
        where: The file that says it.
        configuration: timm's configuration of the architecture.
        is_published: Whether the weights are those that timm publishes under the name.
        takes_padding: Whether timm builds the network with a `pad_type`.

    Raises:
        RunError: If the weights are those of another architecture.
        ArgumentError: If their licence forbids commercial use, and is not accepted.
    """
    said = conditions or WeightConditions()
    _check_architecture(settings.backbone, said.architecture, where)
    notes: list[str] = []
    # With metadata that name an architecture and its tag, timm's configuration is that of the weights.
    is_known = is_published or "." in said.architecture
    origin = f"timm's configuration of {_configured_name(settings.backbone, configuration)}"
    mean, mean_from = _choose("mean", settings.mean, said.unit_mean, configuration.get("mean", IMAGENET_MEAN), notes)
    std, std_from = _choose("std", settings.std, said.unit_std, configuration.get("std", IMAGENET_STD), notes)
    options = {**said.network_options, **settings.backbone_options}
    for name, value in said.network_options.items():
        if options[name] != value:
            notes.append(f"differs: {name}={options[name]!r} as set, although the weights say {value!r}")
    padding, padding_from = _padding(settings, said, options, takes_padding)
    words = {"hand": "set by hand", "weights": f"as {where} says", "timm": origin, "build": "as timm builds it"}
    is_assumed = not is_known and (
        "timm" in (mean_from, std_from) or (padding_from == "build" and takes_padding and conditions is None)
    )
    in_force = (
        f"mean {_numbers(mean)} ({words[mean_from]}), std {_numbers(std)} ({words[std_from]}), "
        f"padding {padding} ({words[padding_from]})"
    )
    if is_assumed:
        in_force = f"assumed, since the weights do not say: {in_force}"
    lines = [f"weights: {in_force}", *notes]
    published = str(configuration.get("license") or "")
    licence = said.licence or (published if is_known or _names_tag(settings.backbone) else "")
    if licence:
        lines += _licence_lines(licence, settings.accept_licence, settings.backbone)
    elif _NO_COMMERCE.search(published):
        lines.append(
            f"licence: the weights say nothing of theirs; those that timm publishes as "
            f"{_configured_name(settings.backbone, configuration)} are under {published}, which forbids commercial use"
        )
    filled = msgspec.structs.replace(settings, mean=mean, std=std, backbone_options=options)
    return ConditionsInForce(filled, licence, tuple(lines))


def _decode(data: bytes, where: str) -> WeightConditions:
    try:
        return msgspec.json.decode(data, type=WeightConditions)
    except NOT_JSON as err:
        raise RunError(
            f"{where}: expected how weights are used (architecture, mean, std, input_range, pad_type, pooling, "
            f"options, source, licence), got something else: {err}."
        ) from err


def _check_architecture(backbone: str, architecture: str, where: str) -> None:
    name, _, tag = backbone.partition(".")
    its_name, _, its_tag = architecture.partition(".")
    if architecture and (name != its_name or (tag and its_tag and tag != its_tag)):
        raise RunError(
            f"{where}: expected weights of {backbone}, got those of {architecture}. Name it with --backbone, or other "
            "weights."
        )


def _choose(
    name: str, by_hand: Triple | None, by_weights: Triple | None, by_timm: Any, notes: list[str]
) -> tuple[Triple, str]:
    if by_hand is None:
        red, green, blue = by_weights or by_timm
        return (float(red), float(green), float(blue)), "timm" if by_weights is None else "weights"
    if by_weights is not None and max(abs(a - b) for a, b in zip(by_hand, by_weights, strict=True)) > 1e-4:
        notes.append(f"differs: {name} {_numbers(by_hand)} as set, although the weights say {_numbers(by_weights)}")
    return by_hand, "hand"


def _padding(
    settings: FeatureSettings, said: WeightConditions, options: Mapping[str, Any], takes_padding: bool
) -> tuple[str, str]:
    value = options.get("pad_type")
    if value is None:
        return ("of the network" if not takes_padding else "by default"), "build"
    return str(value or "symmetric"), "hand" if "pad_type" in settings.backbone_options else "weights"


def _licence_lines(licence: str, accepted: str | None, backbone: str) -> list[str]:
    if _NO_COMMERCE.search(licence):
        if accepted is None or accepted.casefold() != licence.casefold():
            raise ArgumentError(
                f"weights: those of {backbone} are under {licence}, which forbids commercial use. Choose others, or "
                f'accept it with --set "accept_licence={licence}".'
            )
        return [f"licence: {licence}, which forbids commercial use, and was accepted"]
    if not _FREE.search(licence):
        return [f"licence: {licence}, one of its own: read it before you ship"]
    return []


def _names_tag(backbone: str) -> bool:
    return "." in backbone


def _configured_name(backbone: str, configuration: Mapping[str, Any]) -> str:
    name, _, tag = backbone.partition(".")
    tag = tag or str(configuration.get("tag") or "")
    return f"{name}.{tag}" if tag else name


def _numbers(values: Triple) -> str:
    return ",".join(f"{value:.4g}" for value in values)
