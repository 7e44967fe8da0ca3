"""The settings of everything that is trained and their defaults: here and nowhere else.

Precedence: `--set` and options, then the YAML file or preset, then the defaults of the classes. The run and the bundle
record the values that were used.
"""

from flawscope.config.banks import PadimConfig, PatchcoreConfig
from flawscope.config.building import CONFIGS, build_config, parse_assignment
from flawscope.config.detector import DetectorConfig
from flawscope.config.diffusion import AutoencoderConfig, DdadConfig, DiffusionConfig, DsadConfig
from flawscope.config.synthesis import AdaptedConfig, BaseConfig, EmbeddingConfig, InpaintingConfig
from flawscope.config.trained import StfpmConfig, TrainedConfig

__all__ = [
    "CONFIGS",
    "AdaptedConfig",
    "AutoencoderConfig",
    "BaseConfig",
    "DdadConfig",
    "DetectorConfig",
    "DiffusionConfig",
    "DsadConfig",
    "EmbeddingConfig",
    "InpaintingConfig",
    "PadimConfig",
    "PatchcoreConfig",
    "StfpmConfig",
    "TrainedConfig",
    "build_config",
    "parse_assignment",
]
