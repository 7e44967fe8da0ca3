"""Records of runs (`run.json`), read strictly and without torch.

    run.json               the record
    weights.safetensors    the trained weights
    samples/NNN.png        normal images

A record has settings by their flat names, as people write them (`flawscope.config`). Records of schema 1 also had
settings that their method did not use; those are dropped here, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import msgspec

from flawscope import methods
from flawscope.config import CONFIGS, AutoencoderConfig, MethodConfig, flatten
from flawscope.config.method_settings import Settings
from flawscope.config.setting_parts import nest, places_of, tag_of, without_parts
from flawscope.cross_scores import CrossScores
from flawscope.diffusion.reconstruction import MapRule
from flawscope.drawn_check import DrawnCheck
from flawscope.errors import RunError
from flawscope.imaging.grid_places import GridPlaces
from flawscope.imaging.learned_images import LearnedImages
from flawscope.learned_defects import LearnedDefects
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.path_kinds import kind_of_path
from flawscope.scratch import recover
from flawscope.text import NOT_JSON, encode_json
from flawscope.unfinished import check_finished

RUN_SCHEMA = 2
SYNTHESIS_SCHEMA = 2
RECORD = "run.json"
WEIGHTS = "weights.safetensors"
SAMPLES = "samples"
RUN_ENTRIES = frozenset(
    {RECORD, WEIGHTS, SAMPLES, "metrics.jsonl", "previews", "tensorboard", "extractor", "tokenizer.json"}
    | {"support", "support.json"}
)
"""Names of the files and folders that runs have: what else lies in one is somebody's."""
AUTOENCODER_KNOWS, TEXT_EFFECT, DEFECT_EFFECT = "autoencoder_knows", "text_effect", "defect_effect"
"""Facts that somebody asks for by name: see `flawscope.training.notes`."""

if TYPE_CHECKING:
    RecordedConfig = MethodConfig
else:
    # What msgspec sees: not a struct, so that it leaves decoding to `_decode`, which asks the table of methods.
    RecordedConfig = Settings

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Index = Annotated[int, msgspec.Meta(ge=0)]

_NO_BACKBONE = frozenset(
    {
        *("backbone", "stages", "backbone_options", "mean", "std", "upsample", "standardize"),
        *("sigma", "held_out", "held_out_minimum", "tile_overlap"),
    }
)
_NO_IMAGE_SET = _NO_BACKBONE | {"crop", "tile", "num_workers", "memory_budget_mb", "validation"}
_IDLE_IN_SCHEMA_1: dict[str, frozenset[str]] = {
    "padim": frozenset({"memory_budget_mb"}),
    "stfpm": frozenset({"upsample", "standardize"}),
    "ddad": frozenset({"upsample", "standardize"}),
    "dsad": frozenset({"upsample", "standardize"}),
    "autoencoder": frozenset({"upsample", "standardize", "sigma", "tile_overlap"}),
    "base": _NO_BACKBONE,
    "embedding": _NO_IMAGE_SET,
    "inpainting": _NO_IMAGE_SET,
}
"""Method -> settings that records of schema 1 have although its training never read them."""

_OLDER: dict[str, Any] = {
    **{"resize_rule": 1, "final_norm": False, "align": False, "min_bank": 0, "learn_text": "frozen"},
    "factors": "float32",
}
"""Settings that were added since, with the values that say what was done before."""


@dataclass(frozen=True)
class BackboneSource:
    """Origin and licence of a backbone's weights.

    Attributes:
        name: Name of the backbone.
        weights: Where the weights come from, with their SHA-256.
        licence: Licence of the weights, as far as it is known.
        conditions: How the weights are used, and who said so, one line each; none in records that are older.
    """

    name: str
    weights: str
    licence: str
    conditions: tuple[str, ...] = ()


class RunRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`run.json` of a detector or an autoencoder.

    Attributes:
        kind: `detector` or `autoencoder`.
        config: The settings in force, tagged with the method.
        category: Name of the category.
        layout: Layout of the dataset.
        dataset: Fingerprint of the dataset.
        training: SHA-256 of every training image.
        held_out: SHA-256 of the normal images held out for calibration.
        backbone: Name, origin and licence of the weights.
        grid: Rows and columns of the patch grid.
        channels: Kept channels, or null for all.
        facts: Figures of the fit, for people.
        seconds: Wall-clock seconds per stage of the training.
        versions: Package versions.
        created: UTC time, ISO 8601.
        command: The command line.
        flawscope: Version that wrote the run.
        rule: How the maps of a reconstruction become one; null for other methods.
        unet: Settings of the UNet of a guided denoiser; null for other methods.
        learned: What the training images have in common; null in records that are older.
        cross: Scores of the training images by cross-fitting; null where images were held out, or none.
        drawn: How well the detector tells drawn defects from normal images; null where that was not measured.
        places: Where the grid of each feature stage lies in the input, finest first, those of scale 1 before
            those of other scales; null: all are taken as centred.
        defects: The labelled defects that it has learned from; null for methods that learn from normal images alone.
        defect_images: Hash of an image that was seen for them and may lie in a test split -> how it was seen.
        schema: Version of this record.
    """

    kind: str
    config: RecordedConfig
    category: str
    layout: str
    dataset: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    backbone: BackboneSource
    grid: tuple[PositiveInt, PositiveInt]
    channels: tuple[Index, ...] | None
    facts: dict[str, int | float | str]
    seconds: dict[str, float]
    versions: dict[str, str]
    created: str
    command: str
    flawscope: str
    rule: MapRule | None = None
    unet: dict[str, Any] | None = None
    learned: LearnedImages | None = None
    cross: CrossScores | None = None
    drawn: DrawnCheck | None = None
    places: tuple[GridPlaces, ...] | None = None
    defects: LearnedDefects | None = None
    defect_images: dict[str, str] = {}
    schema: int = RUN_SCHEMA


class LearnedDefect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One defect type that a run can draw.

    Attributes:
        category: Name of the category.
        name: Defect type, without the category.
        texts: Prompts it was trained with; `{location}` stands for words such as "in the upper left".
        vectors: Whether the run has a learned embedding for it, in place of the placeholder.
        pictures: Number of support images it was trained on.
    """

    category: str
    name: str
    texts: tuple[str, ...]
    vectors: bool
    pictures: int


class SynthesisRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`run.json` of a base model, learned embeddings, or an inpainting model.

    Attributes:
        kind: `base`, `embedding` or `inpainting`.
        config: The settings in force, tagged with the method.
        category: Name of the category, or "all".
        layout: Layout of the dataset.
        dataset: Fingerprint of the dataset.
        training: SHA-256 of every training image.
        base: Identity of the base model; empty for a base model itself.
        licence: Licence of the weights.
        defects: Defects that can be drawn; none for a base model.
        networks: Settings of the networks that the weights are loaded into.
        facts: Figures of the training, for people.
        seconds: Wall-clock seconds per stage of the training.
        versions: Package versions.
        created: UTC time, ISO 8601.
        command: The command line.
        flawscope: Version that wrote the run.
        schema: Version of this record.
    """

    kind: str
    config: RecordedConfig
    category: str
    layout: str
    dataset: str
    training: tuple[str, ...]
    base: str
    licence: str
    defects: tuple[LearnedDefect, ...]
    networks: dict[str, Any]
    facts: dict[str, int | float | str]
    seconds: dict[str, float]
    versions: dict[str, str]
    created: str
    command: str
    flawscope: str
    schema: int = SYNTHESIS_SCHEMA


_Record = TypeVar("_Record", RunRecord, SynthesisRecord)


def generator_kinds() -> tuple[str, ...]:
    """Return the kinds of runs that draw defects."""
    return methods.names("generator")


def run_kind(path: Path) -> str | None:
    """Return the kind of the run in a folder, or None where there is no readable record."""
    recover(path)
    try:
        record = msgspec.json.decode(read_regular(path / RECORD, RECORD_BYTES))
    # msgspec raises UnicodeDecodeError, not its own DecodeError, for text that is not UTF-8.
    except (OSError, *NOT_JSON):
        return None
    kind = record.get("kind") if isinstance(record, dict) else None
    return kind if isinstance(kind, str) else None


def read_run_record(path: Path) -> tuple[RunRecord, bytes]:
    """Return the record of a detector's or an autoencoder's run, and the bytes of its file.

    Raises:
        RunError: If it is missing, of another kind, broken, or written by a newer version.
    """
    recover(path)
    check_finished(path)
    if not (path / RECORD).is_file():
        got = kind_of_path(path) or "none"
        raise RunError(f"{path}: expected a run with {RECORD}, got {got}. Make one with flawscope train.")
    # Asked first, because a record of the other struct would fail on its unknown fields, with a confusing message.
    if (kind := run_kind(path)) in generator_kinds():
        raise RunError(f"{path}: expected the run of a detector, got one of train {kind}, which draws defects.")
    try:
        data = read_regular(path / RECORD, RECORD_BYTES)
        return _decode(path, data, RunRecord, RUN_SCHEMA), data
    except (OSError, *NOT_JSON) as err:
        raise RunError(f"{path / RECORD}: is no run of this version: {err}. Train again.") from err


def read_synthesis_record(path: Path) -> tuple[SynthesisRecord, bytes]:
    """Return the record of a generator's run, and the bytes of its file.

    Raises:
        RunError: If it is missing, of another kind, broken, or written by a newer version.
    """
    check_finished(path)
    kind = run_kind(path)
    if kind is not None and kind not in generator_kinds():
        raise RunError(f"{path}: expected a run of train {', '.join(generator_kinds())}, got that of a {kind}.")
    try:
        data = read_regular(path / RECORD, RECORD_BYTES)
        return _decode(path, data, SynthesisRecord, SYNTHESIS_SCHEMA), data
    except OSError as err:
        got = kind_of_path(path) or "none"
        raise RunError(f"{path}: expected a run with {RECORD}, got {got}. Make one with flawscope train.") from err
    except NOT_JSON as err:
        raise RunError(f"{path / RECORD}: is no run of this version: {err}. Train again.") from err


def read_autoencoder_record(path: Path) -> tuple[AutoencoderConfig, float]:
    """Return the settings of a run of `train autoencoder`, and the scaling factor of its latents.

    Raises:
        RunError: If it is another kind of run, broken, or written by a newer version.
    """
    try:
        record = _decode(path, read_regular(path / RECORD, RECORD_BYTES), RunRecord, RUN_SCHEMA)
        if record.kind != "autoencoder":
            raise msgspec.ValidationError(f"a run of {tag_of(type(record.config))}")
        scaling = msgspec.convert(record.facts.get("scaling"), float)
    except (OSError, *NOT_JSON) as err:
        raise RunError(
            f"{path / RECORD}: expected a run of train autoencoder, got another: {err}. Name such a run, or a folder "
            "with an AutoencoderKL."
        ) from err
    return cast("AutoencoderConfig", record.config), scaling


def encode_record(record: RunRecord | SynthesisRecord) -> bytes:
    """Return the content of `run.json`, its settings by their flat names."""
    # Records are flat, so that moving a setting from one part to another does not break old runs.
    plain = {**msgspec.to_builtins(record), "config": flatten(record.config)}
    return msgspec.json.format(encode_json(plain), indent=1) + b"\n"


def _decode(path: Path, data: bytes, kind: type[_Record], schema: int) -> _Record:
    plain = msgspec.json.decode(data)
    if not isinstance(plain, dict):
        return msgspec.convert(plain, kind)  # raises, with msgspec's message
    written = plain.get("schema", 1)
    is_number = isinstance(written, int) and not isinstance(written, bool)  # JSON's true equals 1
    if not is_number:
        raise msgspec.ValidationError(f"Expected `int`, got `{type(written).__name__}` - at `$.schema`")
    if written < 1:
        raise msgspec.ValidationError(f"Expected `int` >= 1, got {written} - at `$.schema`")
    # Before the fields: those of a newer schema may be unknown here, and "unknown field" would hide the reason.
    if written > schema:
        raise RunError(
            f"{path / RECORD}: expected run schema {schema} or older, got {written}. "
            "It was written by a newer flawscope: update this one."
        )
    config = plain.get("config")
    if not isinstance(config, dict):
        raise msgspec.ValidationError(f"Expected `object`, got `{type(config).__name__}` - at `$.config`")
    method = config.get("method")
    settings = CONFIGS.get(method) if isinstance(method, str) else None
    # A detector's settings in a generator's record (or the reverse) would decode, and fail much later.
    belongs = settings is not None and (methods.METHODS[str(method)].kind == "generator") == (kind is SynthesisRecord)
    if settings is None or not belongs:
        raise msgspec.ValidationError(f"Invalid value {method!r} - at `$.config.method`")
    if written <= 1:
        config = _without_idle(str(method), config)
        # From here on it is a record of this schema; encoding it again writes what was understood.
        plain["schema"] = schema
    # A record without them is older than the rules of today.
    config = {**{name: value for name, value in _OLDER.items() if name in places_of(settings)}, **config}
    try:
        decoded = msgspec.convert(_nest(settings, config), settings)
    except msgspec.ValidationError as err:
        # The settings were converted on their own, so the place in the message begins below `config`.
        in_record = str(err).replace("at `$.", "at `$.config.") if "`$.config" not in str(err) else str(err)
        raise msgspec.ValidationError(without_parts(settings, in_record)) from err
    row = methods.METHODS[str(method)]
    expected = row.kind if kind is RunRecord else row.name
    # The record says twice what it is: readers without torch ask `kind`, trainers ask the settings.
    if plain.get("kind") != expected:
        raise msgspec.ValidationError(f"Expected `{expected}`, got {plain.get('kind')!r} - at `$.kind`")
    # `config` is the one field that is not a struct to msgspec; the hook returns the settings decoded above.
    return msgspec.convert({**plain, "config": None}, kind, dec_hook=lambda field_type, value: decoded)


def _without_idle(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a schema 1 record without those that its method did not use, with the same meaning."""
    idle = _IDLE_IN_SCHEMA_1.get(method, frozenset())
    settings = {name: value for name, value in config.items() if name not in idle}
    if "crop" in idle and config.get("crop") is not None:
        # Defect images were never cropped, but the crop's size was the size they were trained at.
        settings["resize"] = config["crop"]
    return settings


def _nest(kind: type[MethodConfig], config: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in config.items() if name != "method"}
    if unknown := [name for name in flat if name not in places_of(kind)]:
        raise msgspec.ValidationError(f"Object contains unknown field `{unknown[0]}` - at `$.config`")
    return {**nest(kind, flat), "method": config["method"]}
