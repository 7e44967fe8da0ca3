"""From a bundle to a running engine: one that fits is taken from the cache, else it is built and cached."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from flawscope import cpp_ext
from flawscope.bundle import Bundle
from flawscope.errors import BackendError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.device import SharedDevice, check_kernels, device_problem
from flawscope.runtime.backends.device_engines import DeviceEngines
from flawscope.runtime.backends.session import MakeDeviceHead
from flawscope.runtime.backends.tensorrt import TensorrtSession
from flawscope.runtime.engines import (
    BuildOptions,
    EngineCache,
    Stored,
    Target,
    current_target,
    graph_batches,
    import_tensorrt,
    wanted_options,
)
from flawscope.runtime.engines.ensure import ensure_engine
from flawscope.time_limit import unlimited

# Opened bundle -> its engines. A device that is opened anew gets the engine that it had: what lies in the cache by then
# may be another, or gone.
_LOADED: weakref.WeakKeyDictionary[Bundle, dict[tuple[str, str, str, str, Target, BuildOptions], Stored]] = (
    weakref.WeakKeyDictionary()
)


def tensorrt_problem() -> str | None:
    """Return why engines cannot run here, as a sentence, or None if they can."""
    try:
        import_tensorrt()
        current_target()
    except BackendError as err:
        return str(err)
    return device_problem()


def open_engine(
    bundle: Bundle,
    graph: str,
    precision: str,
    make_head: MakeDeviceHead | None = None,
    cores: Cores = OWN_CHOICE,  # its row has none to choose
) -> TensorrtSession:
    """Open a session for the engine of a graph on this machine's GPU; see `flawscope.runtime.backends.open_session`.

    Raises:
        ArgumentError: If the bundle lacks the precision.
        BackendError: If the engine cannot be built or loaded, or the bank cannot lie beside it: kernels are missing.
        DeviceError: If the device fails.
    """
    if make_head is not None:
        check_kernels("tensorrt")
    return _open(bundle, graph, precision, make_head, None)


def open_engines(bundle: Bundle, graphs: Sequence[str], precision: str) -> DeviceEngines | None:
    """Open several graphs on one device, with the kernels between them; see `open_together`.

    Returns:
        The engines; None without CUDA kernels: arrays go through the host then, between sessions of `open_engine`.

    Raises:
        ArgumentError: As `open_engine`; BackendError and DeviceError too.
    """
    if not cpp_ext.HAVE_CUDA:
        return None

    def open_one(graph: str, shared: SharedDevice) -> TensorrtSession:
        session = _open(bundle, graph, precision, None, shared)
        bundle.forget()  # graphs of a generator are gigabytes, and no session is opened a second time
        return session

    return DeviceEngines(graphs, open_one)


def _open(
    bundle: Bundle, graph: str, precision: str, make_head: MakeDeviceHead | None, shared: SharedDevice | None
) -> TensorrtSession:
    manifest = bundle.manifest
    tensorrt = import_tensorrt()
    options = wanted_options(manifest, graph)
    target = current_target()
    place = (graph, precision, tensorrt.name, tensorrt.version, target, options)
    loaded = _LOADED.setdefault(bundle, {})
    if place not in loaded:
        with unlimited():  # a build takes minutes
            loaded[place] = ensure_engine(
                bundle, graph, tensorrt, target, options, EngineCache(), precision=precision, any_tuning=True
            ).stored
    stored = loaded[place]
    return TensorrtSession(
        stored.load(),
        tensorrt,
        graph_batches(manifest, graph),
        make_head,
        name=str(stored.plan),
        layers=stored.layers,
        graphs=shared is None,  # what is shared is captured by the loop around it
        shared=shared,
    )
