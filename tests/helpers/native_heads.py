"""The native head of any bundle with a bank: patches in, maps and scores out, by the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from flawscope import methods
from flawscope.bundle import Head, head_tag


def build_head(head: Head, tensors: Mapping[str, npt.NDArray[Any]], size: tuple[int, int]) -> Any:
    """Return the function from patches float32 [N, P, D] to maps and scores that `Inspector` uses."""
    return methods.scorer_of(head_tag(head)).head(head, tensors, size)
