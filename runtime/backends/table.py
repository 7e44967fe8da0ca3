"""The table of backends: what runs the graphs, where, and how near to the golden scores it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flawscope import methods
from flawscope.bundle import Bundle
from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.session import MakeDeviceHead, Session

GOLDEN_TOLERANCE = 1e-3
"""Largest relative difference of a golden image's score and map maximum at load: far above float32 noise between
processors, far below what a wrong resize or colour order does."""

_DEVICE_TOLERANCES = {"fp32": GOLDEN_TOLERANCE, "fp16": 1e-2, "int8": 3e-2}
"""The same on a device, by precision. Golden scores may come from the CPU, which sums FP16 and INT8 with more bits."""

_BF16_TOLERANCE = 2e-2
"""The same in BF16, whose numbers have 8 bits: another order of a sum rounds a value to its neighbour, 0.4 % away.
Scores moved by 0.2 % with other instructions, by 1.2 % where distances were computed in BF16 too (path `graph`)."""


@dataclass(frozen=True)
class Backend:
    """One row. Functions are named as `MODULE:FUNCTION` and imported on first use: TensorRT may not be installed.

    Attributes:
        name: Name on the command line.
        problem: `() -> str | None`: why it is not available, as a sentence; None if it is.
        open: `(bundle, graph, precision, make_head, cores) -> Session`; `make_head` puts a bank beside the graph.
            Backends without device kernels do not use it.
        place: `(session, model, inputs) -> list[ProfiledNode]`: what computes which node; for `doctor`.
        provider: The execution provider that should compute all nodes.
        kernels: Whether the path `auto` takes the kernels of `cpp_ext` here.
        auto: Reason that `auto` gives when it takes this backend unmeasured, or None if it never does.
        tolerances: Precision -> largest relative difference of golden scores. A precision that is missing is none that
            it computes in: it is refused there.
        alone: Why a session cannot serve several bundles at once, from several threads; None if it can.
        any_head: Whether kernels take every head, as on the CPU; those of a device lack some.
        precision_problem: `(precision) -> str | None`: why it cannot compute in a precision here, as a sentence; None
            if no precision needs a look before a graph is loaded.
        together: `(bundle, graphs, precision) -> DeviceEngines | None`: opens all graphs on one device, where arrays
            stay between them; None where that needs what is not installed. Without it they are opened one by one.
        cores: What of `Cores` can be set.
        bank_problem: `() -> str | None`: why the memory bank cannot lie beside the graph on its device, as a sentence;
            None if the backend has no kernels for a device.
        concurrent: Whether a session takes several requests at once, from several threads, each on its own.
        remote: Whether what computes is not of this machine: it may be away, and comes back without anything done here.
        rival: The package that brings it, where `auto` may take it in place of the CPU's own, if it is measured to be
            faster: found and never imported, as most bundles do not need it. None where `auto` does not.
    """

    name: str
    problem: str
    open: str
    place: str
    provider: str
    kernels: bool
    auto: str | None
    tolerances: Mapping[str, float]
    alone: str | None = None
    any_head: bool = False
    precision_problem: str | None = None
    together: str | None = None
    cores: tuple[str, ...] = ()
    bank_problem: str | None = None
    concurrent: bool = False
    remote: bool = False
    rival: str | None = None


_OPENVINO_CORES = {"cpu": ("threads", "streams"), "gpu": ("streams",), "npu": ()}


def _openvino(name: str, device: str) -> Backend:
    return Backend(
        name,
        problem=f"flawscope.runtime.backends.openvino_devices:{device}_problem",
        open=f"flawscope.runtime.backends.openvino:open_on_{device}",
        place="flawscope.runtime.doctor.openvino_profile:executed_nodes",
        provider=f"OpenVINO {device.upper()}",
        kernels=True,
        auto=None,
        # OpenVINO computes graphs of FP32 in BF16 on CPUs; what its other devices do was not measured.
        tolerances=_DEVICE_TOLERANCES | ({"bf16": _BF16_TOLERANCE} if device == "cpu" else {}),
        any_head=True,
        precision_problem="flawscope.runtime.backends.openvino_devices:cpu_precision_problem"
        if device == "cpu"
        else None,
        cores=_OPENVINO_CORES[device],
        rival="openvino" if device == "cpu" else None,
    )


_ROWS = (
    Backend(
        "cpu",
        problem="flawscope.runtime.backends.ort:cpu_problem",
        open="flawscope.runtime.backends.ort:open_on_cpu",
        place="flawscope.runtime.doctor.provider_profile:place_on_cpu",
        provider="CPUExecutionProvider",
        kernels=True,
        auto="no CUDA",
        tolerances=dict.fromkeys(_DEVICE_TOLERANCES, GOLDEN_TOLERANCE),
        any_head=True,
        cores=("threads",),
    ),
    Backend(
        "cuda",
        problem="flawscope.runtime.backends.ort:cuda_problem",
        open="flawscope.runtime.backends.ort_cuda:open_on_cuda",
        place="flawscope.runtime.doctor.provider_profile:place_on_cuda",
        provider="CUDAExecutionProvider",
        kernels=False,
        auto="ONNX Runtime offers CUDA",
        tolerances=_DEVICE_TOLERANCES,
        bank_problem="flawscope.runtime.backends.device:kernels_problem",
    ),
    # Never by `auto`: it may have to build an engine first, which takes minutes. That is for the user to decide.
    Backend(
        "tensorrt",
        problem="flawscope.runtime.backends.engine_session:tensorrt_problem",
        open="flawscope.runtime.backends.engine_session:open_engine",
        place="flawscope.runtime.doctor.provider_profile:engine_layers",
        provider="TensorRT engine",
        kernels=True,
        auto=None,
        tolerances=_DEVICE_TOLERANCES,
        alone="an engine has buffers of its own, and the bank beside it on the device",
        together="flawscope.runtime.backends.engine_session:open_engines",
        bank_problem="flawscope.runtime.backends.device:kernels_problem",
    ),
    # Patches come back from a device of OpenVINO too: there are no kernels of ours for it.
    _openvino("openvino", "cpu"),
    _openvino("openvino:gpu", "gpu"),
    _openvino("openvino:npu", "npu"),
    # What computes there is the server's word: tolerances are those of a device.
    Backend(
        "triton",
        problem="flawscope.runtime.client.session:server_problem",
        open="flawscope.runtime.client.session:open_served",
        place="flawscope.runtime.client.session:executed_nodes",
        provider="KServe v2 server",
        kernels=False,
        auto=None,
        tolerances=_DEVICE_TOLERANCES,
        alone="the server has a model of its own for each bundle",
        concurrent=True,
        remote=True,
    ),
)
ROWS = {row.name: row for row in _ROWS}  # in the order in which the command line lists them
ALIASES = {"openvino:cpu": "openvino"}
"""Other names of backends."""
BACKENDS = ("auto", *ROWS, *ALIASES)
"""Names that `choose_backend` accepts."""


def backend_row(name: str) -> Backend:
    """Return the row of a backend, not of `auto`.

    Raises:
        ArgumentError: If the name is unknown.
    """
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or name not in ROWS:
        raise ArgumentError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}.")
    return ROWS[name]


def backend_problem(name: str, precision: str = "fp32") -> str | None:
    """Return why a backend cannot be used here, or not in a precision, as a sentence; None if it can.

    Raises:
        ArgumentError: If the name is unknown.
        MissingExtra: If ONNX Runtime is not installed.
    """
    problem: str | None = methods.load(backend_row(name).problem)()
    return precision_problem(name, precision) if problem is None else problem


def is_there(name: str, precision: str = "fp32") -> bool:
    """Return whether a backend can be used here, in a precision; see `backend_problem`."""
    return backend_problem(name, precision) is None


def precision_problem(name: str, precision: str) -> str | None:
    """Return why a backend, which is there, cannot compute in a precision, as a sentence, or None if it can.

    Raises:
        ArgumentError: If the name is unknown.
    """
    row = backend_row(name)
    if precision not in row.tolerances:
        able = [other.name for other in ROWS.values() if precision in other.tolerances]
        return f"it does not compute in {precision}, which {' and '.join(able) or 'no backend'} can do."
    return None if row.precision_problem is None else methods.load(row.precision_problem)(precision)


def bank_problem(name: str) -> str | None:
    """Return why a backend with kernels for its device cannot keep a bank there, as a sentence; else None."""
    row = backend_row(name)
    return None if row.bank_problem is None else methods.load(row.bank_problem)()


def open_session(
    bundle: Bundle,
    graph: str,
    precision: str,
    backend: str,
    make_head: MakeDeviceHead | None = None,
    cores: Cores = OWN_CHOICE,
) -> Session:
    """Open a session of a graph on a resolved backend.

    Args:
        bundle: The opened bundle.
        graph: Name of the graph, such as `features` or `score`.
        precision: Precision of the graph.
        backend: Name of a backend, not `auto`.
        make_head: Puts the bank beside `features` on the device if the backend has kernels for one; the outputs of the
            session are then `anomaly_map` and `score`. None: the outputs of the graph.
        cores: Threads and streams.

    Raises:
        ArgumentError: If the bundle lacks the precision, or the backend has no such threads or streams.
        BackendError: If the backend cannot run the graph, does not compute in the precision, or has a `bank_problem`
            where there is `make_head`.
    """
    # Before the graph is asked for: one of FP32 under the name of another precision would run, and be called so.
    if precision not in backend_row(backend).tolerances:
        bundle.manifest.graphs_of(precision)  # raises where the bundle lacks it, which is said first
        raise BackendError(
            f"backend {backend}: {precision_problem(backend, precision)} Name that --backend, or another --precision."
        )
    check_cores(backend, cores)
    session: Session = methods.load(backend_row(backend).open)(bundle, graph, precision, make_head, cores)
    return session


def open_together(bundle: Bundle, graphs: Sequence[str], precision: str, backend: str) -> Any:
    """Open several graphs of a bundle on one device of a resolved backend, for sampling loops that run there.

    Returns:
        A `flawscope.runtime.backends.device_engines.DeviceEngines`; None where graphs are opened one by one, with
        `open_session`.

    Raises:
        ArgumentError: As `open_session`; BackendError too.
    """
    row = backend_row(backend)
    # What the backend does not compute in is refused by `open_session`, in its words.
    if row.together is None or precision not in row.tolerances:
        return None
    return methods.load(row.together)(bundle, graphs, precision)


def check_cores(backend: str, cores: Cores) -> None:
    """Raise ArgumentError if threads or streams are out of range, or a resolved backend has none to choose."""
    row = backend_row(backend)
    for name in cores.given():
        if name not in row.cores:
            having = ", ".join(other.name for other in ROWS.values() if name in other.cores)
            raise ArgumentError(
                f"{name}: backend {row.name} has none to choose. Leave it out, or use one that has: {having}."
            )
    cores.check()


OpenSession = Callable[[Bundle, str, str, str, MakeDeviceHead | None, Cores], Session]
"""`open_session`, or what takes its place, such as that of a pool of sessions."""


def golden_tolerance(backend: str, precision: str) -> float:
    """Return the largest relative difference of golden scores on a backend."""
    return backend_row(backend).tolerances[precision]
