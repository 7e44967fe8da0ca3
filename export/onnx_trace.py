"""Exports a torch module as an ONNX graph with a dynamic batch."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from flawscope.errors import RunError
from flawscope.export.constant_folding import fold_constants

OPSET = 18
"""Opset of every graph: the one that torch's exporter writes without a conversion."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key of torch's exporter: the modules a node comes from, outermost first, as the text of a Python list."""


def export_module(
    module: nn.Module, size: tuple[int, int], max_batch: int, outputs: Sequence[str] = ("patches",)
) -> onnx.ModelProto:
    """Return the graph `image` uint8 [N, H, W, 3] → the outputs of a module, float32 [N, …].

    Args:
        module: The module, on the CPU.
        size: Height and width of the input in pixels.
        max_batch: Largest batch the graph has to take.
        outputs: Names of its outputs.

    Raises:
        RunError: If torch cannot export the backbone.
    """
    return export_network(module, {"image": torch.zeros((1, *size, 3), dtype=torch.uint8)}, max_batch, outputs)


def export_network(
    module: nn.Module, examples: Mapping[str, Tensor], max_batch: int, outputs: Sequence[str], name: str = "features"
) -> onnx.ModelProto:
    """Return the graph of a module with named inputs, all with the batch as their first dimension.

    Args:
        module: The module, on the CPU.
        examples: Input name → example for one image, [1, …], in the order of the module's arguments.
        max_batch: Largest batch the graph has to take.
        outputs: Names of its outputs.
        name: Module name of nodes that belong to no submodule.

    Raises:
        RunError: If torch cannot export the module.
    """
    count = min(2, max_batch)
    # As positional arguments: the exporter pairs them with `input_names` by order.
    arguments = tuple(torch.cat([example] * count) for example in examples.values())
    # torch.export takes a dimension of 1 for a constant, so the example has two images; a graph for single images has
    # a fixed batch on purpose.
    batch = torch.export.Dim("N", min=1, max=max_batch) if max_batch > 1 else None
    shapes = None if batch is None else tuple({0: batch} for _ in arguments)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        # The exporter prints its steps and warns about its own dependencies, which users can do nothing about.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as err:
        # The exporter wraps errors of any type from the model in its own, so the message is that of the cause.
        cause = err.__cause__ or err
        raise RunError(
            f"export: torch could not turn the backbone into an ONNX graph: {type(cause).__name__}: "
            f"{str(cause).splitlines()[0] if str(cause) else 'no message'}. Choose another backbone or other stages."
        ) from err
    if program is None:
        raise RunError("export: expected an ONNX graph from torch, got none. Choose another backbone.")
    model: onnx.ModelProto = program.model_proto
    # Before the metadata goes: the names come from it.
    _name_after_modules(model, name)
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.node):
        del value.metadata_props[:]  # stack traces and paths of the exporting machine: a bundle must not tell them
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.producer_name = "flawscope"
    fold_constants(model)
    return model


def _name_after_modules(model: onnx.ModelProto, name: str) -> None:
    """Name every node `MODULE/Operator_N`, so that an error on a node names the layer of the network."""
    for index, node in enumerate(model.graph.node):
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        names = [str(name) for name in ast.literal_eval(scopes)]
        # The last name is the traced operation, the one before it the innermost module; the outermost has no name.
        module = names[-2] if len(names) > 1 and names[-2] else name
        node.name = f"{module}/{node.op_type}_{index}"
