"""Run the kernel tests against kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tools/sanitize.py BUILD

BUILD is a CMake build folder of cpp_ext with FLAWSCOPE_SANITIZE set. Its module takes the place of the ordinary one in
a tree of links; nothing of the installation is touched. The exit status is pytest's; a finding ends the run at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from linktree import ROOMS, ROOT, make_tree


def link_tree(build: Path) -> Path:
    """Make a tree in which `flawscope.cpp_ext` has the module of `build`; return what goes on PYTHONPATH."""
    tree = build / "tree"
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
    done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"{name}: expected the sanitizer's library beside g++, got none. Install it, or use GCC.")
    return path


def main() -> None:
    """Build the tree and run the tests in it."""
    tree = link_tree(Path(sys.argv[1]).resolve())
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "LD_PRELOAD": " ".join(runtime_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")),
        # Python itself keeps memory until it ends; a kernel that leaks is seen by its own test.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "FLAWSCOPE_SANITIZED": "1",
    }
    command = [sys.executable, "-m", "pytest", "tests/cpp_ext", "-q", *sys.argv[2:]]
    sys.exit(subprocess.run(command, cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
