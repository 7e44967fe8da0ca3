"""Settings of all trained methods, with their defaults; no other module holds defaults of a training.

Precedence: `--set` and options, then the YAML file or preset, then the defaults of the structs. The run and the bundle
record the values in force.

A method's settings are parts (input, features, loop, ...) and a few of its own; people write flat names. A name that a
method does not use is refused, because none of its structs has it.
"""

from flawscope.config.assembly import CONFIGS, build_config, parse_assignment, rename_settings
from flawscope.config.bank_settings import BankSettings
from flawscope.config.detector_settings import (
    Factors,
    FittedConfig,
    PadimConfig,
    PatchcoreConfig,
    StfpmConfig,
    standardization,
)
from flawscope.config.diffusion_settings import (
    AugmentationSettings,
    AutoencoderConfig,
    DdadConfig,
    DsadConfig,
    ReconstructionSettings,
)
from flawscope.config.draem_settings import DestsegConfig, DraemConfig
from flawscope.config.feature_settings import FeatureSettings, MapSettings, PatchSettings
from flawscope.config.generator_settings import (
    AdaptationSettings,
    AdaptedConfig,
    BaseConfig,
    EmbeddingConfig,
    InpaintingConfig,
)
from flawscope.config.input_settings import (
    EACH_ITS_OWN,
    CrossFitSettings,
    HeldOutSettings,
    InputSettings,
    LineInputSettings,
    ResizeSettings,
    TiledInputSettings,
)
from flawscope.config.lafite_settings import LafiteConfig
from flawscope.config.loop_settings import DenoisingSettings, LoopSettings, Schedule, TrainingDataSettings
from flawscope.config.method_settings import MethodConfig, TrainedConfig
from flawscope.config.setting_help import SettingLine, describe_settings
from flawscope.config.setting_parts import change_settings, find_part, flatten, from_flat
from flawscope.config.supervised_settings import LabelledConfig, LabelledSettings, SegmenterConfig

__all__ = [
    "CONFIGS",
    "EACH_ITS_OWN",
    "AdaptationSettings",
    "AdaptedConfig",
    "AugmentationSettings",
    "AutoencoderConfig",
    "BankSettings",
    "BaseConfig",
    "CrossFitSettings",
    "DdadConfig",
    "DenoisingSettings",
    "DestsegConfig",
    "DraemConfig",
    "DsadConfig",
    "EmbeddingConfig",
    "Factors",
    "FeatureSettings",
    "FittedConfig",
    "HeldOutSettings",
    "InpaintingConfig",
    "InputSettings",
    "LabelledConfig",
    "LabelledSettings",
    "LafiteConfig",
    "LineInputSettings",
    "LoopSettings",
    "MapSettings",
    "MethodConfig",
    "PadimConfig",
    "PatchSettings",
    "PatchcoreConfig",
    "ReconstructionSettings",
    "ResizeSettings",
    "Schedule",
    "SegmenterConfig",
    "SettingLine",
    "StfpmConfig",
    "TiledInputSettings",
    "TrainedConfig",
    "TrainingDataSettings",
    "build_config",
    "change_settings",
    "describe_settings",
    "find_part",
    "flatten",
    "from_flat",
    "parse_assignment",
    "rename_settings",
    "standardization",
]
