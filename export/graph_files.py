"""Writes a graph into a bundle after the operator and size checks; large weights go to a file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx

from flawscope.bundle import Graph, external_data
from flawscope.errors import RunError
from flawscope.export.size_check import check_tensor_sizes

INLINE_LIMIT = 1 << 30
"""Bytes of weights above which they do not lie in the graph's own file."""


def write_graph(
    max_batch: int, name: str, model: onnx.ModelProto, folder: Path, inline_limit: int = INLINE_LIMIT
) -> Graph:
    """Write `NAME.onnx`, and `NAME.onnx.data` where there are many weights; return what the manifest says of it.

    Args:
        max_batch: Largest batch the graph takes.
        name: Of the graph.
        model: The graph; its weights are gone afterwards where they lie beside it.
        folder: Where it is written.
        inline_limit: Bytes of weights above which they lie beside it.

    Raises:
        RunError: If it has operators outside standard ONNX, or a tensor is too large or of unknown size.
    """
    path = folder / f"{name}.onnx"
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > inline_limit:
        # One protobuf message ends at 2 GB: weights lie in a file beside it, by which the rest stays small.
        onnx.save(model, path, save_as_external_data=True, location=external_data(path.name), size_threshold=1024)
        model = onnx.load(path, load_external_data=False)
    else:
        onnx.save(model, path)
    graph = describe_graph(max_batch, name, model)
    onnx.checker.check_model(str(path), full_check=True)
    return graph


def describe_graph(max_batch: int, name: str, model: onnx.ModelProto) -> Graph:
    """Return what the manifest says of a graph whose operators are standard and whose tensors fit.

    Args:
        max_batch: Largest batch the graph takes.
        name: Of the graph.
        model: The graph; large weights may be missing.

    Raises:
        RunError: If it has operators outside standard ONNX, or a tensor is too large or of unknown size.
    """
    _check_standard(model, name)
    proof = check_tensor_sizes(model, max_batch)
    return Graph(
        file=f"{name}.onnx",
        outputs=tuple(output.name for output in model.graph.output),
        largest_tensor=proof.largest_tensor,
        largest_elements=proof.largest_elements,
        peak_bytes=proof.peak_bytes,
    )


def _check_standard(model: onnx.ModelProto, name: str) -> None:
    foreign = sorted({node.domain for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise RunError(
            f"export: {name}.onnx would need operators outside standard ONNX ({', '.join(foreign) or 'functions'}). "
            "Choose another backbone."
        )
