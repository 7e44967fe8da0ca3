"""From a bundle to a running engine: one that fits is taken from the cache, else it is built and cached."""

from __future__ import annotations

import weakref

from flawscope import cpp_ext
from flawscope.bundle import Bundle
from flawscope.errors import BackendError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.device import device_problem
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
        BackendError: If the engine cannot be built or loaded.
        DeviceError: If the device fails.
    """
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
    # Without CUDA kernels the patches are copied back, for the CPU's kernels.
    device_head = make_head if cpp_ext.HAVE_CUDA else None
    return TensorrtSession(
        stored.load(),
        tensorrt,
        graph_batches(manifest, graph),
        device_head,
        name=str(stored.plan),
        layers=stored.layers,
    )
