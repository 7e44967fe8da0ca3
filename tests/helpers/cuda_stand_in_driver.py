"""The CUDA driver's bindings for Python on the GPU of `cuda_stand_in`."""

from __future__ import annotations

import functools
import threading
import types
from typing import TYPE_CHECKING, Any

from cuda_stand_in_errors import CUresult, Refused, answering_into

if TYPE_CHECKING:
    from cuda_stand_in import Context, Stand


def driver_bindings(stand: Stand) -> types.ModuleType:
    """Return a module in place of `cuda.bindings.driver`: functions return a status, and what else they give."""
    module: Any = types.ModuleType("cuda.bindings.driver")
    module.CUresult = CUresult
    module.CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")
    module.CUdevice_attribute = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )

    answering = functools.partial(answering_into, module)

    @answering(0)
    def cuInit(Flags: int) -> None:
        if not stand.count:
            raise Refused(100)

    @answering(1)
    def cuDeviceGetCount() -> int:
        return stand.count

    @answering(1)
    def cuDeviceGet(ordinal: int) -> int:
        return ordinal

    @answering(1)
    def cuDeviceGetName(length: int, dev: int) -> bytes:
        return f"Orin {dev}".encode() + b"\0" * (length - 6)

    @answering(1)
    def cuDeviceGetPCIBusId(length: int, dev: int) -> bytes:
        return f"0000:0{9 - dev}:00.0".encode() + b"\0" * (length - 12)  # the first is not the first on the bus

    @answering(1)
    def cuDeviceGetAttribute(attrib: int, dev: int) -> int:
        return {75: 8, 76: 7}[attrib]

    @answering(1)
    def cuDriverGetVersion() -> int:
        return 12060

    @answering(0)
    def cuCtxPushCurrent(ctx: Context) -> None:
        if stand.sticky and stand.stubborn:
            raise Refused(stand.sticky)
        stand.stacks()[0].append(ctx)

    @answering(1)
    def cuCtxPopCurrent() -> Context:
        return stand.stacks()[0].pop()  # type: ignore[no-any-return]

    @answering(2)
    def cuMemGetInfo() -> tuple[int, int]:
        stand.check()
        return 1, 2

    @answering(0)
    def cuStreamSynchronize(hStream: int) -> None:
        stand.check()
        stand.streams[hStream].finish()
        stand.check()

    @answering(0)
    def cuStreamBeginCapture(hStream: int, mode: str) -> None:
        assert mode == "thread local"
        stand.check()
        if not stand.capturable:
            raise Refused(900)
        stream = stand.streams[hStream]
        stream.capturing, stream.recording = threading.get_ident(), []

    @answering(1)
    def cuStreamEndCapture(hStream: int) -> int:
        stand.check()
        found = stand.streams[hStream]
        recording, found.recording, found.capturing = found.recording, None, 0
        if recording is None:
            raise Refused(901)
        number = 1 + max(stand.graphs, default=0)
        stand.graphs[number] = (found, recording)
        return number

    @answering(1)
    def cuGraphInstantiate(hGraph: int, flags: int) -> int:
        stand.check()
        stand.graphs[hGraph + 1] = stand.graphs[hGraph]
        return hGraph + 1

    @answering(0)
    def cuGraphUpload(hGraphExec: int, hStream: int) -> None:
        stand.check()

    @answering(0)
    def cuGraphDestroy(hGraph: int) -> None:
        stand.check()
        del stand.graphs[hGraph]

    @answering(0)
    def cuGraphExecDestroy(hGraphExec: int) -> None:
        stand.check()
        del stand.graphs[hGraphExec]

    @answering(0)
    def cuGraphLaunch(hGraphExec: int, hStream: int) -> None:
        stand.check()
        found, recorded = stand.graphs[hGraphExec]
        assert found.handle == hStream
        stand.launches += 1
        found.waiting += recorded

    return module  # type: ignore[no-any-return]
