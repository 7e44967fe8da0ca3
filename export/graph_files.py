"""Writes a graph of a bundle after the operator and size checks; large weights go to a file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx

from flawscope.bundle import Graph, external_data
from flawscope.errors import RunError
from flawscope.export.size_check import check_tensor_sizes

INLINE_LIMIT = 1 << 30
"""Bytes of weights above which they go to a file of their own: one protobuf message may hold 2 GB at most."""


def write_graph(
    max_batch: int, name: str, model: onnx.ModelProto, folder: Path, inline_limit: int = INLINE_LIMIT
) -> Graph:
    """Write `NAME.onnx`, with large weights in `NAME.onnx.data`; return its entry for the manifest.

    Args:
        max_batch: Largest batch the graph takes.
        name: Name of the graph.
        model: The graph. Its weights are removed where they are written beside it.
        folder: Folder to write to.
        inline_limit: Bytes of weights above which they are written beside the graph.

    Raises:
        RunError: If it has operators outside standard ONNX, or a tensor is too large or of unknown size.
    """
    path = folder / f"{name}.onnx"
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > inline_limit:
        # save() strips the weights from `model`; read back without them it is small for the checks below.
        onnx.save(model, path, save_as_external_data=True, location=external_data(path.name), size_threshold=1024)
        model = onnx.load(path, load_external_data=False)
    else:
        onnx.save(model, path)
    graph = describe_graph(max_batch, name, model)
    # By path: a model given as an object is serialized for the check, which external data and 2 GB do not allow.
    onnx.checker.check_model(str(path), full_check=True)
    return graph


def describe_graph(max_batch: int, name: str, model: onnx.ModelProto) -> Graph:
    """Return the manifest's entry of a graph, after the operator and size checks.

    Args:
        max_batch: Largest batch the graph takes.
        name: Name of the graph.
        model: The graph; large weights may be missing.

    Raises:
        RunError: If it has operators outside standard ONNX, or a tensor is too large or of unknown size.
    """
    _check_standard(model, name)
    sizes = check_tensor_sizes(model, max_batch)
    return Graph(
        file=f"{name}.onnx",
        outputs=tuple(output.name for output in model.graph.output),
        largest_tensor=sizes.largest_tensor,
        largest_elements=sizes.largest_elements,
        peak_bytes=sizes.peak_bytes,
    )


def _check_standard(model: onnx.ModelProto, name: str) -> None:
    # Operators of another domain need a library that the device does not have.
    foreign = sorted({node.domain for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise RunError(
            f"export: {name}.onnx would need operators outside standard ONNX ({', '.join(foreign) or 'functions'}). "
            "Choose another backbone."
        )
