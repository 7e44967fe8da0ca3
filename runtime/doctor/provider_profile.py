"""The execution provider of every node of a graph, read from ONNX Runtime's profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from flawscope.bundle import OnnxModel
from flawscope.errors import BackendError
from flawscope.files import temporary_folder
from flawscope.runtime.backends import Session
from flawscope.runtime.backends.ort import make_session, session_options
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.backends.tensorrt import TensorrtSession

_ON_HOST = backend_row("cpu").provider

ENGINE = backend_row("tensorrt").provider
"""The provider of an engine's layers."""

_RUNS = 3
"""Number of runs. The last one counts: the first ones allocate, and on CUDA choose algorithms."""


@dataclass(frozen=True)
class ProfiledNode:
    """A node as it was executed, after the backend's optimisation of the graph.

    Attributes:
        name: Its name; fused nodes have one that the backend made up.
        operator: Type of its operator.
        provider: Its execution provider, for example `CUDAExecutionProvider`.
        milliseconds: Time of its kernel in the last run, by the backend's profiler; 0 where that is not known.
        precision: What it was computed in, in the backend's words; empty where the backend does not say.
    """

    name: str
    operator: str
    provider: str
    milliseconds: float
    precision: str = ""


def place_on_cpu(session: Session, model: OnnxModel, inputs: Mapping[str, npt.NDArray[Any]]) -> list[ProfiledNode]:
    """Return the provider of every node on the backend `cpu`; see `profile_nodes`."""
    return profile_nodes(model, "cpu", inputs)


def place_on_cuda(session: Session, model: OnnxModel, inputs: Mapping[str, npt.NDArray[Any]]) -> list[ProfiledNode]:
    """Return the provider of every node on the backend `cuda`; see `profile_nodes`."""
    return profile_nodes(model, "cuda", inputs)


def profile_nodes(model: OnnxModel, backend: str, inputs: Mapping[str, npt.NDArray[Any]]) -> list[ProfiledNode]:
    """Run a graph under ONNX Runtime's profiler and return its nodes in the order in which they were executed.

    Args:
        model: The graph.
        backend: `cpu` or `cuda`.
        inputs: An array for each input by name.

    Raises:
        BackendError: If the graph cannot be loaded or run there.
    """
    # A session of its own: profiling can only be switched on when a session is made, and it slows every run down.
    with temporary_folder() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "nodes")
        try:
            session = make_session(model, options, backend)
            for _ in range(_RUNS):
                session.run(None, dict(inputs))
            # `end_profiling` writes the file; without it the profile stays empty.
            events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except Exception as err:
            # ONNX Runtime's exceptions share no base class of their own.
            raise BackendError(f"backend {backend}: could not run {model.file}: {str(err).splitlines()[0]}") from err
    # The profile is one list of events (times in microseconds). An event `model_run` ends each run.
    runs: list[list[ProfiledNode]] = [[]]
    for event in events:
        arguments = event.get("args", {})
        if event.get("name") == "model_run":
            runs.append([])
        # Nodes have further events (fences, in older versions), which name no provider.
        elif event.get("cat") == "Node" and "provider" in arguments:
            runs[-1].append(
                ProfiledNode(
                    str(event["name"]).removesuffix("_kernel_time"),
                    str(arguments.get("op_name", "")),
                    str(arguments["provider"]),
                    # Of a device ONNX Runtime knows how long the host took to launch the kernel, not how long it ran.
                    float(event["dur"]) / 1e3 if arguments["provider"] == _ON_HOST else 0.0,
                )
            )
    return next(run for run in reversed(runs) if run)  # the list after the last `model_run` is empty


def engine_layers(
    session: TensorrtSession, model: OnnxModel, inputs: Mapping[str, npt.NDArray[Any]]
) -> list[ProfiledNode]:
    """Return the layers of an engine, as TensorRT's inspector reported them at build time; without times.

    Args:
        session: Session of the engine.
        model: Not used; the graph that the engine was built from.
        inputs: Not used; nothing is run.

    Raises:
        BackendError: If the engine has no report.
    """
    try:
        report = json.loads(session.layers or b"")
        # Without detailed profiling verbosity the inspector lists names instead of objects.
        layers = [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in report["Layers"]]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise BackendError(
            f"engine: expected a report of its layers beside {session.name}, got none that can be read. Build it "
            "again with flawscope engine build --force."
        ) from err
    return [ProfiledNode(str(layer.get("Name", "")), str(layer.get("LayerType", "")), ENGINE, 0.0) for layer in layers]


def elsewhere(nodes: list[ProfiledNode], backend: str) -> list[ProfiledNode]:
    """Return the nodes that do not run on the backend's own provider, the slowest first."""
    provider = backend_row(backend).provider
    return sorted((node for node in nodes if node.provider != provider), key=lambda node: -node.milliseconds)
