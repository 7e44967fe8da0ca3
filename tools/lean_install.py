"""Check the lean install: size, import time, no torch, and scores equal to the last bit to the full environment.

    python tools/lean_install.py

Makes a virtual environment under build/lean with `flawscope[cpu]` and nothing else, makes a small bundle with the full
environment, and scores the same images in both. Then adds images to its bank in the lean environment, scores again in
both, and takes them out. Then adds the extra `openvino` and scores in both on that backend, which before was one line
of an error. Then adds the extra `synth` and draws the same defect in both. Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MB = 400
LIMIT_S = 0.5

_IMPORT = "import time; s = time.perf_counter(); import flawscope.runtime; print(time.perf_counter() - s)"


def run(*command: object, **environment: str) -> str:
    """Run a command; return its standard output, or exit with its error."""
    process = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if process.returncode:
        sys.exit(f"failed ({process.returncode}): {' '.join(map(str, command))}\n{process.stdout}{process.stderr}")
    return process.stdout


def make_environment(folder: Path) -> Path:
    """Install `flawscope[cpu]` in a new environment, as a wheel as on a device; return its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # The CUDA kernels take minutes to compile, and no GPU is used here.
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{ROOT}[cpu]", FLAWSCOPE_CUDA="OFF")
    run(python, "-m", "pip", "uninstall", "-q", "-y", "pip", "setuptools")  # not part of what a device needs
    return python


def make_bundle(folder: Path) -> tuple[Path, list[Path]]:
    """Train, export and calibrate a small detector with this environment; return the bundle and images."""
    flawscope = (sys.executable, "-m", "flawscope")
    data, bundle = folder / "data", folder / "steel.flaw"
    run(*flawscope, "data", "demo", data, "--kind", "steel", "--size", 128, "--train", 60)
    run(*flawscope, "train", "patchcore", "--data", data, "--image-size", 128, "--out", folder / "run")
    run(*flawscope, "export", folder / "run", "--out", bundle)
    run(*flawscope, "calibrate", bundle, "--data", data)
    return bundle, sorted(data.glob("steel/test/*/*.png"))


def scores(python: Path | str, bundle: Path, images: list[Path], path: str, backend: str = "cpu") -> list[float]:
    """Score images in one environment. JSON has the shortest text that gives back the same float, so no bit is lost."""
    lines = run(python, "-m", "flawscope", "score", bundle, *images, "--backend", backend, "--json", "--path", path)
    return [json.loads(line)["score"] for line in lines.splitlines()]


def keep_up(python: Path, bundle: Path, folder: Path) -> tuple[Path, bool]:
    """Add images to the bank of a bundle and take them out, with the lean Python.

    Returns:
        The bundle with the images, and whether taking them out gave back every file of the one before.
    """
    bank = (python, "-m", "flawscope", "bundle", "bank")
    more, again = folder / "more.flaw", folder / "again.flaw"
    demo = ("data", "demo", folder / "new", "--kind", "steel", "--size", 128, "--seed", 7, "--train", 100)
    run(sys.executable, "-m", "flawscope", *demo)
    run(*bank, "add", bundle, folder / "new" / "steel" / "train" / "good", "--out", more, "--all-good")
    run(*bank, "remove", more, "--number", 1, "--out", again)
    # Without thresholds every image would be a fault.
    run(python, "-m", "flawscope", "calibrate", more, "--image-threshold", 40, "--pixel-threshold", 40)
    return more, files(bundle) == files(again)


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by their names."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add_extra(python: Path, extra: str) -> None:
    """Add the packages of an extra with the pip of this environment: the lean one has none any more."""
    declared = importlib.metadata.requires("flawscope") or []
    packages = [text.partition(";")[0].strip() for text in declared if text.endswith(f'extra == "{extra}"')]
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", *packages)


def check_openvino(python: Path, bundle: Path, images: list[Path]) -> bool:
    """Check the backend `openvino` without its extra and, once this has added it, with it; return whether all holds."""
    command = (python, "-m", "flawscope", "score", bundle, *images, "--backend", "openvino")
    refused = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    said = refused.stderr.strip()
    is_told = refused.returncode == 2 and "\n" not in said and 'pip install "flawscope[openvino]"' in said
    print(f"--backend openvino without its extra: {said if is_told else f'WRONG: {refused.returncode} {said}'}")
    add_extra(python, "openvino")
    is_light = not has_torch(python)
    print(f"extra openvino: {'no torch' if is_light else 'BRINGS TORCH'}")
    holds = is_told and is_light
    for path in ("graph", "kernel"):
        full, lean = (scores(which, bundle, images, path, "openvino") for which in (sys.executable, python))
        holds &= full == lean
        print(f"{len(images)} scores by the {path} on openvino: {'equal' if full == lean else 'DIFFERENT'}")
    report = json.loads(run(python, "-m", "flawscope", "doctor", bundle, "--backend", "openvino", "--json"))
    named = report["backends"]["openvino"]["available"] and report["bundle"]["backend"] == "openvino"
    providers = ", ".join(report["bundle"]["providers"])
    print(f"doctor: {'openvino' if named else 'NO openvino'}, nodes on {providers}")
    return holds and named and providers == "OpenVINO CPU"


def has_torch(python: Path) -> bool:
    """Return whether torch can be imported."""
    return subprocess.run([str(python), "-c", "import torch"], capture_output=True).returncode == 0


def write_drawing_task(folder: Path) -> list[object]:
    """Write a tiny generator bundle, a normal image and a box; return the command that draws, without its --out."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    import numpy as np
    from tiny_synth_bundle import GROUND, write_tiny_synth

    from flawscope.imaging.png import write_png

    bundle, image, mask = folder / "drawer.flaw", folder / "good.png", folder / "box.png"
    write_tiny_synth(bundle)
    steel = (np.array(GROUND[:3]) + 1) * 127.5
    pixels = np.rint(steel + np.random.default_rng(0).normal(0, 4, (48, 48, 3))).clip(0, 255).astype(np.uint8)
    box = np.zeros((48, 48), np.uint8)
    box[16:32, 16:32] = 255
    for path, content in ((image, pixels), (mask, box)):
        write_png(path, content, is_bgr=True)
    return ["synth", "generate", bundle, "--image", image, "--mask", mask, "--defect", "pitting", "--backend", "cpu"]


def drawings(python: Path | str, command: list[object], out: Path) -> dict[str, bytes]:
    """Draw in one environment; return the bytes of every image and mask that was written."""
    run(python, "-m", "flawscope", *command, "--out", out)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*/*.png"))}


def main() -> None:
    """Run every check and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    folder = ROOT / "build" / "lean"
    python = make_environment(folder)
    size_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    # The best of five: the first one compiles bytecode, and other processes only ever add time.
    import_s = min(float(run(python, "-c", _IMPORT)) for _ in range(5))
    kernels = run(python, "-c", "import flawscope.cpp_ext as c; print(c.implementation())").strip()
    torch = has_torch(python)
    packages = sorted(path.name.split("-")[0] for path in folder.glob("lib/*/site-packages/*.dist-info"))
    print(f"lean install: {size_mb:.0f} MB (limit {LIMIT_MB}), {', '.join(packages)}")
    print(f"import flawscope.runtime: {import_s:.3f} s (limit {LIMIT_S})")
    print(f"import torch: {'works' if torch else 'not there'}")
    print(f"kernels: {kernels}")
    failed = size_mb > LIMIT_MB or import_s > LIMIT_S or torch or not kernels.startswith("native")
    with tempfile.TemporaryDirectory(prefix="flawscope-lean-") as name:
        bundle, images = make_bundle(Path(name))
        for path in ("graph", "kernel"):
            full, lean = (scores(which, bundle, images, path) for which in (sys.executable, python))
            same = full == lean
            failed |= not same
            print(f"{len(images)} scores by the {path}: {'equal to the last bit' if same else 'DIFFERENT'}")
        more, same = keep_up(python, bundle, Path(name))
        failed |= not same
        print(f"bundle after adding images and taking them out: {'every file as it was' if same else 'DIFFERENT'}")
        for path in ("graph", "kernel"):
            full, lean = (scores(which, more, images, path) for which in (sys.executable, python))
            same = full == lean
            failed |= not same
            print(f"{len(images)} scores with added images by the {path}: {'equal' if same else 'DIFFERENT'}")
        failed |= not check_openvino(python, bundle, images)
        add_extra(python, "synth")
        command = write_drawing_task(Path(name))
        full_drawn, lean_drawn = (
            drawings(which, command, Path(name) / where)
            for which, where in ((sys.executable, "full"), (python, "lean"))
        )
        same = len(full_drawn) > 0 and full_drawn == lean_drawn
        failed |= not same
        print(f"{len(full_drawn)} images of a drawn defect: {'equal to the last bit' if same else 'DIFFERENT'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
