"""Numbers with their ranges, as annotations of struct fields: msgspec refuses others when a record is read.

A record with a type but no range can make a reader work for hours or allocate without bound.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

MAX_SIDE = 8192
"""Largest height and width of a graph's input, a tile, a patch grid or latents, in pixels or rows."""

MOST_PLACES = 1 << 18
"""Most places of a patch grid with a window: tables of them are made when a bundle is opened."""

MOST_BANKS = 64
"""Most memory banks of a bundle."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
"""A number of things or bytes; as a float it is still exact."""

PositiveCount = Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]

BatchSize = Annotated[int, msgspec.Meta(ge=1, le=4096)]

Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]

Elements = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
"""Number of elements of a tensor: ONNX Runtime and TensorRT index with 32 bits in places."""

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]

Sigma = Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)]
"""Standard deviation of a Gaussian in pixels; 0 for none."""

NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""A hash in hexadecimal."""

MOST_TOP = 3840
"""Most patches whose mean distance can be a score: TensorRT finds no more largest values at once."""

Top = Annotated[int, msgspec.Meta(ge=1, le=MOST_TOP)]
