"""The state of the machine around a measurement: clocks, power, load. It is only read, never changed.

A value that cannot be read is None, with a reason beside it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flawscope.errors import BackendError
from flawscope.runtime.engines.cuda_driver import bus_of

# Public, so that tests can put a folder of their own in place.
CPU_FOLDER = Path("/sys/devices/system/cpu")
CPU_INFO = Path("/proc/cpuinfo")


def machine_state() -> dict[str, Any]:
    """Return the processor's clocks and governor, the load average, and clocks and power of CUDA's first GPU."""
    return {"cpu": _cpu_state(), "load_average": _load_average(), "gpu": _gpu_state()}


def device_memory(backend: str) -> dict[str, Any]:
    """Return this process's share of the memory of CUDA's first GPU as `kib`, or None and the `reason`.

    Args:
        backend: Name of the backend in use; `cpu` uses none.
    """
    if backend == "cpu":
        return {"kib": None, "reason": "the backend cpu uses no device memory"}
    with _first_gpu() as (nvml, gpu, reason):
        if gpu is None:
            return {"kib": None, "reason": reason}
        try:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        except nvml.NVMLError as err:
            return {"kib": None, "reason": f"NVML does not list processes: {err}"}
        used_bytes = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        if not used_bytes or used_bytes[0] is None:
            # In a container the driver lists the process ids of the host. On Windows (WDDM) it knows no sizes.
            return {"kib": None, "reason": "NVML does not list this process with its memory"}
        return {"kib": int(used_bytes[0]) // 1024, "reason": None}


def _cpu_state() -> dict[str, Any]:
    """Return clocks in MHz over all cores and the governor."""
    # Virtual machines often have no cpufreq, but /proc/cpuinfo with clocks.
    readings = [_number(path) for path in sorted(CPU_FOLDER.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    clocks, source = [kilohertz / 1e3 for kilohertz in readings if kilohertz is not None], "cpufreq"
    if not clocks:
        clocks, source = _cpu_info_clocks(), "cpuinfo"
    governors = {text for path in CPU_FOLDER.glob("cpu[0-9]*/cpufreq/scaling_governor") if (text := _text(path))}
    return {
        "mhz": {"least": min(clocks), "mean": statistics.fmean(clocks), "most": max(clocks)} if clocks else None,
        "mhz_source": source if clocks else None,
        "mhz_reason": None if clocks else "neither cpufreq nor /proc/cpuinfo tells clocks",
        "governor": ", ".join(sorted(governors)) or None,
        "governor_reason": None if governors else "the system shows no cpufreq governor",
    }


def _cpu_info_clocks() -> list[float]:
    lines = (_text(CPU_INFO) or "").splitlines()
    return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]


def _load_average() -> list[float] | None:
    """Return the load averages over 1, 5 and 15 minutes."""
    try:
        return list(os.getloadavg())
    except OSError:
        return None


def _gpu_state() -> dict[str, Any]:
    names = ("name", "sm_mhz", "memory_mhz", "power_w", "temperature_c")
    with _first_gpu() as (nvml, gpu, reason):
        if gpu is None:
            return {**dict.fromkeys(names), "reason": reason}
        readings: tuple[Callable[[], Any], ...] = (
            lambda: _decoded(nvml.nvmlDeviceGetName(gpu)),
            lambda: int(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
            lambda: int(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
            lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,  # milliwatts
            lambda: int(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        )
        state: dict[str, Any] = dict.fromkeys(names)
        problems = []
        for name, read in zip(names, readings, strict=True):
            try:
                state[name] = read()
            except nvml.NVMLError as err:  # one by one: a Jetson, for one, supports some of these calls only
                problems.append(f"{name}: {err}")
        return {**state, "reason": "; ".join(problems) or None}


@contextlib.contextmanager
def _first_gpu() -> Iterator[tuple[Any, Any, str | None]]:
    """Yield the module of NVML, a handle of the first GPU and None, or no handle and the reason.

    The first as CUDA counts, on which backends compute: NVML counts by PCI bus and knows no `CUDA_VISIBLE_DEVICES`.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        yield None, None, 'the package nvidia-ml-py is not installed (pip install "flawscope[tensorrt]")'
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as err:
        yield nvml, None, f"no NVIDIA driver answers: {err}"
        return
    try:
        try:
            gpu, reason = nvml.nvmlDeviceGetHandleByPciBusId(bus_of(0)), None
        except BackendError as err:
            gpu, reason = None, str(err)
        except nvml.NVMLError as err:
            gpu, reason = None, f"NVML does not know the GPU that CUDA counts first: {err}"
        yield nvml, gpu, reason
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text and text.isdecimal() else None


def _decoded(value: str | bytes) -> str:
    """Return text; older versions of the bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value
