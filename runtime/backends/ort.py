"""Sessions of ONNX Runtime: on the CPU and, with I/O binding, on CUDA."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.bundle import Bundle, OnnxModel
from flawscope.errors import ArgumentError, BackendError, DeviceError, MissingExtra
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores, usable_cores
from flawscope.runtime.backends.table import backend_row

CUDA_MEMORY_VARIABLE = "FLAWSCOPE_CUDA_MEMORY_MIB"

EXACT_INT8 = ("session.x64quantprecision", "1")
"""Option of every session that may compute in INT8. Without it an x86 processor that lacks VNNI adds two products in 16
bits and cuts what does not fit, in silence; with it weights become unsigned bytes there, and no sum is cut. Elsewhere
it changes nothing."""


_SHAPE_OPERATORS = frozenset(
    {
        "Shape",
        "Size",
        "Constant",
        "ConstantOfShape",
        "Gather",
        "Concat",
        "Unsqueeze",
        "Squeeze",
        "Slice",
        "Cast",
        "Range",
        "Reshape",
        "Identity",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Min",
        "Max",
        "Equal",
        "Less",
        "Greater",
        "Where",
    }
)
"""Operators that compute shapes, a few integers each, which ONNX Runtime leaves to the CPU on purpose."""


@functools.cache
def import_onnxruntime() -> Any:
    """Return the module `onnxruntime` with its log switched off.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as err:
        raise MissingExtra("running a bundle", "onnxruntime", "cpu") from err
    onnxruntime.set_default_logger_severity(4)  # fatal only: errors also come as exceptions, and would be shown twice
    return onnxruntime


def cpu_problem() -> None:
    """Return None: every ONNX Runtime has the CPU.

    Raises:
        MissingExtra: If ONNX Runtime is not installed.
    """
    import_onnxruntime()


def cuda_problem() -> str | None:
    """Return why ONNX Runtime has no CUDA here, as a sentence, or None if it has."""
    # This lists what was compiled in. Whether a device works, only a session shows: see `OrtSession`.
    available = import_onnxruntime().get_available_providers()
    if backend_row("cuda").provider in available:
        return None
    # Here and not at the top: most who decide on images look for no CUDA.
    from flawscope.runtime.backends import driver_library

    # Without a driver the package would not help, and nobody there is looking for CUDA.
    if driver_library.load_driver() is None:
        return "this machine has no NVIDIA driver."
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in available)
    return f'this ONNX Runtime offers {names}; CUDA comes with pip install "flawscope[cuda]" in place of [cpu].'


def session_options(cores: Cores = OWN_CHOICE) -> Any:
    """Return the options of every session: deterministic, quiet, no sum cut, no threads that spin between runs."""
    options = import_onnxruntime().SessionOptions()
    usable = usable_cores()
    if cores.threads is not None:
        options.intra_op_num_threads = cores.threads
    elif usable != os.cpu_count():
        # By itself it takes all cores of the machine, and ties a thread to each: also to those that `taskset` has given
        # to others (seen with 1.31). With a number set it ties none.
        options.intra_op_num_threads = usable
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT_INT8)
    # Idle threads spin by default, and would take the cores from the native kernels that run right after the graph.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def session_providers(backend: str) -> list[tuple[str, dict[str, str]]]:
    """Return the execution providers of a session and their options; the libraries that CUDA needs are loaded."""
    if backend != "cuda":
        return [(backend_row(backend).provider, {})]
    from flawscope.runtime.engines import tf32_allowed  # the CPU needs none of the engines

    _preload_cuda()
    options = {
        # TF32 (ONNX Runtime's default on Ampere and later) keeps 10 bits of each factor's mantissa: scores of CUDA
        # would miss thresholds and golden scores that were measured on the CPU.
        "use_tf32": str(int(tf32_allowed())),
        # EXHAUSTIVE, the default, times algorithms at every new batch size, and may choose others at every start, whose
        # sums differ in the last bits.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default takes the next power of two each time: on a small device, up to twice what is needed.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if limit := cuda_memory_limit():
        options["gpu_mem_limit"] = str(limit)
    return [(backend_row(backend).provider, options)]


@functools.cache
def _preload_cuda() -> None:
    # ONNX Runtime does not look for the libraries that pip has installed before it is told to (1.21 and later).
    preload = getattr(import_onnxruntime(), "preload_dlls", None)
    if preload is not None:
        # It prints what it does not find, where results may be printed. What is missing in the end, the session says.
        with contextlib.redirect_stdout(io.StringIO()):
            preload()


def cuda_memory_limit() -> int | None:
    """Return how many bytes a session may take of a CUDA device, by `FLAWSCOPE_CUDA_MEMORY_MIB`; None for all.

    Raises:
        ArgumentError: If the variable is no number of MiB.
    """
    text = os.environ.get(CUDA_MEMORY_VARIABLE)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentError(f"{CUDA_MEMORY_VARIABLE}: expected a number of MiB, got {text!r}.")
    return int(text) << 20


def open_on_cpu(
    bundle: Bundle, graph: str, precision: str, make_head: object = None, cores: Cores = OWN_CHOICE
) -> OrtSession:
    """Open a session of a graph on the CPU; `make_head` is not used, distances are computed by the CPU's kernels."""
    return OrtSession(bundle.model(graph, precision), "cpu", cores)


def make_session(model: OnnxModel, options: Any, backend: str, more: Mapping[str, str] | None = None) -> Any:
    """Return ONNX Runtime's session of a model, made from memory alone; `more` are options of its provider.

    Raises whatever ONNX Runtime raises: its exceptions share no base class.
    """
    onnxruntime = import_onnxruntime()
    # The bytes are ONNX, whatever they begin with: ONNX Runtime would take its own format too, which nobody checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if backend != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for `check_provider`
    if model.external:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in model.external.values()]
        options.add_external_initializers(list(model.external), values)
    providers = [(name, known | dict(more or {})) for name, known in session_providers(backend)]
    with _captures_held_off(backend):
        session = onnxruntime.InferenceSession(model.data, options, providers=providers)
    # By itself it would go on with another provider where one fails in a run. For that it also keeps the bytes of the
    # graph: hundreds of megabytes of a generator would stay in memory twice.
    session.disable_fallback()
    vars(session).pop("_model_bytes", None)
    return session


class OrtSession:
    """One ONNX graph in ONNX Runtime; see `Session` for the contract.

    Attributes:
        outputs: Names of what `infer` returns.
    """

    def __init__(self, model: OnnxModel, backend: str, cores: Cores = OWN_CHOICE) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a provider is missing: an error below
                self._session: Any = make_session(model, session_options(cores), backend)
        except Exception as err:
            # ONNX Runtime's exceptions share no base class of their own.
            raise BackendError(f"backend {backend}: could not load {model.file}: {_first_line(err)}") from err
        check_provider(self._session, backend, model.file)
        # ONNX Runtime copies external data, as far as tried (1.31); a version that does not would read freed memory.
        self._external = dict(model.external)
        self._backend = backend
        self._input = self._session.get_inputs()[0].name
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def infer(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on a batch."""
        return self.run({self._input: images})

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on several inputs."""
        try:
            if self._backend == "cpu":
                values = self._session.run(list(self.outputs), dict(inputs))
            else:
                binding = self._session.io_binding()
                for name, array in inputs.items():
                    binding.bind_cpu_input(name, np.ascontiguousarray(array))  # it takes an address, no strides
                for name in self.outputs:
                    binding.bind_output(name, "cpu")
                self._session.run_with_iobinding(binding)
                values = binding.copy_outputs_to_cpu()  # new arrays: the binding's own go away with it
        except Exception as err:  # also AttributeError of a closed session: the inspector makes a fault of it
            raise DeviceError(f"backend {self._backend}: the device failed: {_first_line(err)}") from err
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        """Release the session; closing twice is harmless."""
        with _captures_held_off(self._backend):
            self._session = None
        self._external.clear()


def _captures_held_off(backend: str) -> contextlib.AbstractContextManager[None]:
    """Return what is held while a session takes or frees a device's memory, which would break captures of graphs."""
    if backend == "cpu":
        return contextlib.nullcontext()
    from flawscope.runtime.engines.capture_lock import CAPTURES  # the CPU needs none of the engines

    return CAPTURES.disturbing()


def check_provider(session: Any, backend: str, name: str) -> None:
    """Raise BackendError unless the backend's provider computes a graph: all that is more than shapes.

    Versions that do not tell where they put nodes (1.31 does) are believed: `flawscope doctor` shows what ran where.
    """
    provider, first = backend_row(backend).provider, session.get_providers()[0]
    if first != provider:
        # ONNX Runtime falls back to the CPU by itself and only logs it. Here it is an error.
        del session  # as below
        raise BackendError(
            f"backend {backend}: expected {provider} for {name}, ONNX Runtime took {first}. "
            "Are the CUDA and cuDNN libraries of its version installed? See flawscope doctor."
        )
    if backend == "cpu" or not hasattr(session, "get_provider_graph_assignment_info"):
        return
    strays = [
        f"{node.op_type} {node.name} on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != provider and node.op_type not in _SHAPE_OPERATORS
    ]
    if strays:
        # Frames of the error would keep the session beyond the stream on which it works.
        del session
        raise BackendError(
            f"backend {backend}: expected every node of {name} on {provider}, got {len(strays)} elsewhere, first "
            f"{strays[0]}. Use --backend cpu, or an ONNX Runtime that has them."
        )


def _first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0]
