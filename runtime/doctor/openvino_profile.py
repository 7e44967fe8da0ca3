"""What OpenVINO executes for a graph: its nodes after fusion, with the precision of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from flawscope.bundle import OnnxModel
from flawscope.errors import BackendError
from flawscope.runtime.backends.openvino import OpenvinoSession
from flawscope.runtime.backends.openvino_devices import reason_of
from flawscope.runtime.backends.openvino_graph import ONE, compile_graph, graph_name
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.doctor.provider_profile import ProfiledNode

_RUNS = 3
"""Number of runs. The last one counts: the first ones allocate."""

_NO_WORK = ("Const", "Input", "Output", "Parameter", "Result")


def executed_nodes(
    session: OpenvinoSession, model: OnnxModel, inputs: Mapping[str, npt.NDArray[Any]]
) -> list[ProfiledNode]:
    """Run a graph for the first of the images and return its nodes in the order in which they were executed.

    Args:
        session: Session of the graph, which says where it runs; a model of its own is compiled, because measuring slows
            every run down.
        model: The graph.
        inputs: An array for each input by name.

    Raises:
        BackendError: If the graph cannot be loaded or run there.
    """
    compiled = compile_graph(model, session.place, ONE, profiled=True)
    request = compiled.create_infer_request()
    try:
        for _ in range(_RUNS):
            request.infer([inputs[graph_name(port)][: port.shape[0]] for port in compiled.inputs])
        times = {info.node_name: info.real_time.total_seconds() * 1e3 for info in request.profiling_info}
    except Exception as err:  # OpenVINO's are RuntimeErrors
        raise BackendError(f"backend {session.place.backend}: could not run {model.file}: {reason_of(err)}") from err
    provider = backend_row(session.place.backend).provider
    nodes = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        # Of the nodes of a runtime model all that counts stands beside them, as texts.
        about = {name: str(value.astype(str)) for name, value in node.get_rt_info().items()}
        kind = about.get("layerType", node.get_type_name())
        if kind in _NO_WORK:
            continue
        name = node.get_friendly_name()
        precision = about.get("runtimePrecision", "")
        nodes.append(ProfiledNode(name, kind, provider, times.get(name, 0.0), precision))
    return nodes
