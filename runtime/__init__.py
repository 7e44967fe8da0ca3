"""The lean runtime: load a bundle, inspect images, without PyTorch."""

from flawscope.runtime.inspector import Inspector
from flawscope.runtime.results import Box, Result

__all__ = ["Box", "Inspector", "Result"]
