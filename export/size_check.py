"""Size check: elements and memory of every tensor of a graph at its largest batch, known at export.

TensorRT refuses tensors of 2³¹ elements or more, and runtimes run out of memory only on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from flawscope.errors import RunError

LIMIT = 2**31


@dataclass(frozen=True)
class SizeCheck:
    """Sizes of a graph at its largest batch.

    Attributes:
        largest_tensor: Name of the largest tensor.
        largest_elements: Its number of elements.
        peak_bytes: Constants, a packed copy of the matrices among them, and the most activations alive at once.
    """

    largest_tensor: str
    largest_elements: int
    peak_bytes: int


def check_tensor_sizes(model: onnx.ModelProto, max_batch: int) -> SizeCheck:
    """Infer every shape at `max_batch` and check each against 2³¹ elements.

    Raises:
        RunError: If a tensor is too large, or its shape cannot be inferred.
    """
    # With a symbolic batch shape inference gives no numbers, so the batch is fixed in a copy.
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = max_batch
    del fixed.graph.value_info[:]  # shapes with the dynamic batch, which inference would keep
    try:
        # strict_mode: without it a failed inference only leaves tensors without shape. data_prop: shapes computed in
        # the graph, as of Reshape, are constants then.
        inferred = onnx.shape_inference.infer_shapes(fixed, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as err:
        raise RunError(
            f"export: the sizes at batch {max_batch} could not be proven: {str(err).strip().splitlines()[0]}. "
            "Choose another backbone or other stages."
        ) from err
    sizes: dict[str, tuple[int, int]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            sizes[value.name] = (math.prod(shape), _item_bytes(tensor.elem_type))
    constants = {
        proto.name: (math.prod(proto.dims), _item_bytes(proto.data_type)) for proto in inferred.graph.initializer
    }
    for node in inferred.graph.node:
        has_graph = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        # Tensors inside a branch or a loop are not measured here, so such nodes are refused whole.
        for name in node.output:
            if name and (name not in sizes or has_graph):
                raise RunError(
                    f"export: the size of {name} ({node.op_type}) at batch {max_batch} could not be proven. "
                    "Choose another backbone or other stages."
                )
    everything = {**constants, **sizes}
    largest = max(everything, key=lambda name: everything[name][0])
    if everything[largest][0] >= LIMIT:
        raise RunError(
            f"export: {largest} would have {everything[largest][0]:,} elements at batch {max_batch}, "
            f"expected fewer than 2³¹ ({LIMIT:,}). Lower --max-batch, the bank or the image size."
        )
    weights = sum(count * width for count, width in constants.values())
    # ONNX Runtime keeps the second operand of products and convolutions a second time, repacked for its kernels.
    packed = sum(
        math.prod(constants[name])
        for node in inferred.graph.node
        if node.op_type in ("Gemm", "MatMul", "Conv")
        for name in node.input[1:2]
        if name in constants
    )
    return SizeCheck(largest, everything[largest][0], weights + packed + _most_alive(inferred, sizes))


def _most_alive(model: onnx.ModelProto, sizes: dict[str, tuple[int, int]]) -> int:
    """Return the largest sum of bytes of activations that are needed at the same time, in node order.

    An estimate: a runtime may fuse operators, or free tensors later than after their last use.
    """
    last_use = {name: step for step, node in enumerate(model.graph.node) for name in node.input}
    outputs = {value.name for value in model.graph.output}
    alive = {value.name: math.prod(sizes[value.name]) for value in model.graph.input}
    most = sum(alive.values())
    for step, node in enumerate(model.graph.node):
        alive |= {name: math.prod(sizes[name]) for name in node.output if name in sizes}
        most = max(most, sum(alive.values()))
        unused = [name for name in alive if last_use.get(name, step) <= step and name not in outputs]
        for name in unused:
            del alive[name]
    return most


def _item_bytes(kind: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
