"""Measure a bundle that draws defects: images per second, and the time of one by the graphs that it goes through."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.resident_memory import peak_kib, resident_kib
from flawscope.runtime.backends import Session
from flawscope.runtime.bench.machine_state import device_memory, machine_state
from flawscope.runtime.bench.measurement import machine
from flawscope.runtime.bench.rounds import Record, check_seconds, percentiles
from flawscope.runtime.synthesis.draw_options import DrawOptions, DrawOrder
from flawscope.runtime.synthesis.synthesizer import Synthesizer

__all__ = ["DRAWING_STAGES", "bench_drawing"]

_GRAPHS = ("text", "encode", "denoise", "decode")
DRAWING_STAGES = (*_GRAPHS, "rest", "total")
"""Time in each graph, outside of them, and of all."""
_LEAST_ROUNDS = 3  # a large generator takes minutes for an image on a CPU
_ANY_DEFECT = "scratch"  # a base model that has learned none draws any name
NOT_ON_HOST = "the graphs are run on the device without coming back to the host between them"


class _GraphClock:
    """Sums of the time in each graph since the last reset, and how often each was called."""

    def __init__(self) -> None:
        self.milliseconds = dict.fromkeys(_GRAPHS, 0.0)
        self.calls = dict.fromkeys(_GRAPHS, 0)

    def reset(self) -> None:
        """Begin anew."""
        for name in _GRAPHS:
            self.milliseconds[name], self.calls[name] = 0.0, 0

    def wrap(self, name: str, session: Session) -> Session:
        """Return a session that counts for this graph."""
        return _ClockedSession(self, name, session)


class _ClockedSession:
    """A session whose calls are timed."""

    def __init__(self, clock: _GraphClock, name: str, session: Session) -> None:
        self._clock, self._name, self._session = clock, name, session
        self.outputs = session.outputs

    def infer(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on a batch of images uint8 [N, H, W, 3]."""
        return self._timed(lambda: self._session.infer(images))

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on several inputs."""
        return self._timed(lambda: self._session.run(inputs))

    def close(self) -> None:
        """Release the device's memory."""
        self._session.close()

    def _timed(self, call: Callable[[], dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
        before = time.perf_counter()
        outputs = call()
        self._clock.milliseconds[self._name] += 1e3 * (time.perf_counter() - before)
        self._clock.calls[self._name] += 1
        return outputs


def bench_drawing(
    synthesizer: Synthesizer,
    *,
    options: DrawOptions | None = None,
    batch: int = 1,
    seconds: float = 10.0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Measure from a normal image and a box to the drawn image and the verdict of the filter.

    Every round draws on other images with other noise, so that nothing that is kept of an image is used again. What is
    kept of texts is: the first round, which counts by itself, has to encode them. Images that the filter rejects count
    as well.

    Args:
        synthesizer: The loaded bundle; measuring leaves clocks around its sessions.
        options: How to draw; None for the bundle's own steps and the defaults of `DrawOptions`.
        batch: Images drawn at once.
        seconds: Measuring time; at least this long and at least 3 rounds.
        progress: Called with the completed share, 0 to 1.

    Returns:
        Milliseconds of a batch: of the first round, and percentiles of the others, by stage (`DRAWING_STAGES`; None
        where the graphs do not come back to the host, with a reason) and in all; calls of the denoiser and milliseconds
        of one; images per second, seconds per image, memory in KiB, machine and state.

    Raises:
        ArgumentError: If batch, seconds or options are out of range.
        DeviceError: If the device fails.
    """
    synthesizer.check_batch(batch)
    check_seconds(seconds)
    chosen = (options or DrawOptions()).resolved(synthesizer.head)
    chosen.sampling(synthesizer.head)  # only to raise
    loaded_kib, before = resident_kib(), machine_state()
    clock = _GraphClock()
    synthesizer.wrap_sessions(clock.wrap)
    first = _round(synthesizer, clock, chosen, batch, 0)
    calls = clock.calls["denoise"]
    rounds, elapsed = _rounds(synthesizer, clock, chosen, batch, seconds, first[-1], progress)
    total = rounds.rows[:, -1]
    # On a device only the texts may go through the sessions: times of the other graphs would then be zeros.
    stages = DRAWING_STAGES if calls else ("total",)
    columns = {stage: DRAWING_STAGES.index(stage) for stage in stages}
    latency_ms = {stage: percentiles(rounds.rows[:, column]) for stage, column in columns.items()}
    manifest = synthesizer.manifest
    return {
        "bundle": manifest.name,
        "digest": manifest.digest,
        "method": manifest.method,
        "precision": synthesizer.precision,
        "backend": synthesizer.backend,
        "backend_reason": synthesizer.backend_reason,
        "batch": batch,
        "steps": chosen.steps,
        "solver": chosen.solver,
        "rounds": len(rounds),
        "seconds": round(elapsed, 3),
        "first_ms": {stage: first[column] for stage, column in columns.items()},
        "latency_ms": latency_ms,
        "stages_reason": None if calls else NOT_ON_HOST,
        "denoiser_calls": calls or None,
        "denoiser_call_ms": latency_ms["denoise"]["p50"] / calls if calls else None,
        "images_per_second": float(batch * len(rounds) / (total.sum() / 1e3)),
        "seconds_per_image": float(total.sum() / 1e3 / (batch * len(rounds))),
        "memory": _memory(loaded_kib, synthesizer.backend),
        "input": list(manifest.input.size),
        "machine": machine(),
        "state": {"before": before, "after": machine_state()},
    }


def _memory(loaded_kib: int | None, backend: str) -> dict[str, Any]:
    return {"host": {"rss_after_load_kib": loaded_kib, "peak_kib": peak_kib()}, "device": device_memory(backend)}


def _rounds(
    synthesizer: Synthesizer,
    clock: _GraphClock,
    options: DrawOptions,
    batch: int,
    seconds: float,
    first_ms: float,
    progress: Callable[[float], None] | None,
) -> tuple[Record, float]:
    """Draw batches for so many seconds, the first of which took so long; return their times, and the seconds."""
    rounds = Record(len(DRAWING_STAGES), round(1.5e3 * seconds / first_ms))
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or len(rounds) < _LEAST_ROUNDS:
        rounds.add(_round(synthesizer, clock, options, batch, len(rounds) + 1))
        if progress is not None:
            progress(min(1.0, elapsed / seconds))
    return rounds, elapsed


def _round(synthesizer: Synthesizer, clock: _GraphClock, options: DrawOptions, batch: int, number: int) -> list[float]:
    """Draw one batch; return the milliseconds of `DRAWING_STAGES`."""
    orders = [_order(synthesizer, batch * number + index) for index in range(batch)]
    clock.reset()
    before = time.perf_counter()
    synthesizer.draw(orders, options, batch=batch)
    total = 1e3 * (time.perf_counter() - before)
    graphs = [clock.milliseconds[name] for name in _GRAPHS]
    return [*graphs, total - sum(graphs), total]


def _order(synthesizer: Synthesizer, seed: int) -> DrawOrder:
    """Return an order on a grey image with noise of its own, of the model's size, with a box of a quarter of its sides.

    What an image shows does not change how long it takes; that it is another one does, where images are kept.
    """
    height, width = synthesizer.manifest.input.size
    image = np.random.default_rng(seed).integers(112, 144, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.bool_)
    mask[3 * height // 8 : 5 * height // 8, 3 * width // 8 : 5 * width // 8] = True
    defects = synthesizer.defects
    name = f"{defects[0].category}/{defects[0].name}" if defects else _ANY_DEFECT
    return DrawOrder(image, mask, name, seed=seed)
