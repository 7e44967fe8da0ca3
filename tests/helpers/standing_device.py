"""A GPU that is none with engines at hand and the CUDA kernels in emulation, for what keeps arrays on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_emulation import emulated_kernels
from cuda_stand_in import Stand, check_left, stand_in
from tensorrt_stand_in import KernelsOnStand, tensorrt_module

from flawscope.runtime.backends import engine_session, sampling_loop
from flawscope.runtime.engines import Target, TensorRT


@contextmanager
def standing_device(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Put a stand-in in the place of PyCUDA, the driver and TensorRT, and check afterwards that nothing is left."""
    stand = Stand()
    stand_in(stand, monkeypatch)
    tensorrt = TensorRT("tensorrt", "11.0", tensorrt_module(stand))
    emulated = emulated_kernels(tmp_path_factory)

    def engine(bundle: Any, graph: str, *_: object, **__: object) -> Any:
        data = str(bundle.path / bundle.graph_file(graph)).encode()
        return SimpleNamespace(stored=SimpleNamespace(load=lambda: data, plan=Path("engine.plan"), layers=None))

    monkeypatch.setattr(engine_session, "import_tensorrt", lambda: tensorrt)
    monkeypatch.setattr(engine_session, "current_target", lambda: Target("stand-in", (8, 9), "1"))
    monkeypatch.setattr(engine_session, "ensure_engine", engine)
    monkeypatch.setattr(engine_session.cpp_ext, "HAVE_CUDA", True)
    monkeypatch.setattr(sampling_loop, "CudaKernels", lambda: KernelsOnStand(stand, emulated))
    yield stand
    check_left(stand)


class Seen:
    """A session, of ours or of ONNX Runtime, that keeps what it is given."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs: list[dict[str, npt.NDArray[Any]]] = []

    def run(self, *arguments: Any) -> Any:
        self.inputs.append({name: np.array(value) for name, value in arguments[-1].items()})
        return self.session.run(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def seen_on_host(sessions: dict[str, Any], graph: str) -> Seen:
    """Return what a session is given from now on."""
    sessions[graph] = seen = Seen(sessions[graph])
    return seen


def seen_on_device(sessions: dict[str, Any], graph: str) -> Seen:
    """Return what an engine is given from now on, in whatever way it is launched."""
    engine = sessions[graph]._engine
    engine.session = seen = Seen(engine.session)
    return seen


def check_same(ours: Seen, theirs: Seen) -> None:
    """Check that two networks were given the same at each step, bit for bit."""
    assert len(ours.inputs) == len(theirs.inputs) > 0
    for number, (one, other) in enumerate(zip(ours.inputs, theirs.inputs, strict=True)):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], f"call {number}, {name}")
    ours.inputs.clear()
    theirs.inputs.clear()
