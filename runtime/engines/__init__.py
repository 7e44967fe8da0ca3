"""Engines: a bundle's graphs compiled by TensorRT for one kind of GPU, and the cache they lie in."""

from flawscope.runtime.engines.build import BuildOptions, Built, build_engine
from flawscope.runtime.engines.cache import EngineCache, find_engine
from flawscope.runtime.engines.stored_engine import Entry, Key, Stored
from flawscope.runtime.engines.target import Target, current_target, named_target
from flawscope.runtime.engines.tensorrt_modules import RUNTIMES, TensorRT, import_tensorrt
from flawscope.runtime.engines.wanted_options import graph_batches, tf32_allowed, wanted_options

__all__ = [
    "RUNTIMES",
    "BuildOptions",
    "Built",
    "EngineCache",
    "Entry",
    "Key",
    "Stored",
    "Target",
    "TensorRT",
    "build_engine",
    "current_target",
    "find_engine",
    "graph_batches",
    "import_tensorrt",
    "named_target",
    "tf32_allowed",
    "wanted_options",
]
