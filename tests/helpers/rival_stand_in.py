"""A rival of the backend `cpu` that is there on every machine: ONNX Runtime again, under the name of `openvino`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from flawscope.errors import BackendError, DeviceError
from flawscope.runtime import faster_backend
from flawscope.runtime.backends import table
from flawscope.runtime.backends.ort import OrtSession

problem: str | None = None
"""Why it is not there, or None."""
refusal = ""
"""Why it cannot load a graph; empty where it can."""
factor = 1.0
"""What its scores are multiplied by."""
failing_after: int | None = None
"""Inferences after which the device fails, or None."""
opened: list[RivalSession] = []
"""The sessions that were opened."""


class RivalSession:
    """A session of ONNX Runtime that can be wrong, and fail."""

    def __init__(self, session: OrtSession) -> None:
        self._session, self.is_closed, self._count = session, False, 0
        self.outputs = session.outputs
        opened.append(self)

    def infer(self, images: Any) -> dict[str, Any]:
        """Run the graph."""
        self._count += 1
        if failing_after is not None and self._count > failing_after:
            raise DeviceError("backend openvino: the device failed: it is gone")
        return {name: value * value.dtype.type(factor) for name, value in self._session.infer(images).items()}

    def run(self, inputs: Any) -> dict[str, Any]:
        """Run the graph."""
        return self._session.run(inputs)

    def close(self) -> None:
        """Release the session."""
        self.is_closed = True
        self._session.close()


def why_not() -> str | None:
    """The problem of the row."""
    return problem


def open_rival(bundle: Any, graph: str, precision: str, make_head: object = None, cores: object = None) -> RivalSession:
    """Open a session, as the row says."""
    if refusal:
        raise BackendError(refusal)
    return RivalSession(OrtSession(bundle.model(graph, precision), "cpu"))


def put_in_place(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let the row `openvino` be the stand-in for a test, with other values of this module, and `auto` take it."""
    stand_in = {"problem": None, "refusal": "", "factor": 1.0, "failing_after": None, "opened": []} | changes
    for name, value in stand_in.items():
        monkeypatch.setattr(f"{__name__}.{name}", value)
    row = replace(
        table.ROWS["openvino"],
        problem=f"{__name__}:why_not",
        open=f"{__name__}:open_rival",
        precision_problem=None,
        rival="json",  # a package that is always there
    )
    monkeypatch.setitem(table.ROWS, "openvino", row)
    monkeypatch.setenv("FLAWSCOPE_AUTO", "cpu,openvino")


STEADY = {"cpu": [20.0, 20.0, 20.0], "openvino": [10.0, 10.0, 10.0]}
"""Milliseconds of a measurement that finds the rival faster."""


def measured_as(
    monkeypatch: pytest.MonkeyPatch, times: Mapping[str, list[float]] = STEADY, asked: list[list[str]] | None = None
) -> None:
    """Let a measurement give these milliseconds; `asked` gets the names of what each one was of."""

    def stand_in(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        for run in runs.values():
            run()
        if asked is not None:
            asked.append(list(runs))
        return {name: times[name] for name in runs}

    monkeypatch.setattr(faster_backend, "in_turns", stand_in)
