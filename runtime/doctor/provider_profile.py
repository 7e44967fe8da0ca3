"""Which provider took which node of a graph: proof of the path, read from ONNX Runtime's own profile of one run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from flawscope.errors import BackendError
from flawscope.runtime.backends.ort import PROVIDERS, import_onnxruntime, session_options, session_providers
from flawscope.runtime.engines.cache import LAYERS

ENGINE = "TensorRT engine"
"""Who computes the layers of an engine."""

_RUNS = 3
"""Runs of which the last counts: the first ones allocate."""


@dataclass(frozen=True)
class PlacedNode:
    """A node as it was executed, after ONNX Runtime's optimisation of the graph.

    Attributes:
        name: Its name; fused nodes have one of ONNX Runtime's making.
        operator: What it computes.
        provider: Who computed it, for example `CUDAExecutionProvider`.
        milliseconds: Time of its kernel in the last run, by ONNX Runtime's profiler.
    """

    name: str
    operator: str
    provider: str
    milliseconds: float


def place_nodes(graph: Path, backend: str, inputs: Mapping[str, npt.NDArray[Any]]) -> list[PlacedNode]:
    """Run a graph under ONNX Runtime's profiler and return its nodes in the order in which they were executed.

    Args:
        graph: ONNX file.
        backend: `cpu` or `cuda`.
        inputs: An array for each input by name.

    Raises:
        BackendError: If the graph cannot be loaded or run there.
    """
    onnxruntime = import_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "nodes")
        try:
            session = onnxruntime.InferenceSession(str(graph), options, providers=session_providers(backend))
            for _ in range(_RUNS):
                session.run(None, dict(inputs))
            events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except Exception as err:
            # ONNX Runtime's exceptions share no base class of their own.
            raise BackendError(f"backend {backend}: could not run {graph.name}: {str(err).splitlines()[0]}") from err
    runs: list[list[PlacedNode]] = [[]]
    for event in events:
        arguments = event.get("args", {})
        if event.get("name") == "model_run":
            runs.append([])
        elif event.get("cat") == "Node" and "provider" in arguments:
            runs[-1].append(
                PlacedNode(
                    str(event["name"]).removesuffix("_kernel_time"),
                    str(arguments.get("op_name", "")),
                    str(arguments["provider"]),
                    float(event["dur"]) / 1e3,
                )
            )
    return next(run for run in reversed(runs) if run)


def place_layers(plan: Path) -> list[PlacedNode]:
    """Return the layers of an engine, as its inspector has told them when it was built; times are not known.

    Args:
        plan: The engine in the cache.

    Raises:
        BackendError: If there is no report beside it.
    """
    try:
        report = json.loads((plan.parent / LAYERS).read_text(encoding="utf-8"))
        layers = [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in report["Layers"]]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BackendError(
            f"engine: expected a report of its layers in {plan.parent / LAYERS}, got none that can be read. Build it "
            "again with flawscope engine build --force."
        ) from err
    return [PlacedNode(str(layer.get("Name", "")), str(layer.get("LayerType", "")), ENGINE, 0.0) for layer in layers]


def elsewhere(nodes: list[PlacedNode], backend: str) -> list[PlacedNode]:
    """Return the nodes that another provider than the backend's has taken, those that take longest first."""
    own = {**PROVIDERS, "tensorrt": ENGINE}[backend]
    return sorted((node for node in nodes if node.provider != own), key=lambda node: -node.milliseconds)
