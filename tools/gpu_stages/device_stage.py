"""Sessions on a device as a line has them, with a stand-in for the engine: batches, threads, reopening, failures.

On a CPU the same with stand-ins for PyCUDA and the driver, those of the tests, and the kernels in emulation.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from gpu_stages import engine_stand_in, stand_ins
from gpu_stages.driver import Driver
from gpu_stages.kernels import Array
from gpu_stages.report import Report

GRID = (28, 28)
ROWS = 4000
MOST = 8
"""Largest batch: memory that serves it must serve every smaller one."""


class Setting(NamedTuple):
    """What sessions are made of.

    Attributes:
        copy: Copies within the device.
        grid: Rows and columns of the patch grid.
        bank: float32 [M, CHANNELS].
        most: Largest batch.
    """

    copy: engine_stand_in.Copy
    grid: tuple[int, int]
    bank: Array
    most: int

    def patches(self, rng: np.random.Generator, count: int) -> Array:
        """Return float32 [count, P, CHANNELS], N(0, 1)."""
        return rng.standard_normal((count, self.grid[0] * self.grid[1], engine_stand_in.CHANNELS), np.float32)


def open_session(setting: Setting, graphs: bool = True) -> Any:
    """Return a `TensorrtSession` with the bank beside the stand-in; its outputs are maps and scores."""
    from flawscope.runtime.backends.tensorrt import TensorrtSession
    from flawscope.runtime.engines.tensorrt_modules import TensorRT
    from flawscope.runtime.scorers.bank_device import PatchcoreDevice

    def finish(squared: Array, rows: Array, patch_at: object) -> tuple[Array, Array]:
        distances = np.sqrt(squared)
        return distances.reshape(-1, *setting.grid), distances.max(1)

    def make_head(device: Any, most: int) -> Any:
        return PatchcoreDevice(device, finish, setting.grid, {"bank": setting.bank}, most)

    part = engine_stand_in.patches_part(setting.grid[0] * setting.grid[1], setting.copy)
    tensorrt = TensorRT("tensorrt", "stand-in", engine_stand_in.module({b"": part}))
    return TensorrtSession(b"", tensorrt, range(1, setting.most + 1), make_head, graphs=graphs)


def wanted_maps(setting: Setting, patches: Array) -> Array:
    """Return the distances float64 [N, *grid] to the nearest row."""
    flat = patches.reshape(-1, patches.shape[2]).astype(np.float64)
    bank = setting.bank.astype(np.float64)
    squared = (flat**2).sum(1)[:, None] + (bank**2).sum(1)[None] - 2 * flat @ bank.T
    return np.sqrt(np.maximum(squared.min(1), 0)).reshape(-1, *setting.grid)


def check_batch(report: Report, setting: Setting, session: Any, patches: Array, what: str) -> None:
    """Hold maps and scores of one batch to float64."""
    found = session.infer(engine_stand_in.images_of(patches))
    wanted = wanted_maps(setting, patches)
    close = bool(np.allclose(found["anomaly_map"], wanted, rtol=1e-3, atol=1e-3))
    close = close and bool(np.allclose(found["score"], wanted.max((1, 2)), rtol=1e-3))
    report.check(close, f"{what}, a batch of {len(patches)}")


def check_sessions(report: Report, setting: Setting) -> None:
    """Every batch size with graphs and without, closing and opening again."""
    rng = np.random.default_rng(0)
    for graphs in (True, False):
        session = open_session(setting, graphs)
        if graphs:
            report.check(session.graph_problem is None, f"graphs: {session.graph_problem}")
        for count in (*range(1, setting.most + 1), 1, setting.most):
            check_batch(
                report, setting, session, setting.patches(rng, count), "with graphs" if graphs else "without graphs"
            )
        session.close()
        session.close()
    for turn in range(3):
        session = open_session(setting)
        check_batch(report, setting, session, setting.patches(rng, 2), f"opened again, turn {turn}")
        session.close()


def check_threads(report: Report, setting: Setting) -> None:
    """Two sessions in two threads: one captures its graphs while the other copies."""
    rng = np.random.default_rng(3)
    prepared = [[setting.patches(rng, 1 + turn % setting.most) for turn in range(6)] for _ in range(2)]
    problems: list[str] = []

    def work(mine: list[Array]) -> None:
        try:
            own = open_session(setting)
            for batch in mine:
                check_batch(report, setting, own, batch, "in one of two threads")
            own.close()
        except Exception as err:  # whatever it is, the other thread goes on and the stage says it
            problems.append(f"{type(err).__name__}: {err}")

    threads = [threading.Thread(target=work, args=(mine,)) for mine in prepared]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.check(not problems, f"two threads: {problems}")


def check_out_of_memory(report: Report) -> None:
    """An allocation that is too large is an error that says so, and the device works on."""
    from flawscope.errors import DeviceError
    from flawscope.runtime.backends.device import Device

    device = Device()
    try:
        with device.current():
            device.allocate(1 << 50)
        report.check(False, "a pebibyte could be allocated")
    except DeviceError as err:
        report.check("out of memory" in str(err), f"out of memory: {err}")
    with device.current():
        array, back = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
        device.fetch(back, device.upload(array))
    report.check(bool((array == back).all()), "the device works on after it was out of memory")
    device.close()


def on_card(report: Report) -> None:
    """All of it on the GPU."""
    copy = Driver().copy_on
    bank = np.random.default_rng(1).standard_normal((ROWS, engine_stand_in.CHANNELS), np.float32)
    setting = Setting(copy, GRID, bank, MOST)
    check_sessions(report, setting)
    check_threads(report, setting)
    check_out_of_memory(report)
    measure(report, setting)
    # Last, and in a process of its own: nothing works in one whose device has failed so.
    command = [sys.executable, "-m", "gpu_stages.bad_address"]
    limit = max(1.0, report.left_s)
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    said = (done.stdout + done.stderr).strip()[-600:]
    report.put(bad_address=said)
    report.check(done.returncode == 0, f"a bad address: status {done.returncode}: {said}")
    report.summary(f"batches of 1 to {MOST}, threads, failures")


def measure(report: Report, setting: Setting) -> None:
    """Milliseconds of a batch through the session, copies of images and results included."""
    session = open_session(setting)
    rng = np.random.default_rng(2)
    for count in (1, setting.most):
        images = engine_stand_in.images_of(setting.patches(rng, count))
        times = []
        for _ in range(30):
            started = time.perf_counter()
            session.infer(images)
            times.append(1000 * (time.perf_counter() - started))
        report.row("sessions", batch=count, median_ms=float(np.median(times)))
    session.close()


def on_cpu(report: Report) -> None:
    """The same with stand-ins but for threads, which would meet in the emulation; where the tests' helpers are here."""
    with stand_ins.standing(report) as (stand, _):
        bank = np.random.default_rng(1).standard_normal((50, engine_stand_in.CHANNELS), np.float32)
        check_sessions(report, Setting(stand_ins.copying(stand), (2, 3), bank, 3))
    report.summary("with stand-ins for PyCUDA and the driver")
