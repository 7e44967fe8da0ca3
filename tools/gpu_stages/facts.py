"""What the machine is: versions, clocks, and two rates that every other time is seen beside."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import subprocess
import time
from pathlib import Path

from gpu_stages.card import Card, Memory
from gpu_stages.here import program
from gpu_stages.report import Report

PACKAGES = (
    *("numpy", "msgspec", "opencv-python-headless", "torch", "cuda-bindings", "pycuda", "cupy-cuda13x"),
    *("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "nanobind", "cmake"),
)
ASKED = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,ecc.mode.current,pstate"
COPIED_BYTES = 1 << 30
PRODUCT = 8192


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, where they are here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def output_of(*command: str) -> str | None:
    """Return what a program prints, None where it is not here or fails."""
    path = program(command[0])
    if path is None:
        return None
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def named(line: str) -> dict[str, str]:
    """Return the values of a line of nvidia-smi by their names."""
    return dict(zip(ASKED.split(","), line.split(", "), strict=False))


def copy_rate(card: Memory, size: int, turns: int = 10) -> float:
    """Return bytes read and written in a second by copies within the device, in GB/s (10⁹)."""
    source, target = card.allocate(size), card.allocate(size)
    card.fill(source, 1, size)
    card.copy(target, source, size)
    card.wait()
    times = [card.milliseconds(lambda: card.copy(target, source, size)) for _ in range(turns)]
    card.free(source)
    card.free(target)
    return 2 * size / statistics.median(times) / 1e6


def on_card(report: Report) -> None:
    """Facts of the GPU, its driver and the toolkit."""
    card = Card()
    facts = card.driver.facts()
    report.put(**facts, free_bytes=card.free_bytes(), versions=versions())
    report.summary(f"{facts['gpu']}, {facts['compute_capability']}, {facts['multiprocessors']} multiprocessors")
    nvcc = output_of("nvcc", "--version")
    report.put(nvcc=nvcc.splitlines()[-1] if nvcc else None)
    answer = output_of("nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader")
    report.put(nvidia_smi=named(answer.splitlines()[0]) if answer else None)
    # Of memory that is free a quarter, for small GPUs.
    size = min(COPIED_BYTES, card.free_bytes() // 8)
    report.put(copy_gb_per_s=copy_rate(card, size), copied_bytes=size)
    card.close()
    if report.left_s < 10:
        report.leave_out("product in torch", "no time left")
        return
    rate, why = product_rate()
    report.put(product_tflops=rate)
    if why:
        report.leave_out("product in torch", why)


def product_rate(size: int = PRODUCT, turns: int = 10) -> tuple[float | None, str | None]:
    """Return the rate of a float16 product of random square matrices in torch, in TFLOP/s, or why there is none."""
    try:
        import torch
    except ImportError:
        return None, "torch is not installed"
    if not torch.cuda.is_available():
        return None, "this torch has no CUDA, or none that this driver serves"
    # Not of zeros: a GPU may be faster with them.
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(turns + 3):
        begin.record()
        _ = left @ right
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return 2e-9 * size**3 / statistics.median(times[3:]), None


def on_cpu(report: Report) -> None:
    """The same of a machine without a GPU."""
    import numpy as np

    report.put(processor=_processor(), versions=versions())
    nvcc = output_of("nvcc", "--version")
    report.put(nvcc=nvcc.splitlines()[-1] if nvcc else None)
    source = np.ones(1 << 26, np.uint8)
    target, times = np.empty_like(source), []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    report.put(copy_gb_per_s=2 * source.nbytes / statistics.median(times) / 1e9)
    report.summary(_processor())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
