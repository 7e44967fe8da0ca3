"""Video files for tests, written with PyAV from images that the test gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_video(
    path: Path,
    images: Sequence[Any],
    codec: str,
    form: str,
    *,
    rate: int = 20,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    frames: dict[str, Any] | None = None,
) -> Path:
    """Write a video; returns its path.

    Args:
        path: The file; its ending says which container.
        images: uint8 [H, W, 3] RGB.
        codec: Name of the encoder.
        form: Pixel format of its images.
        rate: Images a second.
        options: Options of the encoder.
        container: Options of the container.
        frames: Attributes of the stream's codec context, such as `color_range`, and options of the conversion from RGB,
            such as `dst_colorspace`.
    """
    import av

    convert = {key: value for key, value in (frames or {}).items() if key.startswith("dst_")}
    height, width = images[0].shape[:2]
    with av.open(str(path), "w", options=container or {}) as out:
        stream: Any = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, form
        for key, value in (frames or {}).items():
            if key not in convert:
                setattr(stream.codec_context, key, value)
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            out.mux(stream.encode(frame.reformat(format=form, **convert)))
        out.mux(stream.encode())
    return path


def noise(count: int, *, size: tuple[int, int] = (64, 48), seed: int = 0) -> list[Any]:
    """Return images of noise, uint8 [H, W, 3]; `size` is width and height."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8))


def plain(colour: tuple[int, int, int], *, size: tuple[int, int] = (64, 48)) -> Any:
    """Return an image of one colour, uint8 [H, W, 3]."""
    return np.full((size[1], size[0], 3), colour, np.uint8)
