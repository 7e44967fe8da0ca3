"""Networks of timm: what their stages are, how they are built, and which image sizes they can take.

timm knows each family: how its features are taken (`features_only`), which file goes into it (its checkpoint filter),
and what its stages are (`feature_info`). Everything here asks timm for these, so that a new family needs no line here.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from flawscope.config import FeatureSettings
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.text import encode_json
from flawscope.training.features.scattering import SCATTERING, Scattering
from flawscope.training.features.weight_conditions import check_padding

_OURS = {
    "features_only": "stages are what flawscope takes from a network",
    "out_indices": "the setting stages says it",
    "feature_cls": "timm knows the one of each family",
    "pretrained": "--weights, or the model hub, gives the weights",
    "checkpoint_path": "--weights gives the file",
    "pretrained_cfg": "a file beside the weights says how they are used",
    "pretrained_cfg_overlay": "a file beside the weights says how they are used",
    "cache_dir": "the hub client has a cache of its own",
    "device": "the setting device says it",
    "dtype": "networks are built in float32",
    "num_classes": "the classifier is left out",
}
"""Arguments of `timm.create_model` that flawscope sets itself, and why nobody else may."""
COUNTER = "num_batches_tracked"
"""Ends the names of counters of batch norm, which play no part in inference and are absent from many files."""
_ANY_SIZE = "dynamic_img_size"
"""Option of networks that bring their table of positions to each image."""
_UNPADDED = 3  # rows that convolutions without padding may cost a stage, as in Inception
_BUILD_ERRORS = (TypeError, AssertionError, LookupError, RuntimeError, ValueError, AttributeError)
"""What timm's networks raise at arguments and sizes that they cannot take."""


@dataclass(frozen=True)
class NetworkFacts:
    """What timm says about a network.

    Attributes:
        channels: Channels of every stage.
        strides: Stride in pixels of every stage.
        size: Height and width in pixels of the images it was trained on.
        is_fixed: Whether it is built for one image size.
        is_getter: Whether its features come from `forward_intermediates`, as those of transformers do.
        configuration: timm's configuration of its weights: mean, std, licence, place on the hub.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    size: tuple[int, int]
    is_fixed: bool
    is_getter: bool
    configuration: Mapping[str, Any]

    @property
    def is_plain(self) -> bool:
        """Whether all stages have one stride: blocks of a transformer, say."""
        return len(self.strides) > 1 and len(set(self.strides)) == 1

    @property
    def patch(self) -> int:
        """Number of pixels of which the sides of an image have to be multiples; 1 where any size will do."""
        return self.strides[0] if self.is_fixed or self.is_plain else 1


def describe_network(settings: FeatureSettings) -> NetworkFacts:
    """Return what timm says about the network that settings name; nothing is computed.

    Raises:
        ArgumentError: If there is no such network, or it does not take the options.
        MissingExtra: If timm is not installed.
    """
    _check_name(settings.backbone)
    _check_options(settings)
    return _facts(settings.backbone, encode_json(settings.backbone_options))


@functools.lru_cache(maxsize=32)
def _facts(backbone: str, options: bytes) -> NetworkFacts:
    # One stage that every network has: `feature_info` lists all of them, and the user's are checked against it.
    settings = FeatureSettings(backbone=backbone, backbone_options=msgspec.json.decode(options), stages=(0,))
    network = _built(settings, "meta", None)
    information, configuration = _information(network), configuration_of(network)
    size = tuple((configuration.get("input_size") or (3, 224, 224))[-2:])
    return NetworkFacts(
        channels=tuple(int(entry["num_chs"]) for entry in information.info),
        strides=tuple(int(entry["reduction"]) for entry in information.info),
        size=(int(size[0]), int(size[1])),
        is_fixed=bool(configuration.get("fixed_input_size")),
        is_getter=_is_getter(network),
        configuration=configuration,
    )


def resolve_network(
    settings: FeatureSettings, size: tuple[int, int] | None, *, resizes: bool = False
) -> FeatureSettings:
    """Return settings of a timm network with what they leave open filled in: stages, image size, final normalization.

    Args:
        settings: Name the network.
        size: Height and width in pixels of its images, or None where they are not known; then no size is set or
            checked.
        resizes: Whether it will see images of other sizes too: then it is built for any size, where it can be.

    Raises:
        ArgumentError: If there is no such network or stage, or it cannot take such images.
    """
    facts = describe_network(settings)
    changes: dict[str, Any] = {"stages": settings.stages or _automatic_stages(facts, settings.AUTO_STAGES)}
    if max(changes["stages"]) >= len(facts.strides):
        raise ArgumentError(
            f"stages: {settings.backbone} has the stages 0 to {len(facts.strides) - 1} (strides "
            f"{', '.join(map(str, facts.strides))}), got {list(settings.stages or ())}. Choose among them, or leave "
            "stages out."
        )
    options = settings.backbone_options
    # A network with a table of positions is built for one size, unless it resamples the table.
    sets_size = facts.is_fixed and size is not None and not {"img_size", _ANY_SIZE} & options.keys()
    if sets_size and size is not None:
        is_dynamic = resizes and takes_option(settings, _ANY_SIZE, True)
        changes["backbone_options"] = {**options, **({_ANY_SIZE: True} if is_dynamic else {"img_size": list(size)})}
        sets_size = not is_dynamic
    resolved = msgspec.structs.replace(settings, **changes)
    if size is not None:
        _check_size(resolved, facts, size, sets_size=sets_size)
    return msgspec.structs.replace(resolved, final_norm=_final_norm(resolved, facts, size or facts.size))


def create_network(settings: FeatureSettings, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return the network that resolved settings name: float32 [N, 3, H, W] in, a list of its stages out.

    Args:
        settings: Name the network and its stages.
        state: Weights of the whole network by timm's names or by those of the published file, which timm's own
            checkpoint filter translates; None for random ones. Tensors that the network does not have are ignored,
            and so are missing ones.

    Raises:
        ArgumentError: If timm cannot build it.
        Exception: Whatever timm's filter raises at a file of another network.
    """
    _check_name(settings.backbone)
    _check_options(settings)
    return _built(settings, "cpu", state)


def plain_shapes(settings: FeatureSettings) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the whole network, classifier included, as timm names them: name -> shape."""
    try:
        with torch.device("meta"), _quiet_timm():
            plain = _timm().create_model(settings.backbone, **_arguments(settings))
    # What the stages do not use, such as the pooling before the classifier, is looked at here first.
    except _BUILD_ERRORS as err:
        raise ArgumentError(
            f"backbone: timm could not build {settings.backbone} with the options {settings.backbone_options}: "
            f"{type(err).__name__}: {first_line(err)}. Check backbone_options, and what the weights say."
        ) from err
    return {name: tuple(value.shape) for name, value in plain.state_dict().items()}


def feature_shapes(settings: FeatureSettings) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the network of features, but for counters of batch norm: name -> shape."""
    network = _built(settings, "meta", None)
    return {name: tuple(value.shape) for name, value in network.state_dict().items() if not name.endswith(COUNTER)}


def configuration_of(network: nn.Module) -> dict[str, Any]:
    """Return timm's configuration of a network: mean, std, input size, licence; empty for one that is not timm's."""
    configuration: Any = getattr(network, "pretrained_cfg", None)
    return dict(configuration or {})


def is_channels_last(network: nn.Module) -> bool:
    """Return whether the stages of a network come as [N, H, W, C], as those of Swin do."""
    return str(getattr(getattr(network, "output_fmt", None), "value", "NCHW")) == "NHWC"


def check_stages(network: nn.Module, stages: Sequence[Tensor], size: tuple[int, int]) -> None:
    """Refuse stages [N, C, h, w] of an image of size (H, W) that are not what the network's `feature_info` says.

    Networks that have none, such as the scattering network, are not checked.

    Raises:
        ArgumentError: If number, channels or strides differ: taken for something else, they would give wrong features,
            and every comparison of flawscope with itself would pass.
    """
    if not hasattr(network, "feature_info"):
        return
    information = _information(network)
    channels, strides = information.channels(), information.reduction()
    if len(stages) != len(channels) or any(stage.ndim != 4 for stage in stages):
        shapes = ", ".join(str(list(stage.shape)) for stage in stages)
        raise ArgumentError(
            f"backbone: expected {len(channels)} stages [N, C, h, w] as timm describes them, got {shapes}. Its "
            "features cannot be read; choose another backbone."
        )
    for stage, count, stride in zip(stages, channels, strides, strict=True):
        grid = tuple(stage.shape[-2:])
        fits = all(
            max(1, side // int(stride) - _UNPADDED) <= cells <= math.ceil(side / int(stride))
            for side, cells in zip(size, grid, strict=True)
        )
        if stage.shape[1] != count or not fits:
            raise ArgumentError(
                f"backbone: expected {count} channels at stride {stride} for images of {size[0]}x{size[1]} pixels, as "
                f"timm describes the network, got {stage.shape[1]} channels on {grid[0]}x{grid[1]} cells. Choose "
                "another --image-size, or another backbone."
            )


def coarsest_stride(network: nn.Module) -> int:
    """Return the largest stride of the stages in pixels; 1 for a network whose stages timm does not describe."""
    if isinstance(network, Scattering):
        return int(2 ** (max(network.stages) + 1))
    return max(map(int, _information(network).reduction())) if hasattr(network, "feature_info") else 1


def is_built_for_one_size(network: nn.Module) -> bool:
    """Return whether timm builds a network for images of one size."""
    return bool(configuration_of(network).get("fixed_input_size"))


def size_advice(network: nn.Module) -> str:
    """Return what to do about an image size that a network cannot take."""
    if hasattr(network, "feature_info") and len(set(_information(network).reduction())) == 1:
        stride = _information(network).reduction()[0]
        return f"Choose an --image-size that is a multiple of {stride} pixels."
    return "Choose a larger --image-size or finer stages."


def takes_option(settings: FeatureSettings, option: str, value: object) -> bool:
    """Return whether a network can be built with one more option of timm."""
    options = {**settings.backbone_options, option: value}
    try:
        _built(msgspec.structs.replace(settings, backbone_options=options, stages=(0,), final_norm=None), "meta", None)
    except ArgumentError:
        return False
    return True


@contextlib.contextmanager
def _quiet_timm() -> Iterator[None]:
    """Keep timm from logging which tensors of a file it does not use: that is looked at here, and said in one line."""
    log = logging.getLogger("timm")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch, on how timm resamples its tables
            yield
    finally:
        log.setLevel(before)


def _timm() -> Any:
    # Any: whether timm has types depends on its version.
    try:
        import timm
    except ImportError as err:
        raise MissingExtra("a backbone of timm", "timm", "train") from err
    return timm


def _check_name(name: str) -> None:
    timm = _timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        raise ArgumentError(
            f"backbone: expected {SCATTERING} or the name of a timm model, got {name!r}. "
            + (f"Similar names: {', '.join(close)}." if close else "timm.list_models() has the names.")
        )


def _check_options(settings: FeatureSettings) -> None:
    options = settings.backbone_options
    for name, why in _OURS.items():
        if name in options:
            raise ArgumentError(
                f"backbone_options: expected no {name}, since {why}, got {options[name]!r}. Leave it out."
            )
    if "pad_type" in options:
        check_padding(options["pad_type"])
    if options.get("in_chans", 3) != 3:
        raise ArgumentError(
            "backbone_options: expected 3 for in_chans, because images are brought to three channels before a "
            f"backbone sees them (a grey one has them equal), got {options['in_chans']!r}. Leave it out."
        )


def _arguments(settings: FeatureSettings) -> dict[str, Any]:
    # Sizes are lists in JSON; some networks of timm compare them with tuples.
    options = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.backbone_options.items()
    }
    return options


def _built(settings: FeatureSettings, device: str, state: Mapping[str, Tensor] | None) -> nn.Module:
    timm = _timm()
    arguments = {**_arguments(settings), "features_only": True}
    if settings.stages is not None:
        arguments["out_indices"] = settings.stages
    if settings.final_norm:
        arguments["feature_cls"] = _normed_getter()
    if state is not None:
        # The way of timm's own downloads: mapped, resampled and loaded before features are taken. -1 classes: no number
        # of classes is expected, so that the file may have any classifier, or none.
        configuration = timm.get_pretrained_cfg(settings.backbone)
        arguments["pretrained_cfg_overlay"] = {
            "state_dict": dict(state),
            "num_classes": -1,
            "classifier": (configuration.classifier if configuration is not None else None) or (),
            "custom_load": False,
            "source": None,
        }
    try:
        # Without a state never `pretrained`: timm would fall back to a pickled file.
        with torch.device(device), _quiet_timm():
            network: nn.Module = timm.create_model(settings.backbone, pretrained=state is not None, **arguments)
    except _BUILD_ERRORS as err:
        if state is not None:
            raise  # the file's fault: the same network was built without it
        raise ArgumentError(
            f"backbone: timm could not build {settings.backbone} with the options {settings.backbone_options}: "
            f"{type(err).__name__}: {first_line(err)}. Check --set stages and backbone_options."
        ) from err
    for module in network.modules():
        # Hiera's attention has five axes, and torch translates the fused form to ONNX for four alone.
        if type(module).__name__ == "MaskUnitAttention":
            module.fused_attn = False  # type: ignore[assignment]
        # timm keeps the configuration with the whole state in it.
        kept: Any = getattr(module, "pretrained_cfg", None)
        if isinstance(kept, dict):
            kept.pop("state_dict", None)
    return network


@functools.cache
def _normed_getter() -> type[nn.Module]:
    """Return timm's wrapper of transformers, which leaves the final normalization out unless told otherwise."""
    getter: Any = _getter()

    class NormedGetter(getter):  # type: ignore[misc]
        """Features after the final normalization."""

        def __init__(self, model: nn.Module, **arguments: Any) -> None:
            super().__init__(model, **{**arguments, "norm": True})

    return NormedGetter


def _getter() -> Any:
    _timm()
    from timm.models._features import FeatureGetterNet  # exported nowhere else

    return FeatureGetterNet


def _is_getter(network: nn.Module) -> bool:
    return isinstance(network, _getter())


def _information(network: nn.Module) -> Any:
    """Return timm's `FeatureInfo` of a network of features."""
    information: Any = network.feature_info
    if not hasattr(information, "channels") or not hasattr(information, "reduction"):
        raise ArgumentError(
            f"backbone: expected a network whose stages timm describes, got {type(network).__name__} without channels "
            "and strides. Choose another backbone."
        )
    return information


def _automatic_stages(facts: NetworkFacts, wanted: Sequence[int]) -> tuple[int, ...]:
    count = len(facts.strides)
    if facts.is_plain:
        # The first blocks of a transformer see little of the image: the quarters are what is published.
        return tuple(sorted({max(1, round(count * part / 4)) - 1 for part in (1, 2, 3, 4)}))
    last = {stride: index for index, stride in enumerate(facts.strides)}
    strides = [2 ** (stage + 1) for stage in wanted]
    if all(stride in last for stride in strides):
        return tuple(last[stride] for stride in strides)
    return tuple(range(min(len(wanted), count)))


def _final_norm(settings: FeatureSettings, facts: NetworkFacts, size: tuple[int, int]) -> bool:
    if settings.final_norm is False or (settings.final_norm is None and not (facts.is_getter and facts.is_plain)):
        return False
    problem = "it has none for its stages"
    if facts.is_getter:
        problem = _problem(msgspec.structs.replace(settings, final_norm=True), size)
    if settings.final_norm and problem:
        raise ArgumentError(f"final_norm: {settings.backbone} cannot give it: {problem}. Leave it out.")
    return not problem


def _problem(settings: FeatureSettings, size: tuple[int, int]) -> str:
    """Return why a network cannot take images of size (H, W), or an empty string; only shapes are computed."""
    try:
        network = _built(settings, "meta", None).eval()
        with torch.inference_mode():
            stages = network(torch.zeros((1, 3, *size), device="meta"))
        if is_channels_last(network):
            stages = [stage.permute(0, 3, 1, 2) for stage in stages]
        check_stages(network, stages, size)
    except ArgumentError as err:
        return str(err)
    except _BUILD_ERRORS as err:
        return f"{first_line(err)}"
    return ""


def _check_size(settings: FeatureSettings, facts: NetworkFacts, size: tuple[int, int], *, sets_size: bool) -> None:
    """Refuse a size that the network cannot take, and name the nearest ones that it can."""

    def problem(candidate: tuple[int, int]) -> str:
        if any(side % facts.patch for side in candidate):
            return f"sides have to be multiples of {facts.patch} pixels, the side of a patch"
        options = settings.backbone_options
        if sets_size:
            options = {**options, "img_size": list(candidate)}
        return _problem(msgspec.structs.replace(settings, backbone_options=options), candidate)

    if not (why := problem(size)):
        return
    found = []
    # From the finest step to the coarsest: windows and pooled grids need multiples of more than a patch.
    steps = sorted({facts.patch, max(facts.strides), 2 * max(facts.strides)} - {1})
    for step, (name, rounded) in itertools.product(steps, (("below", math.floor), ("above", math.ceil))):
        height, width = (rounded(side / step) * step for side in size)
        if min(height, width) >= 16 and (height, width) != size and not problem((height, width)):
            found.append((height, width))
        if len(found) == 2 or (found and name == "above"):
            break
    if not found and not problem(facts.size):
        found = [facts.size]
    names = " or ".join(str(side[0]) if side[0] == side[1] else f"{side[0]}x{side[1]}" for side in found)
    advice = f"The nearest that work: {names} (--image-size)." if names else f"It was made for {facts.size[0]} pixels."
    if not sets_size and "img_size" in settings.backbone_options:
        advice = f"backbone_options says img_size={settings.backbone_options['img_size']}: leave it out. {advice}"
    raise ArgumentError(
        f"image size: expected one that {settings.backbone} with stages {list(settings.stages or ())} can take, got "
        f"{size[0]}x{size[1]} pixels: {why.rstrip('.')}. {advice}"
    )


def first_line(err: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0]
