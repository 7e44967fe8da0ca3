"""The head of any bundle with a bank: by the kernels, as ONNX nodes, and by plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from flawscope import methods
from flawscope.bundle import Head, head_tag


def build_head(head: Head, tensors: Mapping[str, npt.NDArray[Any]], size: tuple[int, int]) -> Any:
    """Return the function from patches float32 [N, P, D] to maps and scores that `Inspector` uses."""
    return methods.scorer_of(head_tag(head)).head(head, tensors, size)


def append_head(features: Any, head: Head, bank: Any, size: tuple[int, int], max_batch: int) -> Any:
    """Return features and head as one graph."""
    from flawscope.export.exporter import exporter_named

    exporter: Any = exporter_named(head_tag(head))  # one with a bank, whatever the protocol says
    return exporter.score_graph(features, head, bank, size, max_batch)


def torch_scores(features: Any, head: Any, tensors: Any, size: tuple[int, int], images: Any) -> Any:
    """Return maps and scores by plain torch."""
    from flawscope.export.detectors import bank_exporter
    from flawscope.training.detectors import torch_scores as formulas

    exporter = {"patchcore": bank_exporter.PATCHCORE, "padim": bank_exporter.PADIM}[head_tag(head)]
    return formulas.torch_scores(features, head, tensors, size, images, exporter.distances)
