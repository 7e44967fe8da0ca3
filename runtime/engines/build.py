"""Building an engine from an ONNX graph with TensorRT: parse, profile, build; with progress and actionable errors."""

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
"""Called with the completed share, 0 to 1, and the name of the phase."""

_MOST_MESSAGES = 20


class BuildOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine is built for besides its device. Part of its key in the cache: a new field changes every digest.

    Attributes:
        min_batch: Smallest batch.
        opt_batch: Batch size that TensorRT optimizes for.
        max_batch: Largest batch.
        workspace_mib: Limit of scratch memory on the device in MiB; None leaves it to TensorRT.
        tf32: Whether products of FP32 numbers may be computed in TF32, which keeps 10 bits of a factor's 23.
    """

    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 1
    workspace_mib: int | None = None
    tf32: bool = False

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
    """A serialized engine and what its build reported.

    Attributes:
        plan: The engine.
        seconds: Duration of the build.
        warnings: TensorRT's warnings.
        layers: Report of the engine inspector as JSON, or None.
        layers_missing: Why there is no report, or None.
        timing_cache: The builder's measurements, for the next build; empty where the builder measures nothing.
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
        timing_cache: `Built.timing_cache` of an earlier build.
        progress: Called as the build proceeds.

    Raises:
        ArgumentError: If an option is out of range or the graph has another dynamic dimension.
        BackendError: If the graph cannot be parsed (the message names node, operator and module) or built.
    """
    options.check()
    module = tensorrt.module
    logger, messages = listen(module)
    try:
        builder = module.Builder(logger)
    except Exception as err:  # pybind11 raises a bare TypeError where the library returned a null pointer
        raise BackendError(
            f"{tensorrt.name}: no builder could be made: {messages.last_error() or err}. "
            "Building needs the GPU and its driver; flawscope doctor shows what is missing."
        ) from err
    network = builder.create_network(tensorrt.network_flags())
    parser = module.OnnxParser(network, logger)
    # From the file and not from bytes: the parser finds external data relative to the file's folder.
    if not parser.parse_from_file(str(graph)):
        raise BackendError(f"{tensorrt.name}: could not parse {graph.name}: {_parser_error(parser, messages)}")
    config = builder.create_builder_config()
    _set_profile(builder, network, config, options, graph.name)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    _set_tf32(module, config, allowed=options.tf32)
    # Without it the inspector reports the names of layers alone, and `doctor` could not show their types.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if tensorrt.builds_for_absent_gpus:
        config.num_compute_capabilities = 1
        major, minor = target.compute_capability
        config.set_compute_capability(getattr(module.ComputeCapability, f"SM{major}{minor}"), 0)
    else:
        # `ignore_mismatch=False`: timings of another device or version are refused, they would choose wrong kernels.
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
    data = bytes(memoryview(plan))  # a copy: IHostMemory belongs to the builder
    # TensorRT-RTX measures nothing at build time.
    timings = b"" if tensorrt.builds_for_absent_gpus else bytes(memoryview(config.get_timing_cache().serialize()))
    layers, missing = _inspect(module, logger, data, target)
    return Built(data, seconds, tuple(messages.warnings), layers, missing, timings)


# ---- Parsing ---------------------------------------------------------------------------------------------------------


def _parser_error(parser: Any, messages: Messages) -> str:
    """Return the parser's first error: node, operator, the module it was exported from, and the reason."""
    # The first one: later errors are mostly consequences of it.
    if parser.num_errors == 0:
        return f"{messages.last_error() or 'it gave no reason'}."
    error = parser.get_error(0)
    node, operator = error.node_name() or f"number {error.node()}", error.node_operator() or "unknown"
    reason = " ".join(str(error.desc()).split())
    return (
        f"node {node}, operator {operator}, from {exporter_module(node)}: {reason.rstrip('.')}. "
        "This TensorRT does not support the operator in this form: choose another backbone, or use backend cpu."
    )


def exporter_module(node: str) -> str:
    """Return the module that exported a node, from its name: `head/product_0` or `backbone.blocks.0.conv/Conv_3`."""
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
        first, *rest = tuple(tensor.shape)  # -1 where a dimension is dynamic
        if any(size < 0 for size in rest):
            raise ArgumentError(
                f"{name}: expected fixed dimensions after the first, got {tuple(tensor.shape)} for {tensor.name}. "
                "Export it with a fixed size."
            )
        if first >= 0:
            # A fixed batch needs no profile, but an engine that cannot do what its key in the cache says is refused.
            if not first == options.min_batch == options.max_batch:
                raise ArgumentError(
                    f"{name}: expected a batch of {first}, which is all that the graph takes, got {options.min_batch} "
                    f"to {options.max_batch}. Ask for that batch, or export with --max-batch."
                )
            continue
        is_dynamic = True
        batches = (options.min_batch, options.opt_batch, options.max_batch)
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    if is_dynamic:
        config.add_optimization_profile(profile)


def _set_tf32(module: Any, config: Any, *, allowed: bool) -> None:
    """Allow TF32 or not; a version without the flag has none to clear."""
    # On by default, also in strongly typed networks: from Ampere on, FP32 products would have 10 bits, and scores miss
    # golden scores and thresholds that were measured on the CPU.
    flag = getattr(module.BuilderFlag, "TF32", None)
    if flag is not None:
        (config.set_flag if allowed else config.clear_flag)(flag)


# ---- TensorRT's messages and progress --------------------------------------------------------------------------------


class Messages:
    """Warnings and errors of TensorRT."""

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

    # A class in a function: its base exists only in the module, which may be `tensorrt` or `tensorrt_rtx`.
    class Logger(module.ILogger):  # type: ignore[misc]  # the base is known at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 demands it of a class with an __init__ of its own

        def log(self, severity: Any, text: str) -> None:
            # Smaller is more severe: INTERNAL_ERROR is 0, ERROR 1, WARNING 2.
            for messages in tuple(listeners):
                if severity <= module.ILogger.Severity.ERROR:
                    messages.errors.append(text)
                elif severity == module.ILogger.Severity.WARNING and len(messages.warnings) < _MOST_MESSAGES:
                    messages.warnings.append(" ".join(text.split()))

    return Logger()


def _monitor(module: Any, progress: Progress | None) -> Any:
    """Return a progress monitor. A phase lies within one step of its parent, so their shares multiply."""

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
                # Several phases can share a step: never before what was reported, never beyond the parent's end.
                begin = min(max(self._share, parent_begin), parent_begin + parent_width - width)
            self._phases[phase_name] = (begin, width, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            begin, width, steps = self._phases.get(phase_name, (self._share, 0.0, 1))
            return self._report(begin + width * min(1.0, (step + 1) / max(steps, 1)), phase_name)

        def phase_finish(self, phase_name: str) -> None:
            begin, width, _ = self._phases.pop(phase_name, (self._share, 0.0, 1))
            self._report(begin + width, phase_name)

        def _report(self, share: float, phase: str) -> bool:
            self._share = max(self._share, share)  # a bar must not run backwards
            if progress is not None and self.raised is None:
                try:
                    progress(min(self._share, 1.0), phase)
                except BaseException as err:  # must not unwind through C++: kept, and raised after the build
                    self.raised = err
            return self.raised is None  # false cancels the build; this is how Ctrl-C ends it

    return Monitor()


def _inspect(module: Any, logger: Any, plan: bytes, target: Target) -> tuple[str | None, str | None]:
    """Return the engine inspector's report, or why there is none."""
    if not target.driver:
        return None, f"the inspector needs the GPU; this engine was built for {target}"
    runtime = module.Runtime(logger)
    # No code for the host, as in `TensorrtSession._load`.
    with contextlib.suppress(AttributeError):
        runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None, "TensorRT could not load the engine it had built"
    information = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return str(information), None
