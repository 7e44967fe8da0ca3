"""Clocks, power and device memory: read where they are told, not known with a reason where they are not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cuda_stand_in import Stand
from cuda_stand_in_driver import driver_bindings

from flawscope import resident_memory
from flawscope.resident_memory import peak_kib, resident_kib
from flawscope.runtime.bench import machine_state as machine_state_module
from flawscope.runtime.bench.machine_state import device_memory, machine_state
from flawscope.runtime.engines import cuda_driver


class NVMLError(Exception):
    """What NVML raises."""


def nvml(**changes: object) -> SimpleNamespace:
    """Return a stand-in for pynvml with one GPU, of which this process holds 300 MiB."""

    calls = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByPciBusId": lambda bus: f"gpu {bus}",
        "nvmlDeviceGetName": lambda gpu: {"gpu 0000:09:00.0": b"NVIDIA L4"}[gpu],
        "nvmlDeviceGetClockInfo": lambda gpu, kind: {"sm": 2040, "memory": 6251}[kind],
        "nvmlDeviceGetPowerUsage": lambda gpu: 31_500,
        "nvmlDeviceGetTemperature": lambda gpu, kind: 54,
        "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [
            SimpleNamespace(pid=1, usedGpuMemory=1 << 40),
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=300 << 20),
        ],
        "NVML_CLOCK_SM": "sm",
        "NVML_CLOCK_MEM": "memory",
        "NVML_TEMPERATURE_GPU": 0,
        "NVMLError": NVMLError,
    }
    return SimpleNamespace(**{**calls, **changes})


@pytest.fixture(autouse=True)
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A driver with one GPU, which is not the first on the bus."""
    stand = Stand()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver_bindings(stand))
    cuda_driver.bindings.cache_clear()
    yield stand
    cuda_driver.bindings.cache_clear()


def refuse(*_: object) -> None:
    raise NVMLError("Not Supported")


def use(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)


def test_without_nvml_the_gpu_is_not_known_and_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None)
    gpu = machine_state()["gpu"]
    assert "nvidia-ml-py is not installed (pip install" in gpu.pop("reason")
    assert set(gpu.values()) == {None}
    assert device_memory("cuda")["kib"] is None
    assert "nvidia-ml-py" in device_memory("cuda")["reason"]


def test_what_nvml_tells_is_passed_on_in_named_units(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, nvml())
    expected = {"name": "NVIDIA L4", "sm_mhz": 2040, "memory_mhz": 6251, "power_w": 31.5, "temperature_c": 54}
    assert machine_state()["gpu"] == {**expected, "reason": None}
    assert device_memory("cuda") == {"kib": 300 * 1024, "reason": None}
    assert device_memory("cpu")["kib"] is None


def test_a_question_that_nvml_does_not_answer_costs_no_other_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, nvml(nvmlDeviceGetPowerUsage=refuse, nvmlDeviceGetComputeRunningProcesses=refuse))
    gpu = machine_state()["gpu"]
    assert (gpu["power_w"], gpu["sm_mhz"], gpu["temperature_c"]) == (None, 2040, 54)
    assert gpu["reason"] == "power_w: Not Supported"
    assert device_memory("cuda") == {"kib": None, "reason": "NVML does not list processes: Not Supported"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nvmlInit": refuse}, "no NVIDIA driver answers: Not Supported"),
        ({"nvmlDeviceGetHandleByPciBusId": refuse}, "NVML does not know the GPU that CUDA counts first: Not Supported"),
    ],
)
def test_no_driver_or_no_gpu_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], reason: str
) -> None:
    use(monkeypatch, nvml(**changes))
    assert machine_state()["gpu"]["reason"] == reason
    assert device_memory("cuda") == {"kib": None, "reason": reason}


def test_a_gpu_that_cuda_does_not_see_is_not_read(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> None:
    use(monkeypatch, nvml())
    stand.count = 0  # CUDA_VISIBLE_DEVICES is empty; NVML knows nothing of that
    reason = device_memory("cuda")["reason"]
    assert reason is not None
    assert reason.startswith("device: no NVIDIA driver answers")
    assert machine_state()["gpu"] == {**dict.fromkeys(machine_state()["gpu"]), "reason": reason}


@pytest.mark.parametrize("listed", [[], [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)]])
def test_a_process_that_nvml_does_not_see_has_no_figure(monkeypatch: pytest.MonkeyPatch, listed: list[object]) -> None:
    use(monkeypatch, nvml(nvmlDeviceGetComputeRunningProcesses=lambda gpu: listed))
    assert device_memory("cuda") == {"kib": None, "reason": "NVML does not list this process with its memory"}


def test_clocks_and_governor_come_from_cpufreq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for core, kilohertz in enumerate(("1200000", "3600000")):
        folder = tmp_path / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{kilohertz}\n")
        (folder / "scaling_governor").write_text("powersave\n")
    monkeypatch.setattr(machine_state_module, "CPU_FOLDER", tmp_path)
    cpu = machine_state()["cpu"]
    assert cpu["mhz"] == {"least": 1200.0, "mean": 2400.0, "most": 3600.0}
    assert (cpu["mhz_source"], cpu["governor"]) == ("cpufreq", "powersave")
    assert (cpu["mhz_reason"], cpu["governor_reason"]) == (None, None)


def test_without_cpufreq_clocks_come_from_cpuinfo_and_without_both_they_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_state_module, "CPU_FOLDER", tmp_path)
    monkeypatch.setattr(machine_state_module, "CPU_INFO", tmp_path / "cpuinfo")
    cpu = machine_state()["cpu"]
    assert (cpu["mhz"], cpu["governor"]) == (None, None)
    assert cpu["mhz_reason"] == "neither cpufreq nor /proc/cpuinfo tells clocks"
    assert cpu["governor_reason"] == "the system shows no cpufreq governor"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2599.998\nprocessor\t: 1\ncpu MHz\t\t: 2600.002\n")
    cpu = machine_state()["cpu"]
    assert cpu["mhz"]["mean"] == pytest.approx(2600.0)
    assert cpu["mhz_source"] == "cpuinfo"


_TAKE = """
from flawscope.resident_memory import peak_kib, resident_kib
before = resident_kib()
taken = bytearray(b"x") * (64 << 20)
print(before, resident_kib(), peak_kib())
"""


@pytest.mark.serial
def test_memory_that_is_taken_is_seen() -> None:
    if resident_kib() is None:
        pytest.skip("this system has no /proc/self/status")
    # A process of its own: in this one what others have left may be given back in the same moment.
    output = subprocess.run([sys.executable, "-c", _TAKE], check=True, capture_output=True, text=True).stdout
    before, after, peak = map(int, output.split())
    assert 60_000 < after - before < 80_000
    assert peak >= after


def test_a_status_without_the_line_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  123 kB\n")
    monkeypatch.setattr(resident_memory, "STATUS", tmp_path / "status")
    assert resident_kib() is None
    assert peak_kib() == 123
