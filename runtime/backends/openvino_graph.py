"""From an ONNX graph to a model that OpenVINO has compiled, on the device and in the precision that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flawscope.bundle import OnnxModel
from flawscope.bundle.onnx_inputs import external_as_inputs
from flawscope.errors import BackendError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.openvino_devices import (
    check_executed,
    cpu_precision_problem,
    import_openvino,
    openvino_core,
    reason_of,
)
from flawscope.runtime.backends.table import backend_row

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""Precision -> that of the arithmetic, as OpenVINO calls it. It is always set: by itself OpenVINO computes a graph of
FP32 in BF16 where the processor can. Layers between QuantizeLinear and DequantizeLinear are INT8 beside it."""

ONE, MANY = "LATENCY", "THROUGHPUT"
"""What a model is compiled for: one image on all cores, or several at once in streams, each on a part of the cores."""


@dataclass(frozen=True)
class Place:
    """Where and how graphs run.

    Attributes:
        backend: Name of the backend; messages name it.
        device: OpenVINO's name of the device, such as `CPU`.
        precision: Precision of the graph, one of `HINTS`.
        cores: Threads and streams.
    """

    backend: str
    device: str
    precision: str
    cores: Cores = OWN_CHOICE


def compile_graph(model: OnnxModel, place: Place, purpose: str, *, profiled: bool = False) -> Any:
    """Return OpenVINO's compiled model of a graph, for one image or the fixed batch that it was exported with.

    Args:
        model: The graph.
        place: Where it runs, in which precision.
        purpose: `ONE` or `MANY`.
        profiled: Whether runs measure the time of every node, which slows them down.

    Raises:
        BackendError: If OpenVINO cannot take the graph, would run it elsewhere or in another precision, or computes
            that precision wrong on this processor.
        MissingExtra: If OpenVINO is not installed.
    """
    backend = place.backend
    if place.precision not in HINTS:
        raise BackendError(
            f"backend {backend}: expected a precision among {', '.join(HINTS)}, got {place.precision}. "
            "Use --backend cpu."
        )
    hint = HINTS[place.precision]
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": purpose,
        "PERF_COUNT": profiled,
    }
    if place.device == "CPU":
        # Pinned, the threads of two processes would share one core while others are idle.
        config["ENABLE_CPU_PINNING"] = False
    if place.cores.threads is not None:
        config["INFERENCE_NUM_THREADS"] = place.cores.threads
    if place.cores.streams is not None:
        config["NUM_STREAMS"] = place.cores.streams if purpose == MANY else 1
    core = openvino_core()  # not below: that it is missing is another error
    if place.device == "CPU" and (problem := cpu_precision_problem(place.precision)):
        # ONNX Runtime would refuse some precisions as well.
        other = ", or --backend cpu" if place.precision in backend_row("cpu").tolerances else ""
        raise BackendError(f"backend {backend}: {problem} Use --precision fp32{other}.")
    try:
        compiled = core.compile_model(_read(core, model), place.device, config)
    except Exception as err:  # OpenVINO's are RuntimeErrors
        raise BackendError(f"backend {backend}: could not load {model.file}: {reason_of(err)}") from err
    check_executed(backend, model.file, compiled, place.device, hint)
    return compiled


def _read(core: Any, model: OnnxModel) -> Any:
    """Return OpenVINO's model of a graph for one image, made from memory alone."""
    constant_of = import_openvino().op.Constant
    read = core.read_model(external_as_inputs(model.data) if model.external else model.data)
    for parameter in read.get_parameters():
        name = parameter.get_friendly_name()
        if name in model.external:
            constant = constant_of(np.asarray(model.external[name]))
            for user in parameter.output(0).get_target_inputs():
                user.replace_source_output(constant.output(0))
            read.remove_parameter(parameter)
    read.reshape({port: [1 if size.is_dynamic else size for size in port.partial_shape] for port in read.inputs})
    return read


def graph_name(port: Any) -> str:
    """Return the graph's name of an input or output of a compiled model.

    Where nodes were merged, a tensor has the names of all of them, and `any_name` is whichever comes first.
    """
    name = str(port.node.get_friendly_name()).removesuffix("/sink_port_0")
    return name if name in port.names else str(port.any_name)
