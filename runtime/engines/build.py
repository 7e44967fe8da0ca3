"""From an ONNX graph to a serialized engine: parse, profile, build, with progress and errors a user can act on."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.engines.target import Target
from flawscope.runtime.engines.tensorrt_modules import TensorRT

Progress = Callable[[float, str], None]
"""Told the share done, 0 to 1, and the phase."""

_MOST_MESSAGES = 20


class BuildOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine is built for besides its device; part of its key in the cache.

    Attributes:
        min_batch: Smallest batch it takes.
        opt_batch: The batch it is fastest at.
        max_batch: Largest batch it takes.
        workspace_mib: Most device memory for scratch in MiB; None leaves it to TensorRT.
    """

    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 1
    workspace_mib: int | None = None

    def check(self) -> None:
        """Raise ArgumentError unless 1 ≤ min ≤ opt ≤ max ≤ 256 and the workspace is at least 1 MiB."""
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch <= 256:
            raise ArgumentError(
                "batches: expected 1 ≤ smallest ≤ usual ≤ largest ≤ 256, "
                f"got {self.min_batch}, {self.opt_batch}, {self.max_batch}."
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ArgumentError(f"workspace: expected at least 1 MiB, got {self.workspace_mib}.")


@dataclass(frozen=True)
class Built:
    """A serialized engine and what was learned on the way.

    Attributes:
        plan: The engine.
        seconds: Time of the build.
        warnings: What TensorRT warned of.
        layers: Report of the engine inspector as JSON, or None.
        layers_missing: Why there is no report, or None.
        timing_cache: What the builder measured, for the next build; empty where the builder keeps nothing.
    """

    plan: bytes
    seconds: float
    warnings: tuple[str, ...]
    layers: str | None
    layers_missing: str | None
    timing_cache: bytes


def build_engine(
    tensorrt: TensorRT,
    graph: Path,
    target: Target,
    options: BuildOptions,
    *,
    timing_cache: bytes = b"",
    progress: Progress | None = None,
) -> Built:
    """Build an engine from an ONNX graph; external data is looked for beside it.

    Args:
        tensorrt: The module that builds.
        graph: ONNX file. Every dimension but the first must be fixed.
        target: Device to build for. With a driver: the device of this machine.
        options: Profile and limits.
        timing_cache: What an earlier build gave back.
        progress: Told how far the build is.

    Raises:
        ArgumentError: If an option is out of range or the graph has another dynamic dimension.
        BackendError: If the graph cannot be parsed (the message names node, operator and module) or built.
    """
    options.check()
    module = tensorrt.module
    logger, messages = listen(module)
    try:
        builder = module.Builder(logger)
    except Exception as err:  # pybind11 raises a bare TypeError where the library gave a null pointer
        raise BackendError(
            f"{tensorrt.name}: no builder could be made: {messages.last_error() or err}. "
            "Building needs the GPU and its driver; flawscope doctor shows what is missing."
        ) from err
    network = builder.create_network(tensorrt.network_flags())
    parser = module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise BackendError(f"{tensorrt.name}: could not parse {graph.name}: {_parser_error(parser, messages)}")
    config = builder.create_builder_config()
    _set_profile(builder, network, config, options, graph.name)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if tensorrt.builds_for_absent_gpus:
        config.num_compute_capabilities = 1
        major, minor = target.compute_capability
        config.set_compute_capability(getattr(module.ComputeCapability, f"SM{major}{minor}"), 0)
    else:
        config.set_timing_cache(config.create_timing_cache(timing_cache), ignore_mismatch=False)
    monitor = _monitor(module, progress)
    config.progress_monitor = monitor
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if monitor.raised is not None:
        raise monitor.raised
    if plan is None:
        raise BackendError(
            f"{tensorrt.name}: could not build {graph.name} for {target}: "
            f"{messages.last_error() or 'it gave no reason'}."
        )
    data = bytes(memoryview(plan))
    kept = b"" if tensorrt.builds_for_absent_gpus else bytes(memoryview(config.get_timing_cache().serialize()))
    layers, missing = _inspect(module, logger, data, target)
    return Built(data, seconds, tuple(messages.warnings), layers, missing, kept)


# ---- Parsing ---------------------------------------------------------------------------------------------------------


def _parser_error(parser: Any, messages: Messages) -> str:
    """Return the first error of the parser: node, operator, the module it was exported from, and the reason."""
    if parser.num_errors == 0:
        return f"{messages.last_error() or 'it gave no reason'}."
    error = parser.get_error(0)
    node, operator = error.node_name() or f"number {error.node()}", error.node_operator() or "unknown"
    reason = " ".join(str(error.desc()).split())
    return (
        f"node {node}, operator {operator}, from {exporter_module(node)}: {reason.rstrip('.')}. "
        "This TensorRT does not take the operator as it stands there: choose another backbone, or use backend cpu."
    )


def exporter_module(node: str) -> str:
    """Return what exported a node, by its name: `head/product_0` or `backbone.blocks.0.conv/Conv_3`."""
    module, _, rest = node.rpartition("/")
    if not module or not rest:
        return "an unknown module"
    return (
        "the scoring head (flawscope.export.detectors.head_nodes)"
        if module == "head"
        else f"the module {module} of the backbone"
    )


def _set_profile(builder: Any, network: Any, config: Any, options: BuildOptions, name: str) -> None:
    profile = builder.create_optimization_profile()
    is_dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        first, *rest = tuple(tensor.shape)
        if any(size < 0 for size in rest):
            raise ArgumentError(
                f"{name}: expected fixed dimensions after the first, got {tuple(tensor.shape)} for {tensor.name}. "
                "Export it with a fixed size."
            )
        if first >= 0:
            if not first == options.min_batch == options.max_batch:
                raise ArgumentError(
                    f"{name}: the graph takes batches of {first} alone, got {options.min_batch} to "
                    f"{options.max_batch}. Ask for that batch, or export with --max-batch."
                )
            continue
        is_dynamic = True
        batches = (options.min_batch, options.opt_batch, options.max_batch)
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    if is_dynamic:
        config.add_optimization_profile(profile)


# ---- What TensorRT says ----------------------------------------------------------------------------------------------


class Messages:
    """What TensorRT warned of, and its errors, since somebody began to listen."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []

    def last_error(self) -> str:
        """Return the last error as one line, or an empty string."""
        return " ".join(self.errors[-1].split()).rstrip(".") if self.errors else ""


_LISTENING: dict[Any, tuple[Any, weakref.WeakSet[Messages]]] = {}


def listen(module: Any) -> tuple[Any, Messages]:
    """Return the logger of a TensorRT module, and what it will have heard from now on.

    There is one for all: as long as anything lives that was made with a logger, TensorRT ignores every other one, and
    warns of it. With a logger for each, the second would hear nothing, and an error would come without its reason.
    """
    if module not in _LISTENING:
        listeners: weakref.WeakSet[Messages] = weakref.WeakSet()
        _LISTENING[module] = _logger(module, listeners), listeners
    messages = Messages()
    logger, listeners = _LISTENING[module]
    listeners.add(messages)
    return logger, messages


def _logger(module: Any, listeners: weakref.WeakSet[Messages]) -> Any:
    """Return a logger that tells all who listen at that moment."""

    class Logger(module.ILogger):  # type: ignore[misc]  # the base is known at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            for messages in tuple(listeners):
                if severity <= module.ILogger.Severity.ERROR:
                    messages.errors.append(text)
                elif severity == module.ILogger.Severity.WARNING and len(messages.warnings) < _MOST_MESSAGES:
                    messages.warnings.append(" ".join(text.split()))

    return Logger()


def _monitor(module: Any, progress: Progress | None) -> Any:
    """Return a progress monitor. Phases lie within a step of their parent, so their shares multiply."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._phases: dict[str, tuple[float, float, int]] = {}  # name -> share at its start, its width, its steps
            self._share = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            begin, width = 0.0, 1.0
            if parent_phase in self._phases:
                parent_begin, parent_width, steps = self._phases[parent_phase]
                width = parent_width / max(steps, 1)
                begin = min(max(self._share, parent_begin), parent_begin + parent_width - width)
            self._phases[phase_name] = (begin, width, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            begin, width, steps = self._phases.get(phase_name, (self._share, 0.0, 1))
            return self._tell(begin + width * min(1.0, (step + 1) / max(steps, 1)), phase_name)

        def phase_finish(self, phase_name: str) -> None:
            begin, width, _ = self._phases.pop(phase_name, (self._share, 0.0, 1))
            self._tell(begin + width, phase_name)

        def _tell(self, share: float, phase: str) -> bool:
            self._share = max(self._share, share)
            if progress is not None and self.raised is None:
                try:
                    progress(min(self._share, 1.0), phase)
                except BaseException as err:  # an exception must not cross the library: the build is stopped instead
                    self.raised = err
            return self.raised is None

    return Monitor()


def _inspect(module: Any, logger: Any, plan: bytes, target: Target) -> tuple[str | None, str | None]:
    """Return the engine inspector's report, or why there is none."""
    if not target.driver:
        return None, f"the inspector needs the GPU; this engine was built for {target}"
    runtime = module.Runtime(logger)
    # Code for the host inside an engine would be code that nobody signed.
    with contextlib.suppress(AttributeError):
        runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None, "TensorRT could not load the engine it had built"
    information = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return str(information), None
