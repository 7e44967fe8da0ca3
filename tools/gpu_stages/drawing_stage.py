"""The sampling loop on a device, with stand-ins for its engines: the NumPy loop's latents at each step, graphs, memory.

On a CPU the same with stand-ins for PyCUDA and the driver, those of the tests, and the kernel in emulation.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpu_stages import engine_stand_in, stand_ins
from gpu_stages.drawing_reference import KINDS, Case, Given, Kind, cases, draw_given, expected, noises_of, table_of
from gpu_stages.drawing_stand_in import Drawer
from gpu_stages.driver import Driver
from gpu_stages.kernels import Array
from gpu_stages.report import Report

LATENTS, MOST = (4, 64, 64), 3
SMALL = (3, 5, 7)
"""Latents of the twin: no multiple of a warp or a block."""
COUNTS = (1, 3)
TURNS = 4
"""Times that a loop is opened, used and closed, of which the last ones must not take more memory than the first."""


class Setting(NamedTuple):
    """What loops are made of, and how their memory is counted.

    Attributes:
        copy: Copies within the device.
        latents: Channels, height and width.
        taken: Returns what is taken of the device's memory, in some unit.
        slack: By how much that may grow, as others may use the device.
    """

    copy: engine_stand_in.Copy
    latents: tuple[int, int, int]
    taken: Callable[[], int]
    slack: int


def on_card(report: Report) -> None:
    """All of it on the GPU."""
    driver = Driver()
    # The noise of one loop: if none were given back, it would be three times as much after the other turns.
    noise = 4 * math.prod(LATENTS) * MOST * noises_of(KINDS[0], cases(KINDS[0])[-1])
    setting = Setting(driver.copy_on, LATENTS, lambda: taken_on_card(driver), noise)
    run(report, setting)
    measure(report, setting)
    report.summary(f"{report.checks} checks against the NumPy loop, latents of {LATENTS}")


def on_cpu(report: Report) -> None:
    """The same with stand-ins; where the tests' helpers are here."""
    with stand_ins.standing(report) as (stand, _):

        def taken() -> int:
            return int(stand.allocated - stand.freed + stand.pinned - stand.unpinned + len(stand.graphs))

        run(report, Setting(stand_ins.copying(stand), SMALL, taken, 0))
    report.summary("with stand-ins for PyCUDA and the driver")


def taken_on_card(driver: Driver) -> int:
    """Return the bytes of the GPU's memory that are taken, by whomever."""
    from flawscope.runtime.backends.device import Device

    device, free, whole = Device(), ctypes.c_size_t(), ctypes.c_size_t()
    with device.current():
        driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(whole))
    device.close()
    return whole.value - free.value


def run(report: Report, setting: Setting) -> None:
    """Every kind of loop, opened again and again."""
    for kind in KINDS:
        found, after = cases(kind), []
        check_ready(report, kind, setting)
        for turn in range(TURNS):
            drawer = Drawer(kind, setting.latents, MOST, setting.copy)
            try:
                # The last one takes the most memory; all of them only once.
                for case in found if turn == 0 else found[-1:]:
                    check_case(report, drawer, case)
                    report.check(drawer.graphs == len(COUNTS), f"{kind.name}, {case.name}: {drawer.graphs} graphs")
                if turn == 0:
                    # Again in memory for more noise than it takes, and graphs of two numbers of steps.
                    check_case(report, drawer, found[0])
                    report.check(drawer.graphs == 2 * len(COUNTS), f"{kind.name}, back again: {drawer.graphs} graphs")
            finally:
                drawer.close()
                drawer.close()
            after.append(setting.taken())
        grown = after[-1] - after[0]
        report.row("memory", kind=kind.name, taken_after_each_turn=after)
        report.check(grown <= setting.slack, f"{kind.name}: memory: {grown} more after {TURNS} turns than after one")


def check_ready(report: Report, kind: Kind, setting: Setting) -> None:
    """Hold a loop that was made ready, as bundles make theirs, to the NumPy loop: every run is one of its graphs."""
    drawer, case = Drawer(kind, setting.latents, MOST, setting.copy), cases(kind)[0]
    try:
        drawer.make_ready(case)
        report.check(drawer.graphs == MOST, f"{kind.name}, made ready: {drawer.graphs} graphs")
        check_case(report, drawer, case._replace(name=f"{case.name}, made ready"))
        report.check(drawer.graphs == MOST, f"{kind.name}, made ready and run: {drawer.graphs} graphs")
    finally:
        drawer.close()


def check_case(report: Report, drawer: Drawer, case: Case) -> None:
    """Hold runs of one case to the NumPy loop: launch by launch first, unless it was made ready, then as a graph."""
    numbers = table_of(drawer.kind, case)["timestep"][:-1]
    for count in COUNTS:
        for turn in range(3):
            given = draw_given(np.random.default_rng(10 * turn + count), drawer.kind, case, count, drawer.latents)
            steps, timesteps, last = drawer.run(case, given)
            wanted, wanted_last = expected(drawer.kind, case, given)
            name = f"{drawer.kind.name}, {case.name}, {count} images, run {turn + 1}"
            check_equal(report, f"{name}, steps", steps, wanted)
            check_equal(report, f"{name}, after the last step", last, wanted_last)
            report.check(bool((timesteps == numbers[:, None]).all()), f"{name}: timesteps")
    report.check(drawer.loop.graph_problem is None, f"{drawer.kind.name}: {drawer.loop.graph_problem}")


def check_equal(report: Report, name: str, got: Array, wanted: Array) -> None:
    """Check for equality to the last bit, which the kernel promises: its operations are rounded as NumPy's are."""
    if got.shape != wanted.shape:
        report.check(False, f"{name}: expected {wanted.shape}, got {got.shape}")
        return
    away = float(np.abs(got.astype(np.float64) - wanted).max()) if np.isfinite(got).all() else float("nan")
    report.check(bool(np.array_equal(got, wanted)), f"{name}: not equal to the last bit, {away:.3g} at most")


def measure(report: Report, setting: Setting) -> None:
    """Milliseconds of a run as a graph, the copies of the stand-ins within it; what comes from the host is not."""
    for kind in KINDS:
        drawer = Drawer(kind, setting.latents, MOST, setting.copy)
        try:
            for case in cases(kind)[-1:]:
                for count in COUNTS:
                    given = draw_given(np.random.default_rng(count), kind, case, count, setting.latents)
                    times = [_milliseconds(drawer, case, given) for _ in range(22)][2:]
                    report.row("loops", kind=kind.name, case=case.name, images=count, median_ms=float(np.median(times)))
        finally:
            drawer.close()


def _milliseconds(drawer: Drawer, case: Case, given: Given) -> float:
    with drawer.engines.using() as device:
        drawer.enqueue(device, case, given)
        device.wait()
        started = time.perf_counter()
        drawer.loop.run(device, len(given.clean))
        device.wait()
        return 1000 * (time.perf_counter() - started)
