"""Run the kernel tests against kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tools/sanitize.py BUILD

BUILD is a CMake build folder of cpp_ext with FLAWSCOPE_SANITIZE set. A tree of links has its module in place of the
ordinary one; the installation is not changed. Further arguments are for pytest, whose exit status is returned; a
finding of a sanitizer ends the run at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from linktree import ROOMS, ROOT, make_tree


def link_tree(build: Path) -> Path:
    """Make a tree in which `flawscope.cpp_ext` has the module of `build`; return the folder for PYTHONPATH."""
    tree = build / "tree"
    # cpp_ext is no single link here: its compiled files must be those of the build, everything else those of the room.
    package = make_tree(tree, tuple(room for room in ROOMS if room != "cpp_ext"))
    (package / "cpp_ext").mkdir()
    for path in (ROOT / "cpp_ext").iterdir():
        if path.suffix != ".so" and path.name != "lib":
            (package / "cpp_ext" / path.name).symlink_to(path)
    command = ["cmake", "--install", str(build), "--prefix", str(package / "cpp_ext")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return tree


def runtime_library(name: str) -> str:
    """Return the path of a sanitizer's runtime library, as the compiler knows it."""
    process = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = process.stdout.strip()
    # g++ prints the bare name of a library that it does not find, with exit status 0.
    if not Path(path).is_absolute():
        sys.exit(f"{name}: expected the sanitizer's library beside g++, got none. Install it, or use GCC.")
    return path


def main() -> None:
    """Build the tree and run the tests in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    options, pytest_options = parser.parse_known_args()
    tree = link_tree(options.build.resolve())
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        # Python is not built with the sanitizers: their runtimes have to be loaded before anything else. libstdc++ as
        # well, or AddressSanitizer does not find the function that throws exceptions.
        "LD_PRELOAD": " ".join(runtime_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")),
        # Python itself never frees some of its memory; a kernel that leaks is found by a test of its own.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "FLAWSCOPE_SANITIZED": "1",
    }
    command = [sys.executable, "-m", "pytest", "tests/cpp_ext", "-q", *pytest_options]
    sys.exit(subprocess.run(command, cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
