"""What the operators of a graph cost: multiply-adds of one image."""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx


def multiply_adds(model: onnx.ModelProto, operators: Collection[str]) -> dict[str, int]:
    """Return operator -> multiply-adds of one image, in the order of the graph.

    Args:
        model: Its image has a fixed height and width; dimensions that are not known count as 1, as that of the batch.
        operators: Names of operators of types `Conv`, `Gemm` and `MatMul` whose second input is an initializer.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        entry.name: [max(1, dimension.dim_value) for dimension in entry.type.tensor_type.shape.dim]
        for entry in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    costs = {}
    for node in model.graph.node:
        if node.name in operators:
            shape = weights[node.input[1]]
            if node.op_type == "Conv":
                places, per_place = shapes.get(node.output[0], [])[2:], math.prod(shape)
            else:
                # Without the channels of the output: all weights take part at each of the other places.
                places, per_place = shapes.get(node.output[0], [])[:-1], math.prod(shape[-2:])
            costs[node.name] = math.prod(places) * per_place
    return costs
