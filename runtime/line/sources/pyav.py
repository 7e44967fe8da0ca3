"""PyAV, which reads video: found or named, its messages heard and never printed, its images as a line needs them."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import numpy as np

from flawscope.arrays import UInt8Array
from flawscope.errors import MissingExtra
from flawscope.runtime.line.sources.grabber import SourceLost


def load_av(feature: str) -> ModuleType:
    """Return PyAV. FFmpeg's messages can be captured and go nowhere else: they hold addresses with passwords.

    Args:
        feature: What needs it.

    Raises:
        SourceLost: If it is not installed; with the text of MissingExtra.
    """
    try:
        import av
        import av.error
        import av.logging
    except ImportError as err:
        raise SourceLost(str(MissingExtra(feature, "av", "line"))) from err
    logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
    # That an image is missing on which the next is drawn is said at this level alone.
    av.logging.set_level(av.logging.DEBUG)
    # By default a message that comes twice is heard once: the second image would count as whole.
    av.logging.set_skip_repeated(False)
    return av


def reason_of(err: Exception) -> str:
    """Return why PyAV failed, without the address, which its messages end with."""
    return str(getattr(err, "strerror", None) or "") or type(err).__name__


def image_of(frame: Any) -> UInt8Array:
    """Return a decoded image as uint8 [H, W, 3] RGB; a grey one as [H, W]."""
    form = "gray" if frame.format.name == "gray" else "rgb24"
    return np.ascontiguousarray(frame.to_ndarray(format=form), np.uint8)
