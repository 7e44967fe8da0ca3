"""Names that the training scripts of reference systems give to settings, and what they are here.

Who brings a command line or a settings file of MvP-Diff, AnoGen or Diffusion-Based-AD finds every option under its own
name: taken, with a line that says what it is called here; left out, with the reason; or refused, with what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flawscope.errors import ArgumentError

Words = Mapping[Any, Mapping[str, Any]]
"""Value of an option there -> settings here; no settings where it is what happens anyway."""


@dataclass(frozen=True)
class System:
    """The options of one reference system.

    Attributes:
        name: The system.
        methods: Methods here that are trained as it trains.
        names: Its option -> the setting here, of the same values.
        words: Its option -> what each of its values is here; other values are refused.
        parts: Its option -> a setting here that is a list, and which of its numbers the option is.
        elsewhere: Its option -> where that is said here; the option itself changes no setting.
    """

    name: str
    methods: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Words] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> frozenset[str]:
        """All options of the table."""
        return frozenset((*self.names, *self.words, *self.parts, *self.elsewhere))


_PREVIEWS = "previews are drawn on images of the support set"
_OUT = "the folder is named with --out"
_HUB = "nothing is downloaded: name folders with base and --data"
_RUN_FOLDER = "runs are named with --out"

SYSTEMS = (
    System(
        "MvP-Diff",
        ("inpainting",),
        names={
            "pretrained_model_name_or_path": "base",
            "train_batch_size": "batch_size",
            "gradient_accumulation_steps": "accumulate",
            "num_train_epochs": "epochs",
            "max_train_steps": "max_steps",
            "lr_warmup_steps": "warmup_steps",
            "validation_epochs": "preview_every",
            "checkpoints_total_limit": "checkpoints_kept",
            "resolution": "resize",
            "allow_tf32": "tf32",
            "adam_weight_decay": "weight_decay",
            "adam_epsilon": "epsilon",
            "max_grad_norm": "clip_norm",
        },
        words={
            "lr_scheduler": {
                **{
                    name: {"schedule": name}
                    for name in ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")
                },
                "constant_with_warmup": {"schedule": "constant"},
            },
            "use_8bit_adam": {True: {"optimizer": "adamw8bit"}, False: {}},
            "random_hflip": {True: {"flip": 0.5}, False: {"flip": 0.0}},
            "random_vflip": {True: {"flip_vertical": 0.5}, False: {"flip_vertical": 0.0}},
            "prediction_type": {"epsilon": {}},
        },
        parts={"adam_beta1": ("betas", 0), "adam_beta2": ("betas", 1)},
        elsewhere={
            "checkpointing_steps": "checkpoints are counted in epochs, with checkpoint_every",
            "validation_file": f"its lines are for previews, and here {_PREVIEWS}",
            "output_dir": _OUT,
            "logging_dir": "tensorboard=true writes events beside the run",
            "report_to": "tensorboard=true writes events beside the run",
            "revision": _HUB,
            "dataset_name": _HUB,
            "dataset_config_name": _HUB,
            "cache_dir": _HUB,
            "image_column": "support sets and descriptions have fixed names",
            "caption_column": "support sets and descriptions have fixed names",
            "max_train_samples": "synth support --shots says how many images there are",
            "dataloader_num_workers": "the few images of a support set stay in memory",
            "enable_xformers_memory_efficient_attention": "torch's own memory-efficient attention is used",
            "local_rank": "a training runs in one process",
            "mask_mode": "it is not used there either",
        },
    ),
    System(
        "AnoGen",
        ("embedding",),
        names={
            "actual_resume": "base",
            "data_root": "support",
            "placeholder_string": "placeholder",
            "num_vectors_per_token": "vectors",
        },
        elsewhere={
            "gpus": "device=cuda takes the GPU",
            "logdir": _OUT,
            "postfix": _RUN_FOLDER,
            "project": _RUN_FOLDER,
            "name": _RUN_FOLDER,
            "datadir_in_name": _RUN_FOLDER,
            "debug": "there is no such mode",
            "no-test": "there is no test after the training",
        },
    ),
    System(
        "Diffusion-Based-AD",
        ("ddad",),
        names={
            "recon_weight": "weight",
            "reconstruction_weight": "weight",
            "epochs_diffusion": "epochs",
            "save_n_epochs": "checkpoint_every",
            "noise_kind": "noise",
            "steps_to_regenerate": "steps",
            "num_inference_steps": "steps",
            "start_at_timestep": "start",
            "epochs_extractor": "extractor_epochs",
            "fsk": "smoothing",
            "feature_smoothing_kernel": "smoothing",
            "pxl_threshold": "pixel_threshold",
            "pl_threshold": "pixel_threshold",
            "fl_threshold": "feature_threshold",
            "pl_contrib": "pixel_weight",
            "fl_contrib": "feature_weight",
            "resolution": "resize",
        },
        words={
            "beta_schedule": {"linear": {}},
            "train_steps": {1000: {}},
            "extractor_use_diff": {True: {"extractor": "diffusion"}, False: {"extractor": "autoencoder"}},
            "use_diffusion_model": {True: {"extractor": "diffusion"}, False: {"extractor": "autoencoder"}},
            "patching": {False: {}},
            "patch_imgs": {False: {}},
        },
        elsewhere={
            "calc_val_loss": "it is always measured",
            "shuffle": "training images are always shuffled, by the seed",
            "item_states": "all defect types of the test split are evaluated",
            "mvtec_item_states": "all defect types of the test split are evaluated",
            "run_id": _RUN_FOLDER,
            "run_name": _RUN_FOLDER,
            "diffusion_checkpoint_dir": _OUT,
            "diffusion_checkpoint_name": _OUT,
            "checkpoint_dir": _OUT,
            "checkpoint_name": _OUT,
            "extractor_path": "the run has the extractor",
            "save_to": "the run has the extractor",
            "log_dir": "tensorboard=true writes events beside the run",
            "img_dir": "flawscope score --reconstructions DIR writes them",
            "plt_imgs": "flawscope score --reconstructions DIR writes them",
            "skip_train": "pipeline --skip train",
            "skip_extractor": "pipeline --skip extractor",
            "skip_threshold": "pipeline --skip threshold",
            "skip_evaluation": "pipeline --skip evaluation",
        },
    ),
)
"""One row per reference system whose training options have other names. QualityInspector's are read by `assembly`."""

_INSTEAD = {
    "prediction_type": "Networks are trained to predict the noise.",
    "beta_schedule": "The noise levels of ddad are linear.",
    "train_steps": "There are 1,000 noise levels.",
    "patching": "Set tile to the side of the patches in pixels.",
    "patch_imgs": "Set tile to the side of the patches in pixels.",
}
"""Option whose other values cannot be had -> why, or what to do."""

DATA_NAMES = ("data_path", "dataset_path", "train_data_dir", "dataset_dir", "dataset")
"""Names of a settings file for the folder of the dataset, `--data`."""
CATEGORY_NAMES = ("category", "class_name", "classname", "item", "mvtec_item")
"""Names of a settings file for the category."""
RESUME_NAME = "resume_from_checkpoint"
"""Name of a settings file for `--resume`."""


class Renamed(NamedTuple):
    """Settings under the names that they have here.

    Attributes:
        settings: The settings.
        notes: A sentence for each name of another system.
        left_out: Names that change no setting.
    """

    settings: dict[str, Any]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def rename(method: str, layer: Mapping[str, Any], pairs: Mapping[str, tuple[Any, ...]]) -> Renamed:
    """Return a layer of settings of a method with names of reference systems as they are called here.

    Args:
        method: Name of the method.
        layer: Names of any system -> values. It is not changed.
        pairs: Defaults of settings that are lists, of which an option may be one number.

    Raises:
        ArgumentError: If a value has no equivalent, or two names of one setting are given.
    """
    settings: dict[str, Any] = dict(layer)
    notes: list[str] = []
    left_out: list[str] = []
    for system in (row for row in SYSTEMS if method in row.methods):
        # diffusers does not warm up with `constant`; there the 500 steps of its default have no effect.
        if system.name == "MvP-Diff" and layer.get("lr_scheduler") == "constant" and "lr_warmup_steps" in layer:
            notes.append("lr_warmup_steps is not used: its schedule constant has no warm-up, constant_with_warmup has")
            left_out.append("lr_warmup_steps")
            del settings["lr_warmup_steps"]
        for name in [name for name in layer if name in system.options and name in settings]:
            value = settings.pop(name)
            if name in system.elsewhere or value is None:
                if name in system.elsewhere:
                    notes.append(f"{name} is not used: {system.elsewhere[name]}")
                left_out.append(name)
                continue
            for key, own in _own(system, name, value, settings, pairs).items():
                if key in settings and name not in system.parts:
                    raise ArgumentError(f"{name}: expected it or {key}, its name here, got both. Leave one out.")
                settings[key] = own
                notes.append(f"{name} of {system.name} is {key} here")
    return Renamed(settings, tuple(dict.fromkeys(notes)), tuple(left_out))


def _own(
    system: System, name: str, value: Any, settings: Mapping[str, Any], pairs: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """Return the settings here that an option is."""
    if name in system.names:
        return {system.names[name]: value}
    if name in system.parts:
        key, index = system.parts[name]
        numbers = list(settings.get(key, pairs[key]))
        numbers[index] = value
        return {key: numbers}
    words = system.words[name]
    # By text: YAML and `--set` may read a word as a boolean or number, and a list cannot be looked up.
    for word, own in words.items():
        if str(word).lower() == str(value).lower():
            return dict(own)
    expected = " or ".join(str(word) for word in words)
    reason = f" {_INSTEAD[name]}" if name in _INSTEAD else ""
    raise ArgumentError(f"{name}: expected {expected}, got {value!r}.{reason}")


def known_elsewhere(name: str) -> str:
    """Return a sentence on a name that reference systems have for another method; empty if none has."""
    for system in SYSTEMS:
        if name in system.options:
            own = system.names.get(name, "")
            is_own = f", {own} here" if own else ""
            return f"It is an option of {system.name}{is_own}, for {', '.join(system.methods)}."
    return ""
