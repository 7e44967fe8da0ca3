"""Prove the lean install: size, import time, no torch, and the same scores to the last bit as the full environment.

Makes a virtual environment under build/lean with `flawscope[cpu]` and nothing else, a small bundle with the full
environment, and lets both score the same pictures. Exit status 1 where a promise does not hold.
"""

from __future__ import annotations

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
    """Run a command; return its standard output, or end with its error."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def make_environment(folder: Path) -> Path:
    """Install `flawscope[cpu]` in a new environment, as a wheel; return its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # The CUDA kernels take minutes to compile and are not what this is about.
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{ROOT}[cpu]", FLAWSCOPE_CUDA="OFF")
    run(python, "-m", "pip", "uninstall", "-q", "-y", "pip", "setuptools")  # not part of what a device needs
    return python


def make_bundle(folder: Path) -> tuple[Path, list[Path]]:
    """Train, export and calibrate a small detector with this environment; return the bundle and pictures."""
    flawscope = (sys.executable, "-m", "flawscope")
    data, bundle = folder / "data", folder / "steel.flaw"
    run(*flawscope, "data", "demo", data, "--kind", "steel", "--size", 128, "--train", 60)
    run(*flawscope, "train", "patchcore", "--data", data, "--image-size", 128, "--out", folder / "run")
    run(*flawscope, "export", folder / "run", "--out", bundle)
    run(*flawscope, "calibrate", bundle, "--data", data)
    return bundle, sorted(data.glob("steel/test/*/*.png"))


def scores(python: Path | str, bundle: Path, pictures: list[Path], path: str) -> list[float]:
    """Score pictures in one environment; JSON keeps every bit of a float."""
    lines = run(python, "-m", "flawscope", "score", bundle, *pictures, "--backend", "cpu", "--json", "--path", path)
    return [json.loads(line)["score"] for line in lines.splitlines()]


def main() -> None:
    """Check every promise and print what was measured."""
    folder = ROOT / "build" / "lean"
    python = make_environment(folder)
    size_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    import_s = min(float(run(python, "-c", _IMPORT)) for _ in range(5))
    kernels = run(python, "-c", "import flawscope.cpp_ext as c; print(c.implementation())").strip()
    torch = subprocess.run([str(python), "-c", "import torch"], capture_output=True, text=True)
    packages = sorted(path.name.split("-")[0] for path in folder.glob("lib/*/site-packages/*.dist-info"))
    print(f"lean install: {size_mb:.0f} MB (limit {LIMIT_MB}), {', '.join(packages)}")
    print(f"import flawscope.runtime: {import_s:.3f} s (limit {LIMIT_S})")
    print(f"import torch: {torch.stderr.strip().splitlines()[-1] if torch.returncode else 'works'}")
    print(f"kernels: {kernels}")
    failed = size_mb > LIMIT_MB or import_s > LIMIT_S or torch.returncode == 0 or not kernels.startswith("native")
    with tempfile.TemporaryDirectory(prefix="flawscope-lean-") as name:
        bundle, pictures = make_bundle(Path(name))
        for path in ("graph", "kernel"):
            full, lean = (scores(which, bundle, pictures, path) for which in (sys.executable, python))
            same = full == lean
            failed |= not same
            print(f"{len(pictures)} scores by the {path}: {'equal to the last bit' if same else 'DIFFERENT'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
