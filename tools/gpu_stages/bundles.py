"""A bundle on the backends of NVIDIA's GPUs, by the command line, as users run it. Written, not run on a GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_stages.document import ROOT
from gpu_stages.report import Absent, Report

MAKERS = ("torch", "timm", "onnx", "onnxscript", "sklearn")
"""What making a bundle takes."""


def onnxruntime(report: Report) -> None:
    """ONNX Runtime's CUDA."""
    on_backend(report, "cuda")


def tensorrt(report: Report) -> None:
    """TensorRT or TensorRT-RTX: the engine first."""
    bundle, _ = bundle_of(report)
    if flawscope(report, "engine build", "engine", "build", bundle) is not None:
        on_backend(report, "tensorrt")


def on_backend(report: Report, backend: str) -> None:
    """Check the golden scores of a bundle on a backend, ask `doctor` for its nodes, and measure it beside `cpu`."""
    bundle, images = bundle_of(report)
    if images:
        scores = {name: scores_of(report, bundle, images, name) for name in ("cpu", backend)}
        if None not in scores.values():
            pairs = zip(*scores.values(), strict=True)
            largest = max(abs(one - other) / abs(one) for one, other in pairs)  # type: ignore[operator]
            report.put(largest_relative_difference=largest)
    # Whatever loads a bundle holds its golden images to their scores first, and fails where they differ.
    doctor = flawscope(report, "doctor", "doctor", bundle, "--backend", backend, "--json")
    if doctor is not None:
        report.put(doctor=json.loads(doctor))
    for name, arguments in (
        ("bench", ("--backend", backend)),
        ("compare", ("--compare", "cpu", "--compare", backend, "--no-cold-start")),
    ):
        if report.left_s < 15:
            report.leave_out(name, "no time left")
            continue
        figures = report.work / f"{name}-{backend}.json"
        figures.unlink(missing_ok=True)
        done = flawscope(report, name, "bench", bundle, *arguments, "--seconds", "3", "--json", figures)
        if done is not None:
            report.put(**{name: json.loads(figures.read_text(encoding="utf-8"))})
    report.summary(f"a bundle on {backend}")


def scores_of(report: Report, bundle: Path, images: list[Path], backend: str) -> list[float] | None:
    """Return the scores of images on a backend, None where it fails."""
    text = flawscope(report, f"score on {backend}", "score", bundle, *images, "--backend", backend, "--json")
    return None if text is None else [float(json.loads(line)["score"]) for line in text.splitlines()]


def flawscope(report: Report, name: str, *arguments: object) -> str | None:
    """Run a command; return its standard output, None where it fails, which counts as a check that does not hold."""
    command = [sys.executable, "-m", "flawscope", *map(str, arguments)]
    limit = max(1.0, report.left_s)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        report.check(False, f"{name}: not done after {limit:.0f} s")
        return None
    last = (done.stderr.strip().splitlines() or [""])[-1]
    holds = report.check(done.returncode == 0, f"{name}: status {done.returncode}: {last[:300]}")
    return done.stdout if holds else None


def bundle_of(report: Report) -> tuple[Path, list[Path]]:
    """Return the bundle to work with and images for it: none for one that was named, as it has golden images.

    Raises:
        Absent: If none was named and none can be made.
    """
    if report.bundle is not None:
        return report.bundle, []
    folder = report.work / "bundle"
    if not (folder / "steel.flaw").exists():
        lacking = [name for name in MAKERS if importlib.util.find_spec(name) is None]
        if lacking:
            raise Absent(f"no --bundle, and no {' and '.join(lacking)} to make one with")
        sys.path.insert(0, str(ROOT / "tools"))
        from lean_install import make_bundle

        folder.mkdir(parents=True, exist_ok=True)
        make_bundle(folder)
    images: list[Any] = sorted((folder / "data").glob("steel/test/*/*.png"))[:8]
    return folder / "steel.flaw", images
