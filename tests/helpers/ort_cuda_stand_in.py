"""ONNX Runtime's CUDA provider on the GPU of `cuda_stand_in`: graphs are computed by the CPU on bound addresses."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import onnxruntime
from cuda_stand_in import Stand
from cuda_stand_in_errors import Refused
from tensorrt_stand_in import OnDevice, view

CUDA = "CUDAExecutionProvider"
KNOWN = {
    "device_id",
    "use_tf32",
    "cudnn_conv_algo_search",
    "arena_extend_strategy",
    "gpu_mem_limit",
    "user_compute_stream",
}
"""Options of the provider that are used here, of those that ONNX Runtime documents. It refuses unknown ones, too."""

NO_WAIT = "disable_synchronize_execution_providers"


class CudaSession(OnDevice):
    """`InferenceSession` with the CUDA provider."""

    what = "session"

    def __init__(self, stand: Stand, model: bytes, options: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
        super().__init__(stand)
        ((name, given),) = providers
        assert name == CUDA
        assert set(given) <= KNOWN
        stand.wait_for_all()
        self.given, self.elsewhere, self.falls_back = given, stand.elsewhere, True
        options.log_severity_level = 4
        self.real = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __del__(self) -> None:
        if "user_compute_stream" in self.given:
            super().__del__()
        else:  # it makes the context current itself
            self.stand.wait_for_all()

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        parts = []
        for part in self.real.get_provider_graph_assignment_info():
            for node in part.get_nodes():
                provider = part.ep_name if node.op_type in self.elsewhere else CUDA
                parts.append(types.SimpleNamespace(ep_name=provider, get_nodes=lambda node=node: [node]))
        return parts

    def get_inputs(self) -> list[Any]:
        return list(self.real.get_inputs())

    def get_outputs(self) -> list[Any]:
        return list(self.real.get_outputs())

    def disable_fallback(self) -> None:
        """As the real one, which else makes itself anew with another provider where a run fails."""
        self.falls_back = False

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, iobinding: Binding, run_options: Any = None) -> None:
        assert not self.falls_back
        if self.stand.sticky:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        inputs, outputs = dict(iobinding.inputs), dict(iobinding.outputs)

        def work() -> None:
            results = self.real.run(list(outputs), {name: view(*place) for name, place in inputs.items()})
            for value, place in zip(results, outputs.values(), strict=True):
                view(*place)[...] = value

        try:
            stream = self.stand.streams[int(self.given["user_compute_stream"])]
            stream.launch((id(self), "graph"), work)
        except Refused as err:
            raise RuntimeError(f"CUDA failure {err.code}") from None
        if waits_itself(run_options):
            stream.finish()


def waits_itself(run_options: Any) -> bool:
    """Return whether a run ends with waiting for the stream, which is the default."""
    try:
        return run_options is None or run_options.get_run_config_entry(NO_WAIT) != "1"
    except RuntimeError:  # how it says that there is no such entry
        return True


class Binding:
    """`IOBinding`, of addresses on the device alone."""

    def __init__(self, session: CudaSession) -> None:
        self.session = session
        self.inputs: dict[str, tuple[int, tuple[int, ...], Any]] = {}
        self.outputs: dict[str, tuple[int, tuple[int, ...], Any]] = {}

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        self.inputs[name] = (buffer_ptr, tuple(shape), np.dtype(element_type))

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Any = None,
        buffer_ptr: int | None = None,
    ) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        assert buffer_ptr is not None
        self.outputs[name] = (buffer_ptr, tuple(shape), np.dtype(element_type))


def onnxruntime_with_cuda(stand: Stand) -> Any:
    """Return a module in place of `onnxruntime` that has the CUDA provider, on the stand-in's device.

    Its `opened` has, of each session on CUDA, how often libraries had been loaded before, and the provider's options.
    """
    module: Any = types.ModuleType("onnxruntime")
    module.__dict__.update({name: value for name, value in vars(onnxruntime).items() if not name.startswith("__")})
    module.get_available_providers = lambda: [CUDA, "CPUExecutionProvider"]
    module.preloaded, module.opened = [], []
    module.preload_dlls = lambda: module.preloaded.append(sys.stdout.write("Failed to load libcudnn.so.9\n"))

    def make(model: bytes, options: Any, providers: list[Any]) -> Any:
        if providers[0][0] != CUDA:
            return onnxruntime.InferenceSession(model, options, providers=providers)
        session = CudaSession(stand, model, options, providers)
        module.opened.append((len(module.preloaded), session.given))
        return session

    module.InferenceSession = make
    return module
